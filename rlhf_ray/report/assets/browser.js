"use strict";

const MOST_COLUMNS = 40;
const MOST_ROWS = 60;

/** The answers of a run: one prompt across steps, or the prompts of one step. */
function browserPanel(run) {
  const box = panel("Answers", "answers");
  if (!run.browsers.length) {
    box.append(missing("This folder has no rollouts or answers (observe.rollouts writes them)."));
    return box;
  }
  const inner = element("div", {});
  const open = (place) => inner.replaceChildren(browser(run.browsers[place]));
  if (run.browsers.length > 1) {
    box.append(choice("show", run.browsers.map(({ name }, place) => [String(place), name]), (value) => open(Number(value)), "0"));
  }
  box.append(inner);
  open(0);
  return box;
}

function browser(data) {
  if (!data.groups.length) return missing("No answer fits into this report.");
  const state = { view: "prompt", prompt: commonPrompts(data)[0][0], column: data.columns.length - 1, colour: "none", compare: true, pick: "best", least: "", most: "", words: "", hasTexts: data.token_texts };
  const controls = element("div", { class: "controls" });
  const output = element("div", {});
  const draw = () => {
    controls.replaceChildren(...browserControls(data, state, draw));
    output.replaceChildren(state.view === "prompt" ? promptView(data, state) : columnView(data, state));
  };
  draw();
  return element("div", {}, controls, output);
}

/** Places of the prompts and the number of their columns, most columns first. */
function commonPrompts(data) {
  const counts = data.prompts.map(() => new Set());
  for (const group of data.groups) counts[group.prompt].add(group.column);
  return counts.map((found, place) => [place, found.size]).sort((a, b) => b[1] - a[1] || a[0] - b[0]);
}

function browserControls(data, state, draw) {
  const set = (name, read) => (value) => {
    state[name] = read ? read(value) : value;
    draw();
  };
  const field = (label, name) => element("label", {}, `${label} `, element("input", { value: state[name], size: 8, onchange: (event) => set(name)(event.target.value) }));
  const brief = (text) => text.replace(/\s+/g, " ").trim().slice(-70);
  const found = [choice("view", [["prompt", "one prompt side by side"], ["column", "one step"]], set("view"), state.view)];
  if (state.view === "prompt") {
    found.push(
      choice("prompt", commonPrompts(data).slice(0, 500).map(([place, columns]) => [String(place), `${columns}× ${brief(data.prompts[place])}`]), set("prompt", Number), String(state.prompt)),
      choice("answer", [["best", "best reward"], ["worst", "worst reward"]], set("pick"), state.pick),
      choice("difference", [["yes", "to the column before"], ["no", "not shown"]], set("compare", (value) => value === "yes"), state.compare ? "yes" : "no"),
    );
  } else {
    found.push(
      choice("step", data.columns.map((name, place) => [String(place), name]), set("column", Number), String(state.column)),
      field("reward from", "least"), field("to", "most"), field("with the words", "words"),
    );
  }
  const option = (value, label, needs) => [value, `${label}${data.has.includes(needs) ? "" : ", not recorded"}`, !data.has.includes(needs)];
  found.push(choice("colour", [
    ["none", "none"],
    option("logprob", "log-probability", "logprobs"),
    option("ratio", "ratio, updated policy to engine", "updated_logprobs"),
    option("advantage", "advantage", "advantages"),
    option("origin", "origin", "logprobs"),
    ["version", "weight version"],
    ["reward", "reward against the group"],
  ], set("colour"), state.colour));
  return found;
}

function promptView(data, state) {
  const groups = data.groups.filter((group) => group.prompt === state.prompt).sort((a, b) => a.column - b.column);
  const every = Math.ceil(groups.length / MOST_COLUMNS);
  const chosen = groups.filter((_, place) => place % every === 0 || place === groups.length - 1);
  let before = null;
  const columns = chosen.map((group) => {
    const sample = state.pick === "best" ? group.samples[0] : group.samples[group.samples.length - 1];
    const node = answer(data, group, sample, state, state.compare ? before : null);
    before = sample;
    return node;
  });
  const left = groups.length - chosen.length;
  return element("div", {}, element("pre", { class: "prompt" }, data.prompts[state.prompt]),
    left ? element("p", {}, `${left} of ${groups.length} columns are left out here`) : null,
    element("div", { class: "columns" }, columns));
}

function columnView(data, state) {
  const least = state.least === "" ? -Infinity : Number(state.least);
  const most = state.most === "" ? Infinity : Number(state.most);
  const fits = (group, sample) => {
    const reward = sample.reward === null ? 0 : sample.reward;
    const text = `${data.prompts[group.prompt]}\n${sample.text}`.toLowerCase();
    return reward >= least && reward <= most && text.includes(state.words.toLowerCase());
  };
  const found = data.groups.filter((group) => group.column === state.column)
    .flatMap((group) => group.samples.filter((sample) => fits(group, sample)).map((sample) => [group, sample]));
  return element("div", {}, element("p", {}, `${found.length} answers${found.length > MOST_ROWS ? `, the first ${MOST_ROWS}` : ""}`),
    found.slice(0, MOST_ROWS).map(([group, sample]) => element("article", {}, element("pre", { class: "prompt" }, data.prompts[group.prompt]), answer(data, group, sample, state, null))));
}

