"use strict";

// Texts reach the page only as text nodes, here: nothing in this report parses them as HTML.

/** An element with attributes and children; a child that is no element becomes text. */
function element(tag, attributes, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for drawings. */
function drawing(tag, attributes, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value === true ? "" : String(value));
    }
  }
  for (const child of children.flat()) {
    if (child === null || child === undefined) continue;
    node.append(typeof child === "object" ? child : document.createTextNode(String(child)));
  }
  return node;
}

/** A table; the cells of `rows` are texts or elements. */
function table(head, rows, attributes) {
  return element(
    "div",
    { class: "scroll" },
    element(
      "table",
      attributes,
      head.length ? element("thead", {}, element("tr", {}, head.map((cell) => element("th", {}, cell)))) : null,
      element("tbody", {}, rows.map((row) => element("tr", {}, row.map((cell) => element("td", {}, cell))))),
    ),
  );
}

function choice(label, options, change, chosen) {
  const select = element(
    "select",
    { onchange: (event) => change(event.target.value) },
    options.map(([value, text, off]) =>
      element("option", { value, disabled: Boolean(off), selected: value === chosen }, text),
    ),
  );
  return element("label", {}, `${label} `, select);
}

/** A part of the page, that a click opens. `fill` makes its content when it is first opened. */
function folded(title, fill, isOpen) {
  const box = element("div", {});
  let isFilled = false;
  const open = () => {
    if (!isFilled) fill(box);
    isFilled = true;
  };
  const node = element(
    "details",
    { open: isOpen, ontoggle: (event) => event.target.open && open() },
    element("summary", {}, title),
    box,
  );
  if (isOpen) open();
  return node;
}

function panel(title, id, ...children) {
  return element("section", { id }, element("h2", {}, title), ...children);
}

function missing(text) {
  return element("p", { class: "missing" }, text);
}
