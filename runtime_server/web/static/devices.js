// One row for each device.

import { bar, bytes, el, fill, number, percent, row, small, span, table, unit } from "./dom.js";

const COLUMNS = ["Device", "Hears", "Runs", "Cuts", "Answers", "Latency", "Traffic", "Machine", "Windows", "Troubles"];

export class Devices {
  constructor() {
    this.known = new Map();
    this.rows = new Map();
    this.now = 0;
    this.aliveS = 150;
    const { body, whole } = table(COLUMNS);
    this.body = body;
    this.empty = el("p", { cls: "empty", text: "No device has reported yet. ssc edge run starts one." });
    this.whole = el("div", {}, this.empty, whole);
  }

  replace(view) {
    this.aliveS = view.alive_s;
    const before = this.known;
    const rows = this.rows;
    this.known = new Map(view.devices.map((device) => [device.name, device]));
    this.rows = new Map();
    this.moved(view.now);
    fill(this.body, ...view.devices.map((device) => this.same(before.get(device.name), rows.get(device.name), device)));
    this.empty.hidden = this.known.size > 0;
  }

  change(devices, now) {
    this.moved(now);
    for (const device of devices) {
      const before = this.known.get(device.name);
      const told = { ...device, arrived: before?.arrived };
      this.known.set(device.name, told);
      const old = this.rows.get(device.name);
      if (old) old.replaceWith(this.draw(told));
      else this.insert(told);
    }
    this.empty.hidden = this.known.size > 0;
  }

  // The server's clock, from which ages are reckoned.
  moved(now) {
    this.now = now;
    this.at = performance.now();
  }

  age(device) {
    return this.now + (performance.now() - this.at) / 1000 - device.seen;
  }

  tick() {
    for (const [name, device] of this.known) {
      const drawn = this.rows.get(name);
      if (!drawn) continue;
      const gone = this.age(device) >= this.aliveS;
      drawn.classList.toggle("gone", gone);
      drawn.querySelector(".seen").textContent = this.seen(device, gone);
    }
  }

  alive() {
    return [...this.known.values()].filter((device) => this.age(device) < this.aliveS).length;
  }

  seen(device, gone) {
    return gone ? `gone: last heard of ${span(this.age(device))} ago` : `alive, ${span(this.age(device))} ago`;
  }

  // A row that says the same stays.
  same(before, drawn, device) {
    if (!drawn || before.revision !== device.revision || before.arrived !== device.arrived) return this.draw(device);
    this.rows.set(device.name, drawn);
    return drawn;
  }

  insert(device) {
    const names = [...this.rows.keys()].filter((name) => name > device.name).sort();
    const next = names.length ? this.rows.get(names[0]) : null;
    this.body.insertBefore(this.draw(device), next);
  }

  draw(device) {
    const gone = this.age(device) >= this.aliveS;
    const cells = [
      [el("span", { cls: "dot" }), device.name, el("small", { cls: "seen", text: this.seen(device, gone) })],
      hears(device),
      runs(device),
      shares(device.cuts),
      shares(device.answers),
      latency(device),
      [...traffic("an hour", device.hour), ...traffic("a month", device.month)],
      machine(device),
      windows(device),
      troubles(device),
    ];
    const drawn = row(COLUMNS, cells, { cls: gone ? "gone" : "", data: { device: device.name } });
    drawn.firstChild.classList.add("name");
    this.rows.set(device.name, drawn);
    return drawn;
  }
}

function hears(device) {
  const on = Object.keys(device.on).map((label) => {
    const score = device.scores[label];
    return el("span", { cls: "on", text: score === undefined ? label : `${label} ${percent(score)}` });
  });
  if (on.length) return on;
  const heard = device.heard && Object.entries(device.heard.labels)[0];
  return heard ? [small(`last: ${heard[0]} ${percent(heard[1])}`)] : "";
}

function runs(device) {
  const parts = [`generation\u00a0${number(device.generation)}`];
  if (device.on_trial) parts.push(small("on trial", "warn"));
  if (device.head_generation !== null) parts.push(small(`head of generation\u00a0${device.head_generation}`));
  const program = [device.target, device.software].filter(Boolean).join(", ");
  if (program) parts.push(small(program));
  return parts;
}

function shares(of) {
  const names = Object.entries(of).filter(([, share]) => share > 0).sort((a, b) => b[1] - a[1]);
  if (!names.length) return "";
  return [bar(of), small(names.slice(0, 3).map(([name, share]) => `${name} ${percent(share)}`).join(", "))];
}

function latency(device) {
  const { p50, p95 } = device.latency_ms;
  const link = device.mbps === null ? null : small(`link ${unit(device.mbps, "Mbit/s", 2)}, ${unit(device.rtt_ms, "ms")}`);
  return p50 === undefined ? [link] : [unit(p50, "ms", 1), small(`95\u00a0% within ${unit(p95, "ms", 1)}`), link];
}

function traffic(name, of) {
  if (!of.seconds) return [];
  const updates = of.updates ? `, updates ${bytes(of.updates)}` : "";
  return [el("span", { cls: "line", text: `↑\u00a0${bytes(of.up)} ↓\u00a0${bytes(of.down)}` }), small(`${name}${updates}`)];
}

function machine(device) {
  const parts = [];
  if (device.temperature_c !== null) parts.push(unit(device.temperature_c, "°C", 1));
  if (device.throttled) parts.push(el("span", { cls: "bad line", text: "throttled" }));
  if (device.battery !== null) parts.push(small(`battery ${percent(device.battery)}`));
  if (device.energy_mj) {
    const { blocks, radio } = device.energy_mj;
    const link = radio === undefined ? "" : `, ${unit(radio, "mJ", 1)} radio`;
    parts.push(small(`predicted: ${unit(blocks, "mJ", 1)} a window${link}`));
  }
  if (device.memory_mb !== null) parts.push(small(`memory ${unit(device.memory_mb, "MB")}`));
  return parts;
}

function windows(device) {
  const { captured, spooled, dropped, lost } = device.windows;
  if (captured === undefined) return "";
  const arrived = device.arrived === undefined ? null : small(`${number(device.arrived)} counted here`);
  const parts = [`${number(captured)} heard`, arrived];
  if (spooled) parts.push(small(`${number(spooled)} in the spool`, "warn"));
  if (dropped) parts.push(small(`${number(dropped)} dropped`, "warn"));
  if (lost) parts.push(small(`${number(lost)} lost`, "bad"));
  return parts;
}

function troubles(device) {
  const found = device.troubles.map((text) => small(text, "warn"));
  const errors = Object.values(device.errors).reduce((sum, count) => sum + count, 0);
  if (errors) found.push(small(`${number(errors)} errors`));
  return found;
}