function answer(data, group, sample, state, before) {
  const parts = Object.entries(sample.parts || {}).map(([name, value]) => `${name} ${shown(value)}`).join(", ");
  const of = group.samples_in_group > 1 ? `, mean of ${group.samples_in_group}: ${shown(group.mean)}` : "";
  return element("div", { class: "answer" },
    element("h4", {}, `${/^\d+$/.test(data.columns[group.column]) ? "step " : ""}${data.columns[group.column]}`),
    element("p", { class: "facts" }, `reward ${shown(sample.reward)}${of}`, parts ? ` (${parts})` : "", ` · ${shown(sample.tokens)} tokens · ${sample.finish}`),
    element("pre", {}, answerText(group, sample, state, before)));
}

function answerText(group, sample, state, before) {
  if (state.colour !== "none") return coloured(group, sample, state.colour);
  if (!before) return [sample.text];
  const isWhole = state.hasTexts && [sample, before].every((one) => one.pieces && one.logprobs.filter((value) => value !== null).length >= one.tokens);
  const pieces = (one) => (isWhole ? one.pieces : words(one.text));
  return difference(pieces(before), pieces(sample)).map(([kind, text]) => (kind === "same" ? text : element(kind === "added" ? "ins" : "del", {}, text)));
}

/** The text with a colour per token, or for the whole where single tokens are not recorded. */
function coloured(group, sample, by) {
  if (by === "reward") {
    const spread = group.deviation || 0;
    const value = spread > 0 && sample.reward !== null ? (sample.reward - group.mean) / spread : 0;
    return [element("span", { style: `background:${twoSided(value / 2)}`, title: `(reward - mean) / deviation of the group: ${shown(value)}` }, sample.text)];
  }
  const pieces = sample.pieces;
  if (by === "version") return versionSpans(sample, pieces);
  if (!pieces) return [element("p", { class: "missing" }, "The tokens of this answer are not recorded."), sample.text];
  const colour = TOKEN_COLOURS[by];
  const numbers = colour.of(sample);
  if (!numbers) return [element("p", { class: "missing" }, colour.without), ...pieces];
  return pieces.map((piece, place) => numbers[place] === null ? element("span", { class: "given", title: "not sampled: from the environment" }, piece)
    : element("span", { ...colour.mark(numbers[place]), title: colour.words(numbers[place]) }, piece));
}

/** The number of every token, its mark, and its words. */
const TOKEN_COLOURS = {
  logprob: {
    of: (sample) => sample.logprobs,
    mark: (value) => ({ style: `background:${oneSided(-value / 5)}` }),
    words: (value) => `log-probability ${shown(value)}`,
  },
  // Full colour at 0.74 and 1.35, beyond the usual clip.
  ratio: {
    of: (sample) => sample.updated_logprobs && sample.updated_logprobs.map((value, place) => (value === null || sample.logprobs[place] === null ? null : Math.exp(value - sample.logprobs[place]))),
    mark: (value) => ({ style: `background:${twoSided(Math.log(Math.max(value, 1e-9)) / 0.3)}` }),
    words: (value) => `ratio ${shown(value)}: the policy after this step to the engine that sampled`,
    without: "Log-probabilities after the update were not recorded in this step (observe.rescore_every).",
  },
  advantage: {
    of: (sample) => sample.advantages,
    mark: (value) => ({ style: `background:${twoSided(value / 2)}` }),
    words: (value) => `advantage ${shown(value)}`,
    without: "The advantages of this answer were not recorded.",
  },
  origin: {
    of: (sample) => sample.logprobs,
    mark: () => ({ class: "sampled" }),
    words: () => "sampled by the policy",
  },
};

function versionSpans(sample, pieces) {
  const spans = sample.versions || [];
  if (!pieces) {
    const text = spans.map(([version, count]) => `version ${version}: ${count} tokens`).join(", ");
    return [element("span", { style: spans.length === 1 ? `background:${versionColour(spans[0][0])}` : null, title: text }, sample.text), element("p", { class: "facts" }, text)];
  }
  const versions = spans.flatMap(([version, count]) => Array(Math.min(count, pieces.length)).fill(version));
  let next = 0;
  return pieces.map((piece, place) => {
    if (sample.logprobs[place] === null) return element("span", { class: "given" }, piece);
    const version = versions[next++];
    return version === undefined ? piece : element("span", { style: `background:${versionColour(version)}`, title: `sampled by version ${version}` }, piece);
  });
}

function oneSided(share) {
  return `rgba(220,106,30,${Math.min(Math.max(share, 0), 1).toFixed(2)})`;
}

function twoSided(share) {
  const size = Math.min(Math.abs(share), 1).toFixed(2);
  return share < 0 ? `rgba(192,48,74,${size})` : `rgba(42,157,92,${size})`;
}

function versionColour(version) {
  return `hsla(${(version * 67) % 360},70%,55%,0.35)`;
}
