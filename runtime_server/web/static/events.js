// What devices told of when it happened, newest first.

import { clock, el, fill, number, percent, row, span, table } from "./dom.js";

const COLUMNS = ["Time", "Device", "What", "Score", "For", "Head"];
const MOST = 300;
const WORDS = {
  fetched: "has fetched a release", generation: "runs a new generation", proven: "has proven its generation",
  retired: "runs a generation that is no longer completed", update_failed: "could not take an update",
  update_refused: "refused an update", rolled_back: "went back to the generation before",
  table_refused: "refused a table", head_refused: "refused a head",
};

export class Events {
  constructor() {
    const { body, whole } = table(COLUMNS, "cards brief");
    this.body = body;
    this.empty = el("p", { cls: "empty", text: "Nothing yet. Labels go on and off once devices have a head (ssc server label)." });
    this.whole = el("div", {}, this.empty, whole);
    this.last = 0;
  }

  replace(view) {
    this.last = view.events.length ? view.events[0].number : 0;
    fill(this.body, ...view.events.map(draw));
    this.empty.hidden = view.events.length > 0;
  }

  add(events) {
    const later = events.filter((event) => event.number > this.last);
    if (!later.length) return;
    this.last = later[later.length - 1].number;
    this.body.prepend(...later.reverse().map(draw));
    while (this.body.childElementCount > MOST) this.body.lastElementChild.remove();
    this.empty.hidden = true;
  }
}

function draw(event) {
  const isLabel = event.kind === "on" || event.kind === "off";
  const cells = [
    clock(event.at),
    [el("span", { cls: "name", text: event.device })],
    isLabel ? [el("span", { cls: event.kind === "on" ? "on" : "", text: event.label }), ` ${event.kind}`] : update(event),
    isLabel ? percent(event.score) : "",
    event.kind === "off" ? span(event.time - event.since) : "",
    isLabel && event.head_generation !== undefined ? `head of generation\u00a0${number(event.head_generation)}` : "",
  ];
  return row(COLUMNS, cells, { data: { number: event.number } });
}

function update(event) {
  const generation = event.generation === undefined ? "" : ` (generation ${event.generation})`;
  return `${WORDS[event.kind] ?? event.kind}${generation}${event.text ? `: ${event.text}` : ""}`;
}
