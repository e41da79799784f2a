// The page: which view is shown, what it is filled with, and what changes while it is open.

import { Devices } from "./devices.js";
import { el, fill, number, span } from "./dom.js";
import { Events } from "./events.js";
import { Fleet } from "./fleet.js";
import { Heads, Training } from "./training.js";

const EVERY_MS = 5000;
const AGAIN_MS = 5000;
// A view may be a second old, and lack what came just before this page began to listen.
const SETTLE_MS = 1500;
// Looks at the server between two times that all devices are asked for anew.
const SELDOM = 12;
const main = document.getElementById("main");
const views = { devices: new Devices(), events: new Events(), fleet: new Fleet(), training: new Training(), heads: new Heads() };
let shown = null;
let stream = null;
let looks = 0;

class Refused extends Error {}

async function ask(view) {
  const answer = await fetch(`/api/v1/${view}`);
  if (answer.status === 401) throw new Refused();
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error);
  return body;
}

const fillers = {
  devices: async () => views.devices.replace(await ask("devices")),
  events: async () => {
    const [events, heads] = await Promise.all([ask("events"), ask("heads")]);
    views.events.know(heads.heads);
    views.events.replace(events);
  },
  fleet: async () => views.fleet.replace(await ask("history")),
  training: async () => {
    const [training, releases] = await Promise.all([ask("training"), ask("releases")]);
    views.training.replace(training, releases);
  },
  heads: async () => views.heads.replace(await ask("heads")),
};

async function show() {
  const name = location.hash.slice(1);
  shown = name in views ? name : "devices";
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${shown}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  fill(main, views[shown].whole);
  return refresh();
}

// Whether this page may look at the server.
async function refresh() {
  try {
    const filled = shown;
    await Promise.all([fillers[filled]().then(() => performance.mark(`shown-${filled}`)), summary()]);
  } catch (problem) {
    if (problem instanceof Refused) {
      login();
      return false;
    }
    away(problem.message);
  }
  return true;
}

async function summary() {
  const server = await ask("server");
  document.getElementById("summary").textContent =
    `${server.encoder}, generation ${server.generation} · ${number(server.alive)} of ${number(server.devices)} devices alive · ` +
    `${number(server.windows)} windows · up ${span(server.uptime_s)}`;
  const list = document.getElementById("troubles");
  list.hidden = server.troubles.length === 0;
  fill(list, ...server.troubles.map((text) => el("li", { text })));
}

function away(why) {
  const link = document.getElementById("link");
  link.textContent = `not connected: ${why}`;
  link.className = "away";
}

function listen() {
  stream?.close();
  stream = new EventSource("/api/v1/stream");
  stream.addEventListener("hello", () => {
    const link = document.getElementById("link");
    link.textContent = "live";
    link.className = "";
    refresh();
    setTimeout(refresh, SETTLE_MS);
  });
  stream.addEventListener("changes", (message) => {
    const { now, devices, events } = JSON.parse(message.data);
    views.devices.change(devices, now);
    views.events.add(events, now);
  });
  stream.addEventListener("error", () => {
    away("the server does not answer, trying again");
    if (stream.readyState === EventSource.CLOSED) setTimeout(listen, AGAIN_MS);
  });
}

function login() {
  main.hidden = true;
  const form = document.getElementById("login");
  form.hidden = false;
  document.getElementById("token").focus();
  form.onsubmit = async (event) => {
    event.preventDefault();
    const token = document.getElementById("token").value;
    const answer = await fetch("/api/v1/login", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ token }),
    });
    if (!answer.ok) {
      document.getElementById("refused").textContent = "That is not the token.";
      return;
    }
    form.hidden = true;
    main.hidden = false;
    start();
  };
}

async function start() {
  if (await show()) listen();
}

window.addEventListener("hashchange", show);
setInterval(() => views.devices.tick(), 1000);
setInterval(() => {
  if (document.hidden || main.hidden) return;
  looks += 1;
  if ((shown === "devices" && looks % SELDOM) || shown === "events") summary().catch((problem) => away(problem.message));
  else refresh();
}, EVERY_MS);
start();
