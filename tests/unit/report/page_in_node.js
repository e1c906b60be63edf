"use strict";
// Runs the scripts of a report with a small document in place of a browser's, opens every fold,
// makes every choice, and prints what then stands there.

const fs = require("fs");
const vm = require("vm");

class FakeNode {
  constructor(tag, text) {
    this.tag = tag;
    this.text = text;
    this.children = [];
    this.attributes = {};
    this.listeners = {};
    this.open = false;
  }
  append(...children) {
    for (const child of children) {
      if (!(child instanceof FakeNode)) throw new Error(`no node: ${child}`);
      this.children.push(child);
    }
  }
  replaceChildren(...children) {
    this.children = [];
    this.append(...children);
  }
  setAttribute(name, value) {
    if (typeof value !== "string") throw new Error(`${name}: ${value}`);
    if (/NaN|undefined|Infinity/.test(value) && name !== "title") throw new Error(`${this.tag} ${name}="${value}"`);
    this.attributes[name] = value;
  }
  addEventListener(name, call) {
    this.listeners[name] = call;
  }
  get textContent() {
    return this.text !== undefined ? this.text : this.children.map((child) => child.textContent).join("");
  }
  *all() {
    yield this;
    for (const child of this.children) yield* child.all();
  }
}

const page = fs.readFileSync(process.argv[2], "utf8");
const found = [...page.matchAll(/<script([^>]*)>([\s\S]*?)<\/script>/g)].map((match) => [match[1], match[2]]);
const main = new FakeNode("main");
const data = new FakeNode("script", found.find(([attributes]) => attributes.includes('id="data"'))[1]);
const charts = [];
let events = 0;

class FakePlot {
  constructor(options, values) {
    if (values.some((column) => column.length !== values[0].length)) throw new Error("columns of other lengths");
    if (values.length !== options.series.length) throw new Error("series without values");
    charts.push(options.series.slice(1).map(({ label }) => label));
    for (const ends of [[0, 0], [3, 3], [-2, 5], [null, null]]) {
      const [low, high] = options.scales.y.range(null, ...ends);
      if (!(low < high && low <= (ends[0] ?? 0) && high >= (ends[1] ?? 0))) throw new Error(`range of ${ends}`);
    }
    for (const tick of options.axes[1].values(null, [0, 0.5, 1e-7, 1e9])) if (tick === "") throw new Error("empty tick");
    const pen = { save() {}, restore() {}, beginPath() {}, moveTo() {}, lineTo() {}, stroke() { events++; } };
    for (const draw of options.hooks.draw) draw({ ctx: pen, bbox: { left: 0, top: 0, width: 1e9, height: 1 }, valToPos: (x) => x });
  }
}

const context = vm.createContext({
  document: {
    body: new FakeNode("body"),
    createElement: (tag) => new FakeNode(tag),
    createElementNS: (_, tag) => new FakeNode(tag),
    createTextNode: (text) => new FakeNode("#text", String(text)),
    getElementById: (id) => ({ data, report: main })[id],
  },
  getComputedStyle: () => ({ color: "black" }),
  uPlot: FakePlot,
  location: { hash: "" },
  performance,
  addEventListener() {},
  atob, Blob, Response, DecompressionStream, Uint8Array, Uint16Array, console,
});

const titles = new Set();

function noteTitles() {
  for (const { attributes } of main.all()) if (attributes.title) titles.add(attributes.title);
}

function visit() {
  const texts = new Set();
  for (const node of [...main.all()]) {
    if (node.listeners.toggle) node.listeners.toggle({ target: { open: true } });
  }
  texts.add(main.textContent);
  const chosen = (name) => [...main.all()].filter((node) => node.tag === "select")[name];
  for (let place = 0; chosen(place); place++) {
    const options = chosen(place).children.filter((option) => !("disabled" in option.attributes));
    for (const option of options) {
      const select = chosen(place);
      if (!select) break;
      select.listeners.change({ target: { value: option.attributes.value } });
      texts.add(main.textContent);
      noteTitles();
    }
    if (chosen(place) && options.length) chosen(place).listeners.change({ target: { value: options[0].attributes.value } });
  }
  for (const node of [...main.all()]) if (node.listeners.input) node.listeners.input({ target: { value: "0" } });
  return [...texts];
}

(async () => {
  vm.runInContext(found[found.length - 1][1] + "\n;globalThis.openedPage = reportShown; globalThis.compare = difference;", context);
  await context.openedPage;
  const texts = visit();
  const nodes = [...main.all()];
  const compared = process.argv.slice(3).map((pair) => context.compare(...JSON.parse(pair)));
  const tags = [...new Set(nodes.map(({ tag }) => tag))].sort();
  const links = nodes.filter(({ tag }) => tag === "a").map(({ attributes }) => attributes.href);
  const headings = nodes.filter(({ tag }) => tag === "h1" || tag === "h2").map((node) => node.textContent);
  process.stdout.write(JSON.stringify({ texts, titles: [...titles], tags, links, headings, charts, events, compared }));
})().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
});
