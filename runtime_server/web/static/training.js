// What is trained, what came of it, and the heads.

import { axes, Chart } from "./charts.js";
import { clock, el, fill, number, percent, row, small, table, unit } from "./dom.js";

export class Training {
  constructor() {
    this.terms = [];
    this.facts = el("dl", { cls: "facts" });
    this.loss = new Chart("Loss over training steps", 220, (ink) => ({
      scales: { x: { time: false } },
      axes: axes("loss", null, true),
      series: [{}, ...this.terms.map((term, place) => ({ label: term, stroke: ink(`--c${place % 8}`), width: term === "total" ? 2 : 1, points: { show: false } }))],
    }));
    this.curve = el("div", { cls: "card" }, this.loss.place);
    this.attempts = el("ul", { cls: "words card" });
    this.releases = el("ul", { cls: "words card" });
    this.hold = el("p", { cls: "warn" });
    this.whole = el("div", {}, el("div", { cls: "card" }, this.facts), this.curve,
      el("h2", { text: "Attempts at a release" }), this.attempts,
      el("h2", { text: "Releases" }), this.hold, this.releases);
  }

  replace(training, releases) {
    const energy = training.energy;
    const last = training.losses[training.losses.length - 1];
    fill(this.facts, ...fact("training steps", number(training.steps)),
      ...(last ? fact("loss", number(last.total, 4)) : []),
      ...(last ? fact("time of a step", unit(1000 * last.seconds, "ms")) : []),
      ...(energy && energy.steps ? fact("energy of a step", unit(energy.joules_a_step, "J", 2)) : []),
      ...(energy && energy.above_idle_a_step !== null ? fact("above idle", unit(energy.above_idle_a_step, "J", 2)) : []));
    this.curve.hidden = training.losses.length === 0;
    this.terms = last ? Object.keys(last).filter((name) => name !== "step" && name !== "seconds") : [];
    this.loss.show([training.losses.map((one) => one.step), ...this.terms.map((term) => training.losses.map((one) => one[term] ?? null))]);
    sentences(this.attempts, training.attempts, training.steps ? "No attempt since the server's start." : "This server does not train.",
      (attempt) => [el("span", { cls: attempt.released ? "good" : "", text: attempt.words })]);
    sentences(this.releases, releases.releases, "Nothing has been released except the bundle that the server was given.",
      (release) => [release.words, small(`released ${clock(release.released_at)}`)]);
    this.hold.textContent = [releases.held && `Automatic releases are on hold: ${releases.held}`, releases.paced].filter(Boolean).join(". ");
  }
}

export class Heads {
  constructor() {
    this.columns = ["For", "Labels", "Fitted to generation", "Windows right", "Recordings right", "Average precision", "Held out"];
    const { body, whole } = table(this.columns);
    this.body = body;
    this.empty = el("p", { cls: "empty", text: "Devices have no head yet. ssc server label makes one from your recordings." });
    this.generations = el("ul", { cls: "words card" });
    this.whole = el("div", {}, this.empty, whole, el("h2", { text: "Over generations" }), this.generations);
  }

  replace(view) {
    this.empty.hidden = view.heads.length > 0;
    fill(this.body, ...view.heads.map((head) => {
      const [first, last] = head.generations;
      const found = head.validation;
      const labels = head.labels.slice(0, 12).join(", ") + (head.label_count > 12 ? `, and ${head.label_count - 12} more` : "");
      return row(this.columns, [
        [head.for, small(head.encoder)], [`${number(head.label_count)}`, small(labels)],
        first === last ? number(last) : `${first} to ${last}`,
        found ? [percent(found.accuracy), small(`of ${number(found.windows)}`)] : "not known",
        found ? [percent(found.group_accuracy), small(`of ${number(found.groups)}`)] : "",
        found ? number(found.average_precision, 3) : "", found ? found.split : "",
      ]);
    }));
    sentences(this.generations, view.generations, "No release has been judged by a head since the server's start.",
      (score) => [el("span", { cls: score.released ? "good" : "", text: score.words })]);
  }
}

function fact(name, value) {
  return [el("div", {}, el("dt", { text: name }), el("dd", { text: value }))];
}

function sentences(list, items, none, draw) {
  fill(list, ...(items.length ? items.map((item) => el("li", {}, ...draw(item))) : [el("li", { cls: "empty", text: none })]));
}
