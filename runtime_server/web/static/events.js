// What devices told of when it happened, newest first.

import { clock, el, fill, number, percent, row, span, table } from "./dom.js";
import { Sound } from "./sounds.js";

const COLUMNS = ["Time", "Device", "What", "Score", "For", "Sound", "Head"];
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
    this.heard = new Set();
    this.known = new Set();
  }

  // The labels of the heads.
  know(heads) {
    this.known = new Set(heads.flatMap((head) => head.labels));
  }

  // What a sound may have been.
  labels() {
    return [...new Set([...this.known, ...this.heard])].sort();
  }

  // A view that says the same leaves what somebody has opened.
  replace(view) {
    const told = JSON.stringify(view.events);
    if (told === this.told) return;
    this.told = told;
    this.last = view.events.length ? view.events[0].number : 0;
    fill(this.body, ...view.events.map((event) => this.draw(event, view.now)));
    this.empty.hidden = view.events.length > 0;
  }

  add(events, now) {
    const later = events.filter((event) => event.number > this.last);
    if (!later.length) return;
    this.last = later[later.length - 1].number;
    this.told = null;
    this.body.prepend(...later.reverse().map((event) => this.draw(event, now)));
    while (this.body.childElementCount > MOST) this.body.lastElementChild.remove();
    this.empty.hidden = true;
  }

  draw(event, now) {
    const isLabel = event.kind === "on" || event.kind === "off";
    if (isLabel) [event.label, event.corrected].filter(Boolean).forEach((label) => this.heard.add(label));
    const came = performance.now() - 1000 * (now - event.at);
    const sound = isLabel ? new Sound(event, () => this.labels(), () => performance.now() - came) : null;
    return drawn(event, isLabel, sound);
  }
}

function drawn(event, isLabel, sound) {
  const cells = [
    clock(event.at),
    [el("span", { cls: "name", text: event.device })],
    isLabel ? [el("span", { cls: event.kind === "on" ? "on" : "", text: event.label }), ` ${event.kind}`] : update(event),
    isLabel ? percent(event.score) : "",
    event.kind === "off" ? span(event.time - event.since) : "",
    sound ? sound.cell : "",
    isLabel && event.head_generation !== undefined ? `head of generation\u00a0${number(event.head_generation)}` : "",
  ];
  return row(COLUMNS, cells, { data: { number: event.number } });
}

function update(event) {
  const generation = event.generation === undefined ? "" : ` (generation ${event.generation})`;
  return `${WORDS[event.kind] ?? event.kind}${generation}${event.text ? `: ${event.text}` : ""}`;
}
