"use strict";

const MOST_BARS = 240;
// In the order of the loop; each has its colour everywhere.
const PHASES = ["generate", "score", "reference", "update", "publish", "evaluate", "checkpoint", "build"];

function phaseColour(name) {
  return COLOURS[PHASES.indexOf(name)] || "#888888";
}

/** Phases of the steps in the order of the loop: name and values. */
function phasesOf(run) {
  const values = run.curves.values;
  const names = Object.keys(values)
    .filter((name) => name.startsWith("time/") && name.split("/").length === 2 && name !== "time/step_s")
    .map((name) => name.slice(5).replace(/_s$/, ""));
  const rank = (name) => (PHASES.includes(name) ? PHASES.indexOf(name) : PHASES.length);
  return names.sort((a, b) => rank(a) - rank(b)).map((name) => [name, values[`time/${name}_s`]]);
}

function timePanel(run) {
  const phases = phasesOf(run);
  const whole = run.curves.values["time/step_s"];
  const box = panel("Time by phase", "time");
  if (!phases.length || !whole) {
    box.append(missing("No step of this folder has times."));
  } else {
    const total = mean(whole);
    const known = phases.map(([name, values]) => [name, (mean(values.map((v) => v || 0)) || 0)]);
    const rest = Math.max(0, total - known.reduce((sum, [, value]) => sum + value, 0));
    const row = ([name, value]) => [name, seconds(value), `${((100 * value) / total).toFixed(1)} %`];
    box.append(stackedBars(run, phases, whole), table(["phase", "mean of a step", "share"], [...known, ["rest", rest]].map(row)));
    const update = known.find(([name]) => name === "update");
    if (update) {
      box.append(element("p", {}, `The learner does not update its weights in ${(100 - (100 * update[1]) / total).toFixed(0)} % of the time of a step.`));
    }
    if (!run.times.length) box.append(stepLanes(run, phases, whole));
  }
  if (run.times.length) box.append(workerLanes(run.times));
  if (run.startup.parts) box.append(folded("Start-up", (inner) => inner.append(startup(run.startup)), false));
  return box;
}

function legend(names) {
  return element("p", { class: "legend" }, names.map((name) =>
    element("span", {}, element("i", { style: `background:${phaseColour(name)}` }), name)));
}

function stackedBars(run, phases, whole) {
  const [width, height] = [900, 180];
  const every = Math.ceil(run.curves.steps.length / MOST_BARS);
  const places = run.curves.steps.map((_, place) => place).filter((place) => place % every === 0);
  const top = Math.max(...places.map((place) => whole[place] || 0), 1e-9);
  const bar = width / places.length;
  const bars = places.map((place, number) => {
    let base = height;
    return phases.map(([name, values]) => {
      const part = ((values[place] || 0) / top) * height;
      base -= part;
      return part < 0.2 ? null : drawing("rect",
        { x: (number * bar).toFixed(2), y: Math.max(base, 0).toFixed(2), width: Math.max(bar * 0.9, 0.5).toFixed(2), height: part.toFixed(2), fill: phaseColour(name) },
        drawing("title", {}, `step ${run.curves.steps[place]}, ${name}: ${seconds(values[place])}`));
    });
  });
  const note = every > 1 ? `, one point of ${every}` : "";
  return element("figure", {},
    element("figcaption", {}, `Seconds of every step${note}; the highest has ${seconds(top)}`),
    drawing("svg", { viewBox: `0 0 ${width} ${height}`, class: "map", preserveAspectRatio: "none" }, bars.flat()),
    legend(phases.map(([name]) => name)));
}

