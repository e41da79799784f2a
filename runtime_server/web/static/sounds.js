// The sound behind an event: its picture, a player, and what it was.

import { el, fill, unit } from "./dom.js";

export const BACKGROUND = "background";
// More may still come of a sound that has just begun.
const SETTLE_MS = 3000;
// After which a picture that could not be had is asked for again.
const AGAIN_MS = 10000;
const COLOURS = [[8, 8, 32], [70, 20, 110], [170, 40, 110], [240, 110, 60], [255, 240, 150]];

async function ask(path, options = {}) {
  const answer = await fetch(`/api/v1/${path}`, options);
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error);
  return body;
}

function colour(level) {
  const place = (level / 255) * (COLOURS.length - 1);
  const first = Math.min(Math.floor(place), COLOURS.length - 2);
  return COLOURS[first].map((from, part) => from + (place - first) * (COLOURS[first + 1][part] - from));
}

export function draw(picture) {
  const { columns, bands } = picture;
  const canvas = el("canvas", { cls: "spectrogram", width: columns, height: bands, role: "img",
    "aria-label": `Spectrogram of ${picture.seconds} s, up to ${picture.highest_hz} Hz` });
  const levels = Uint8Array.from(atob(picture.levels), (letter) => letter.charCodeAt(0));
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, bands);
  levels.forEach((level, place) => {
    const column = Math.floor(place / bands);
    const row = bands - 1 - (place % bands);
    image.data.set([...colour(level), 255], 4 * (row * columns + column));
  });
  context.putImageData(image, 0, 0);
  return canvas;
}

// A picture in a row once that is looked at, and below the row a player and a form once it is opened.
export class Sound {
  constructor(event, labels, age) {
    this.event = event;
    this.labels = labels;
    this.age = age;
    this.button = el("button", { cls: "sound", type: "button", "aria-expanded": "false", text: "Listen, correct",
      title: "Listen to it, or say what it was" });
    this.button.addEventListener("click", () => this.toggle());
    this.said = el("small", { cls: "said" });
    this.tell(event.corrected);
    this.cell = [this.button, this.said];
    this.more = null;
    looking.observe(this.button);
    shown.set(this.button, this);
  }

  tell(label) {
    this.label = label ?? "";
    this.said.textContent = this.label && `corrected: ${this.label}`;
  }

  // Asked once; later only where there was nothing yet.
  picture() {
    this.asked ??= ask(`events/${this.event.number}/picture`);
    return this.asked;
  }

  async look() {
    try {
      const picture = await this.picture();
      if (picture.levels) fill(this.button, draw(picture));
      else {
        this.button.textContent = "Correct";
        this.button.title = `Say what it was. It cannot be heard: ${picture.why}`;
      }
    } catch {
      this.asked = undefined;
      setTimeout(() => looking.observe(this.button), AGAIN_MS);
    }
  }

  async toggle() {
    const row = this.button.closest("tr");
    if (this.more) {
      this.more.remove();
      this.more = null;
      this.button.setAttribute("aria-expanded", "false");
      return;
    }
    this.button.setAttribute("aria-expanded", "true");
    this.heard = el("div", { cls: "heard" }, el("p", { cls: "note", text: "…" }));
    const cell = el("td", { colspan: row.childElementCount }, this.heard, this.form());
    this.more = el("tr", { cls: "more" }, cell);
    row.after(this.more);
    this.asked = undefined; // it may have gone on since
    try {
      const picture = await this.picture();
      if (picture.levels) this.play(picture);
      else fill(this.heard, el("p", { cls: "note", text: `It cannot be heard: ${picture.why}.` }));
    } catch (problem) {
      this.asked = undefined;
      fill(this.heard, el("p", { cls: "bad", text: problem.message }));
    }
  }

  play(picture) {
    const player = el("audio", { controls: "", preload: "none", src: `/api/v1/events/${this.event.number}/audio.wav` });
    fill(this.heard, draw(picture), el("small", { text: `${unit(picture.seconds, "s", 1)}, up to ${unit(picture.highest_hz, "Hz")}` }),
      player);
  }

  form() {
    const list = `labels-${this.event.number}`;
    const choices = [...this.labels()].filter((label) => label !== BACKGROUND);
    const input = el("input", { name: "label", list, maxlength: 80, required: "", autocomplete: "off",
      placeholder: "a label, known or new", "aria-label": "What it was" });
    const problem = el("p", { cls: "bad", role: "status" });
    const send = (label) => this.correct(label, problem);
    const form = el("form", { cls: "correct" },
      el("label", { text: "What was it?" }), input,
      el("datalist", { id: list }, ...choices.map((label) => el("option", { value: label }))),
      el("button", { type: "submit", text: "Correct" }),
      button(`It was ${this.event.label}`, () => send(this.event.label)),
      button("None of the labels", () => send(BACKGROUND)),
      this.label ? button("Take back", () => send(null)) : "", problem);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      send(input.value);
    });
    return form;
  }

  async correct(label, problem) {
    try {
      const kept = await ask("corrections", { method: "POST", headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ number: this.event.number, label }) });
      for (const other of document.querySelectorAll("button.sound")) {
        const sound = shown.get(other);
        if (isSame(sound.event, this.event)) sound.tell(kept.label);
      }
      this.toggle();
    } catch (refused) {
      problem.textContent = refused.message;
    }
  }
}

// Whether two events are about one sound.
function isSame(one, other) {
  return ["device", "label", "since"].every((name) => one[name] === other[name]);
}

function button(text, act) {
  const made = el("button", { type: "button", cls: "plain", text });
  made.addEventListener("click", act);
  return made;
}

const shown = new WeakMap();
const looking = new IntersectionObserver((seen) => {
  for (const { target, isIntersecting } of seen) {
    if (!isIntersecting) continue;
    looking.unobserve(target);
    const sound = shown.get(target);
    setTimeout(() => sound.look(), Math.max(0, SETTLE_MS - sound.age()));
  }
});
