// Charts over time, drawn by uPlot (static/uplot).

import { el } from "./dom.js";

const dark = matchMedia("(prefers-color-scheme: dark)");

function ink(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// A chart as wide as its place, drawn anew when the place or the scheme of colours changes.
export class Chart {
  constructor(label, height, make) {
    this.make = make;
    this.height = height;
    this.place = el("div", { cls: "plot", role: "img", "aria-label": label });
    this.data = null;
    this.plot = null;
    new ResizeObserver(() => this.fit()).observe(this.place);
    dark.addEventListener("change", () => this.draw());
  }

  show(data) {
    this.data = data;
    this.draw();
  }

  draw() {
    this.plot?.destroy();
    this.plot = null;
    if (!this.data || !this.place.clientWidth) return;
    const options = this.make(ink);
    this.plot = new uPlot({ ...options, width: this.place.clientWidth, height: this.height, legend: { show: false } },
      this.data, this.place);
  }

  fit() {
    if (!this.plot) this.draw();
    else if (this.plot.width !== this.place.clientWidth) {
      this.plot.setSize({ width: this.place.clientWidth, height: this.height });
    }
  }
}

function hours(plot, ticks) {
  return ticks.map((tick) => new Date(tick * 1000).toLocaleTimeString("en-GB", { timeStyle: "short" }));
}

// The axis below counts hours and minutes, or with `plain` whatever the numbers are.
export function axes(left, values = null, plain = false) {
  const common = { stroke: ink("--dim"), grid: { stroke: ink("--line"), width: 1 }, ticks: { stroke: ink("--line"), width: 1 },
    font: "12px system-ui, sans-serif" };
  const side = { ...common, label: left, labelSize: 18, labelFont: "12px system-ui, sans-serif", size: 58 };
  if (values) side.values = values;
  const below = { ...common, space: 70, size: 32 };
  if (!plain) below.values = hours;
  return [below, side];
}
