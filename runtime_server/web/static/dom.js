// Elements and text. Nothing here, or in any other file of the page, turns a text into HTML.

export function el(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  const { cls, text, data, ...rest } = options;
  if (cls) made.className = cls;
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(data ?? {})) made.dataset[name] = value;
  for (const [name, value] of Object.entries(rest)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export function fill(parent, ...children) {
  parent.replaceChildren(...children.filter((child) => child !== null && child !== undefined));
}

export function number(value, digits = 0) {
  return value === null || value === undefined ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits });
}

// A number and its unit stay on one line.
export function unit(value, name, digits = 0) {
  return `${number(value, digits)}\u00a0${name}`;
}

export function percent(share) {
  return share === null || share === undefined ? "–" : unit(100 * share, "%", share > 0 && share < 0.01 ? 1 : 0);
}

export function bytes(count) {
  let rest = count;
  for (const name of ["B", "kB", "MB"]) {
    if (Math.abs(rest) < 999.5) return unit(rest, name, name === "B" || rest >= 100 ? 0 : 1);
    rest /= 1000;
  }
  return unit(rest, "GB", 1);
}

export function span(seconds) {
  for (const [name, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= 2 * length) return unit(seconds / length, name);
  }
  return unit(Math.max(seconds, 0), "s");
}

export function clock(at) {
  const moment = new Date(at * 1000);
  if (Number.isNaN(moment.getTime())) return "–";
  const today = moment.toDateString() === new Date().toDateString();
  return moment.toLocaleString("en-GB", today ? { timeStyle: "medium" } : { dateStyle: "medium", timeStyle: "medium" });
}

// Cuts keep their colours while the page is open; who answered has the same ones always.
const colours = new Map();
const ANSWERS = { server: 0, device: 2, fallback: 1, exit: 3 };

export function colour(cut) {
  if (cut in ANSWERS) return ANSWERS[cut];
  if (!colours.has(cut)) colours.set(cut, colours.size % 8);
  return colours.get(cut);
}

export function key(names) {
  const items = names.map((name) => el("span", { cls: "key" }, el("i", { cls: `k${colour(name)}` }), name));
  return el("p", { cls: "keys" }, ...items);
}

export function bar(shares) {
  const parts = Object.entries(shares).map(([name, share]) => {
    const part = el("span", { cls: `k${colour(name)}`, title: `${name}: ${percent(share)}` });
    part.style.width = `${100 * share}%`;
    return part;
  });
  return el("div", { cls: "bar" }, ...parts);
}

export function table(columns, cls = "cards") {
  const head = el("tr", {}, ...columns.map((column) => el("th", { scope: "col", text: column })));
  const body = el("tbody");
  return { body, whole: el("table", { cls }, el("thead", {}, head), body) };
}

export function row(columns, cells, options = {}) {
  const made = cells.map((cell, place) => {
    const td = el("td", { data: { label: columns[place] } });
    const parts = (Array.isArray(cell) ? cell : [cell]).filter((part) => part !== null && part !== "");
    if (parts.length) td.append(el("div", {}, ...parts));
    return td;
  });
  return el("tr", options, ...made);
}

export function small(text, cls = "") {
  return el("small", { cls, text });
}
