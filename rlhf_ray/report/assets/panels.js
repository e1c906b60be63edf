"use strict";

const NUMERICS = [
  ["publish/probe_gap_max", "rollout/logprob_gap_mean", "rollout/logprob_gap_max"],
  ["policy/clip_fraction", "policy/log_ratio_clamped_fraction", "value/clip_fraction"],
  ["kl/reference", "policy/approx_kl", "rollout/kl_learner_generator"],
  ["policy/entropy"],
  ["policy/grad_norm", "value/grad_norm", "train/grad_norm"],
  ["correction/effective_sample_size", "correction/filtered_fraction", "correction/truncated_fraction"],
];
const OVERVIEW = ["reward/mean", "train/loss", "eval/loss", "evaluation/greedy/reward/mean", "evaluation/sampled/reward/mean", "response/length_mean", "policy/entropy", "kl/reference"];

function headerPanel(run) {
  const end = run.end;
  const cause = end.cause || "not recorded: it is still running, was killed, or is of an earlier release";
  const facts = [
    ["stage", run.stage || "not known"],
    ["end", element("b", { class: cause === "done" ? "good" : "bad" }, cause)],
    ["ended", end.at || "-"],
    ["time", seconds(end.seconds)],
    ["steps with metrics", shown(run.num_steps)],
    ["folder", run.folder],
    ["report made", run.made_at],
    ["versions", Object.entries(end.versions || {}).map(([name, version]) => `${name} ${version}`).join(", ") || "not recorded"],
  ];
  const box = element("section", { id: "head" }, element("h1", {}, run.name), table([], facts, { class: "facts" }));
  if (end.message) box.append(element("pre", { class: "bad" }, end.message));
  if (run.left_out.length) {
    box.append(folded(`What this report leaves out (${run.left_out.length})`, (inner) => inner.append(element("ul", {}, run.left_out.map((text) => element("li", {}, text)))), false));
  }
  if (run.summary.length) box.append(folded("Summary", (inner) => inner.append(table([], run.summary)), true));
  box.append(folded(`Settings that differ from the defaults (${run.settings.length})`, (inner) => inner.append(table(["key", "value", "default"], run.settings)), false));
  return box;
}

function alarmPanel(run) {
  const box = panel("Alarms", "alarms");
  if (!run.alarms.length) {
    box.append(missing("There are no alarms for this stage."));
    return box;
  }
  const raised = run.alarms.filter(({ state }) => state === "alarm");
  box.append(element("p", { class: raised.length ? "bad" : "good" }, raised.length ? `${raised.length} of ${run.alarms.length} alarms` : "No alarm."));
  box.append(element("ul", {}, raised.map(({ name, text }) => element("li", {}, element("b", {}, name), `: ${text}`))));
  const others = run.alarms.filter(({ state }) => state !== "alarm");
  box.append(folded("Quiet, and not checked", (inner) => inner.append(table(["alarm", "state", "reason"], others.map(({ name, state, text }) => [name, state, text]))), false));
  return box;
}

function curvePanel(run) {
  const box = panel("Curves", "curves");
  const { steps, values } = run.curves;
  if (!steps.length) {
    box.append(missing("This folder has no metrics of steps."));
    return box;
  }
  const charts = (names) => element("div", { class: "charts" }, names.map((name) => lineChart(name, steps, [{ name, values: values[name] }], run.events)));
  const first = OVERVIEW.filter((name) => values[name]);
  box.append(legendOfEvents(run.events), charts(first.length ? first : Object.keys(values).slice(0, 6)));
  const groups = {};
  for (const name of Object.keys(values)) (groups[name.split("/")[0]] ||= []).push(name);
  for (const [group, names] of Object.entries(groups)) box.append(folded(`${group} (${names.length})`, (inner) => inner.append(charts(names)), false));
  if (run.events.length) box.append(folded(`Events (${run.events.length})`, (inner) => inner.append(table(["step", "kind", ""], run.events)), false));
  return box;
}

function legendOfEvents(events) {
  const kinds = [...new Set(events.map(([, kind]) => kind))];
  return element("p", { class: "legend" }, kinds.map((kind) => element("span", {}, element("i", { style: `background:${EVENT_COLOURS[kind] || "#888"}` }), kind)));
}

function groupPanel(run) {
  const box = panel("Groups and rewards over time", "groups");
  const { steps, shares, rewards } = run.groups;
  if (!steps.length) {
    box.append(missing("No rollouts were read."));
    return box;
  }
  if (rewards.counts) box.append(rewardMap(run.groups));
  box.append(element("div", { class: "charts" }, Object.entries(shares).map(([name, values]) => lineChart(`share: ${name}`, steps, [{ name, values }], []))));
  return box;
}

function numericsPanel(run) {
  const box = panel("Numerics", "numerics");
  const { steps, values } = run.curves;
  const found = NUMERICS.map((names) => names.filter((name) => values[name])).filter((names) => names.length);
  if (!found.length) box.append(missing("No metric of numerics was recorded."));
  box.append(element("div", { class: "charts" }, found.map((names) => lineChart(names.join(", "), steps, names.map((name) => ({ name, values: values[name] })), run.events))));
  if (values["publish/probe_gap_max"]) box.append(missing("The gap of single tensors is not recorded: the probe compares log-probabilities."));
  return box;
}

function failurePanel(run) {
  const box = panel("Failures", "failures");
  const { steps, values } = run.curves;
  const names = Object.keys(values).filter((name) => /fail|preempt|timeout|error|^recovery/.test(name) && !name.endsWith("standard_error") && !name.endsWith("calibration_error"));
  if (names.length) box.append(element("div", { class: "charts" }, names.map((name) => lineChart(name, steps, [{ name, values: values[name] }], []))));
  else box.append(missing("No metric of failures was recorded."));
  const lost = run.events.filter(([, kind]) => kind === "loss" || kind === "recovery" || kind === "failure");
  if (lost.length) box.append(table(["step", "kind", ""], lost));
  box.append(missing("Kinds and environments of single failures are in logs/driver.log; the metrics count groups."));
  if (run.error) box.append(folded("error.log", (inner) => inner.append(element("pre", {}, run.error)), true));
  return box;
}

function memoryPanel(run) {
  const { steps, values } = run.curves;
  const names = Object.keys(values).filter((name) => /memory|cache_use|_gib|_bytes/.test(name));
  const box = panel("Memory", "memory");
  if (names.length) box.append(element("div", { class: "charts" }, names.map((name) => lineChart(name, steps, [{ name, values: values[name] }], []))));
  box.append(missing("Memory of the ranks is not recorded, so that it cannot be set against the plan (stage=plan prints the plan)."));
  return box;
}

function resultPanel(run) {
  return run.tables.map(({ title, columns, rows }) => panel(`Results, ${title}`, "results", table(["", ...columns], rows)));
}

function pipelinePanel(run) {
  if (!run.pipeline.length) return null;
  const box = panel("Stages of the pipeline", "pipeline");
  box.append(table(["stage", "time", "end", "report"], run.pipeline.map(({ name, seconds: took, cause, report }) => [
    name, seconds(took), cause, report ? element("a", { href: report }, "report") : "none",
  ])));
  for (const { name, summary } of run.pipeline) {
    if (summary.length) box.append(folded(`${name}: summary`, (inner) => inner.append(table([], summary)), false));
  }
  return box;
}
