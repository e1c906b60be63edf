"use strict";

function runPage(run) {
  const isPipeline = run.pipeline.length > 0;
  const parts = [headerPanel(run), alarmPanel(run), pipelinePanel(run), ...resultPanel(run)];
  const hasSteps = run.curves.steps.length > 0;
  if (hasSteps || !isPipeline) parts.push(curvePanel(run));
  if (hasSteps) parts.push(timePanel(run));
  if (run.browsers.length || run.stage === "rl") parts.push(browserPanel(run));
  if (run.groups.steps.length || run.stage === "rl") parts.push(groupPanel(run));
  if (hasSteps) parts.push(numericsPanel(run));
  if (hasSteps || run.error) parts.push(failurePanel(run));
  if (hasSteps) parts.push(memoryPanel(run));
  return parts.filter((part) => part !== null);
}

/** Several runs: their differences, the same metric in one chart, their alarms. */
function comparisonPage(data) {
  const { runs, differences } = data;
  const names = runs.map(({ label }) => label);
  const heads = runs.map((run) => [run.label, run.stage, run.end.cause || "not recorded", seconds(run.end.seconds), shown(run.num_steps), run.folder]);
  const figures = {};
  runs.forEach((run, place) => run.summary.forEach(([name, value]) => ((figures[name] ||= runs.map(() => "-"))[place] = value)));
  const metrics = [...new Set(runs.flatMap((run) => Object.keys(run.curves.values)))];
  const groups = {};
  for (const name of metrics) (groups[name.split("/")[0]] ||= []).push(name);
  const steps = [...new Set(runs.flatMap((run) => run.curves.steps))].sort((a, b) => a - b);
  const aligned = runs.map((run) => new Map(run.curves.steps.map((step, place) => [step, place])));
  const chart = (metric) => lineChart(metric, steps, runs.map((run, number) => ({
    name: run.label,
    values: steps.map((step) => {
      const place = aligned[number].get(step);
      const values = run.curves.values[metric];
      return place === undefined || !values ? null : values[place];
    }),
  })), []);
  const curves = panel("Curves", "curves", element("div", { class: "charts" }, OVERVIEW.filter((name) => metrics.includes(name)).map(chart)));
  for (const [group, found] of Object.entries(groups)) curves.append(folded(`${group} (${found.length})`, (inner) => inner.append(element("div", { class: "charts" }, found.map(chart))), false));
  const alarms = runs.flatMap((run) => run.alarms.filter(({ state }) => state === "alarm").map(({ name, text }) => [run.label, name, text]));
  const left = runs.flatMap((run) => run.left_out.map((text) => [run.label, text]));
  return [
    element("section", { id: "head" }, element("h1", {}, names.join(" · ")), table(["run", "stage", "end", "time", "steps", "folder"], heads)),
    panel("Settings that differ", "settings", differences.length ? table(["key", ...names], differences) : missing("All settings but output_dir are equal.")),
    panel("Summaries", "summaries", table(["", ...names], Object.entries(figures).map(([name, values]) => [name, ...values]))),
    panel("Alarms", "alarms", alarms.length ? table(["run", "alarm", ""], alarms) : element("p", { class: "good" }, "No alarm.")),
    curves,
    left.length ? panel("Left out", "left", table(["run", ""], left)) : null,
  ].filter((part) => part !== null);
}

/** Show the report; an error is shown, too, and not only logged. */
async function showReport() {
  const main = document.getElementById("report");
  try {
    const data = await readData();
    main.replaceChildren(...(data.runs.length > 1 ? comparisonPage(data) : runPage(data.runs[0])));
    // report.html#all is the whole report, for a printer.
    if (location.hash === "#all") for (const node of document.querySelectorAll("details")) node.open = true;
    main.setAttribute("data-opened-ms", String(Math.round(performance.now())));
  } catch (error) {
    main.replaceChildren(element("p", { class: "bad" }, `The report cannot be shown: ${error}`));
    throw error;
  }
}

const reportShown = showReport();
