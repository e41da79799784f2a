// Which cuts the fleet's windows had, at which bandwidth, over the last day.

import { axes, Chart } from "./charts.js";
import { colour, el, fill, key, number, percent, row, table } from "./dom.js";

export class Fleet {
  constructor() {
    this.cuts = [];
    this.bandwidth = new Chart("Bandwidth of the devices over time", 200, (ink) => ({
      scales: { y: { distr: 3, log: 10 } },
      axes: axes("Mbit/s", (plot, ticks) => ticks.map((tick) => (tick === null ? null : number(tick, 3)))),
      series: [{}, { label: "slowest tenth", stroke: ink("--c7"), width: 1, points: { show: false } },
        { label: "median", stroke: ink("--c0"), width: 2, points: { show: false } },
        { label: "fastest tenth", stroke: ink("--c7"), width: 1, points: { show: false } }],
      bands: [{ series: [3, 1], fill: `${ink("--c0")}22` }],
    }));
    this.shares = new Chart("Shares of the cuts over time", 220, (ink) => ({
      scales: { y: { range: [0, 1] } },
      axes: axes("share of windows", (plot, ticks) => ticks.map((tick) => percent(tick))),
      series: [{}, ...this.cuts.map((cut) => ({ label: cut, stroke: ink(`--c${colour(cut)}`), fill: ink(`--c${colour(cut)}`),
        width: 1, points: { show: false } }))],
    }));
    this.keys = el("div");
    this.heat = el("div", { cls: "scroll" });
    this.note = el("p", { cls: "note", text: "The first minutes of windows come with the devices' second reports, a minute after the first." });
    this.whole = el("div", {},
      el("h2", { text: "Bandwidth" }), el("p", { cls: "note small", text: "Median of the devices, and from the slowest tenth to the fastest, as each estimates its uplink." }),
      el("div", { cls: "card" }, this.bandwidth.place),
      el("h2", { text: "Cuts" }), this.note, el("div", { cls: "card" }, this.keys, this.shares.place),
      el("h2", { text: "Cuts by bandwidth" }), this.heat);
  }

  replace(view) {
    const minutes = view.minutes;
    const totals = new Map();
    for (const minute of minutes) {
      for (const [cut, count] of Object.entries(minute.windows)) totals.set(cut, (totals.get(cut) ?? 0) + count);
    }
    this.cuts = [...totals.keys()].sort((a, b) => totals.get(b) - totals.get(a)).slice(0, 8).reverse();
    const at = minutes.map((minute) => minute.at);
    const rate = (place) => minutes.map((minute) => (minute.mbps ? Math.max(minute.mbps[place], 0.001) : null));
    this.bandwidth.show([at, rate(0), rate(1), rate(2)]);
    this.shares.show([at, ...this.stacked(minutes)]);
    this.note.hidden = totals.size > 0;
    fill(this.keys, key([...this.cuts].reverse()));
    this.table(view, totals);
  }

  // Each line is the sum of its cut's share and those of all behind it, so that the first is drawn highest.
  stacked(minutes) {
    return this.cuts.map((_, place) => minutes.map((minute) => {
      const all = Object.values(minute.windows).reduce((sum, count) => sum + count, 0);
      if (!all) return null;
      return this.cuts.slice(place).reduce((sum, cut) => sum + (minute.windows[cut] ?? 0), 0) / all;
    }));
  }

  table(view, totals) {
    const bands = view.bands_mbps;
    const counts = new Map();
    for (const minute of view.minutes) {
      for (const [cut, found] of Object.entries(minute.bands)) {
        for (const [band, count] of Object.entries(found)) {
          const place = `${cut}\n${band}`;
          counts.set(place, (counts.get(place) ?? 0) + count);
        }
      }
    }
    const cuts = [...this.cuts].reverse();
    const columns = ["Mbit/s", "windows", ...cuts];
    const { body, whole } = table(columns, "heat");
    for (let band = 0; band <= bands.length; band += 1) {
      const found = cuts.map((cut) => counts.get(`${cut}\n${band}`) ?? 0);
      const all = found.reduce((sum, count) => sum + count, 0);
      if (!all) continue;
      const name = band === 0 ? `up to ${bands[0]}` : band === bands.length ? `above ${bands[band - 1]}` : `${bands[band - 1]} to ${bands[band]}`;
      body.append(row(columns, [name, number(all), ...found.map((count) => shaded(count / all))]));
    }
    fill(this.heat, totals.size ? whole : el("p", { cls: "empty", text: "No windows yet." }));
  }
}

function shaded(share) {
  const made = el("span", { text: share ? percent(share) : "–" });
  made.style.fontWeight = share >= 0.5 ? "600" : "400";
  made.style.opacity = share ? String(0.55 + 0.45 * share) : "0.4";
  return made;
}