/** The times of the driver and of every worker in one step. */
function workerLanes(steps) {
  const names = [...new Set(steps.flatMap(({ phases, workers }) => [
    ...phases.map(([name]) => name), ...workers.flatMap(([, found]) => Object.keys(found))]))];
  const box = element("div", {});
  const lane = (name, ms, spans) => {
    const bars = spans.map(([phase, begin, end, calls]) => {
      const from = Math.min(Math.max(begin, 0), ms);
      const left = (100 * from) / Math.max(ms, 1);
      const width = Math.max((100 * (Math.min(Math.max(end, 0), ms) - from)) / Math.max(ms, 1), 0.2);
      const words = `${phase}: ${seconds(begin / 1000)} to ${seconds(end / 1000)}${calls ? `, ${calls} calls` : ""}`;
      return element("i", { style: `left:${left.toFixed(2)}%;width:${width.toFixed(2)}%;background:${phaseColour(phase)}`, title: words });
    });
    return element("div", { class: "gantt" }, element("span", { title: name }, name), element("div", {}, bars));
  };
  const show = (place) => {
    const { step, ms, phases, workers, left_out: left } = steps[place];
    box.replaceChildren(
      element("p", {}, `Step ${step}: ${seconds(ms / 1000)}`),
      lane("driver", ms, phases),
      ...workers.map(([name, found]) => lane(name, ms, Object.entries(found).flatMap(([phase, spans]) => spans.map((span) => [phase, ...span])))),
    );
    if (left) box.append(missing(`${left} workers are not shown: of every role those that worked longest and shortest are.`));
  };
  show(steps.length - 1);
  const slider = element("input", { type: "range", min: 0, max: steps.length - 1, value: steps.length - 1, "aria-label": "step of the workers' times", oninput: (event) => show(Number(event.target.value)) });
  return element("figure", {}, element("figcaption", {}, "One step by worker: from the moment at which the driver waits for a call until it is done. Choose the step with the slider."),
    slider, legend(names), box);
}

/** The phases of one step on a line of time, as the driver saw them. */
function stepLanes(run, phases, whole) {
  const box = element("div", {});
  const steps = run.curves.steps;
  const show = (place) => {
    const total = Math.max(whole[place] || 0, 1e-9);
    let from = 0;
    const lanes = phases.filter(([, values]) => values[place]).map(([name, values]) => {
      const took = values[place];
      const lane = laneRow(name, from / total, took / total, seconds(took));
      from += took;
      return lane;
    });
    box.replaceChildren(element("p", {}, `Step ${steps[place]}: ${seconds(whole[place])}`), ...lanes);
  };
  show(steps.length - 1);
  const slider = element("input", { type: "range", min: 0, max: steps.length - 1, value: steps.length - 1, "aria-label": "step", oninput: (event) => show(Number(event.target.value)) });
  return element("figure", {}, element("figcaption", {}, "One step on the clock of the driver"), slider, box,
    missing("The times of single workers were not recorded (spans.jsonl): the lanes are the driver's phases, in their order."));
}

function laneRow(name, from, share, text) {
  const left = Math.min(from, 1) * 100;
  const width = Math.max(Math.min(share, 1 - Math.min(from, 1)) * 100, 0.3);
  return element("div", { class: "lane" }, element("span", {}, name),
    element("div", {}, element("i", { style: `margin-left:${left.toFixed(2)}%;width:${width.toFixed(2)}%` })), element("span", {}, text));
}

function startup(times) {
  const total = Math.max(Number(times.total_s) || 0, 1e-9);
  let from = 0;
  const known = Object.entries(times.parts || {}).filter(([, took]) => typeof took === "number");
  const parts = known.map(([name, took]) => {
    const lane = laneRow(name.replace(/_s$/, ""), from / total, took / total, seconds(took));
    from += took;
    return lane;
  });
  const roles = Object.entries(times.roles || {}).filter(([, found]) => found).map(([name, found]) => [name, seconds(found.load_s), seconds(found.start_s)]);
  return element("div", {}, element("p", {}, `From the command to the end of the first step: ${seconds(times.total_s)}`), parts,
    table(["role", "slowest actor, until it answers", "start"], roles));
}
