"use strict";

const COLOURS = ["#3366cc", "#dc6a1e", "#2a9d5c", "#a23bb5", "#c0304a", "#0f8ea8", "#8a6d1b", "#5b5fc7"];
const EVENT_COLOURS = { failure: "#c0304a", checkpoint: "#888888", evaluation: "#2a9d5c", best: "#a23bb5", loss: "#dc6a1e", recovery: "#0f8ea8" };
const CHART_HEIGHT = 190;
const CHART_WIDTH = 370;
const GAP = 16;
// Steps are whole.
const STEPS_APART = [1, 2, 5].flatMap((first) => [0, 1, 2, 3, 4, 5, 6].map((zeros) => first * 10 ** zeros)).sort((a, b) => a - b);
const plots = [];

/** Width of a chart: as many as fit stand side by side, and fill the page. */
function chartWidth() {
  const room = document.getElementById("report").clientWidth || 1200;
  const count = Math.max(1, Math.floor((room + GAP) / (CHART_WIDTH + GAP)));
  return Math.floor((room + GAP) / count) - GAP;
}

addEventListener("resize", () => {
  const width = chartWidth();
  for (const plot of plots) plot.setSize({ width, height: CHART_HEIGHT });
});

/** Ends of an axis: with room around values that are all equal. */
function rangeOf(least, most) {
  if (least === null || most === null) return [0, 1];
  if (least === most) return least === 0 ? [0, 1] : [least - Math.abs(least) / 2, most + Math.abs(most) / 2];
  const room = (most - least) * 0.08;
  return [least >= 0 ? Math.max(0, least - room) : least - room, most <= 0 ? Math.min(0, most + room) : most + room];
}

/** The lines of one or several series over steps, with the events of a run as vertical lines. */
function lineChart(title, steps, series, events) {
  const box = element("figure", { class: "chart" }, element("figcaption", {}, title));
  const style = getComputedStyle(document.body);
  const axis = { stroke: style.color, grid: { stroke: "#8884", width: 1 }, ticks: { stroke: "#8884" } };
  const marked = (events || []).filter(([, kind]) => EVENT_COLOURS[kind]);
  const options = {
    width: chartWidth(),
    height: CHART_HEIGHT,
    scales: { x: { time: false }, y: { range: (_, least, most) => rangeOf(least, most) } },
    legend: { live: true },
    cursor: { sync: { key: "steps" } },
    series: [
      { label: "step" },
      ...series.map(({ name }, place) => ({
        label: name,
        stroke: COLOURS[place % COLOURS.length],
        width: 1.5,
        spanGaps: true,
        points: { show: steps.length < 40 },
        value: (_, value) => shown(value),
      })),
    ],
    axes: [{ ...axis, incrs: STEPS_APART }, { ...axis, size: 64, values: (_, ticks) => ticks.map(shown) }],
    hooks: { draw: [(chart) => drawEvents(chart, marked)] },
  };
  plots.push(new uPlot(options, [steps, ...series.map(({ values }) => values)], box));
  return box;
}

function drawEvents(chart, events) {
  const { ctx: pen, bbox: frame } = chart;
  pen.save();
  for (const [step, kind] of events) {
    const x = chart.valToPos(step, "x", true);
    if (x < frame.left || x > frame.left + frame.width) continue;
    pen.strokeStyle = EVENT_COLOURS[kind];
    pen.globalAlpha = ["checkpoint", "evaluation"].includes(kind) ? 0.35 : 0.8;
    pen.beginPath();
    pen.moveTo(x, frame.top);
    pen.lineTo(x, frame.top + frame.height);
    pen.stroke();
  }
  pen.restore();
}

/** Counts of rewards in bands, a column for every step; darker is more. */
function rewardMap(groups) {
  const { low, high, counts } = groups.rewards;
  const bands = counts[0].length;
  const [width, height] = [900, 200];
  const cell = width / counts.length;
  const cells = counts.flatMap((column, place) => {
    const most = Math.max(...column, 1);
    return column.map((count, band) =>
      count
        ? drawing(
            "rect",
            {
              x: (place * cell).toFixed(2),
              y: (height - ((band + 1) * height) / bands).toFixed(2),
              width: (cell + 0.3).toFixed(2),
              height: (height / bands + 0.3).toFixed(2),
              fill: COLOURS[0],
              "fill-opacity": (0.08 + (0.92 * count) / most).toFixed(2),
            },
            drawing("title", {}, `step ${groups.steps[place]}: ${count} rewards near ` +
              shown(low + ((band + 0.5) * (high - low)) / bands)),
          )
        : null,
    );
  });
  return element(
    "figure",
    {},
    element("figcaption", {}, `Rewards of every step that was read, from ${shown(low)} (below) to ${shown(high)} (above)`),
    drawing("svg", { viewBox: `0 0 ${width} ${height}`, class: "map", preserveAspectRatio: "none" }, cells),
  );
}
