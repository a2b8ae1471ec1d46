// What is around the screens: which is shown, whether the node answers, the one light, and the token.

import {ask, Away, events, hasToken, keepToken, Problem} from "./ask.js";
import {el, say} from "./page.js";
import {findings, screens} from "./screens.js";

const statusEvery = 5_000, awayEvery = 2_000; // ms
const unauthorized = 401;

const main = document.getElementById("main");
const alerts = document.getElementById("alert");
const light = document.getElementById("light");
const forget = document.getElementById("forget");

let status = null; // the node's latest
let screen = null; // what is shown, with its timer
let away = false;
let locked = false; // a token is asked for

// guarded runs work, and shows what keeps it from being done.
async function guarded(work) {
  try {
    return await work();
  } catch (e) {
    if (e instanceof Problem && e.status === unauthorized) lock(hasToken() ? "That is not the node's token." : "");
    else if (e instanceof Away) gone();
    else if (e instanceof Problem) alerts.textContent = e.message;
    else if (e.name !== "AbortError") throw e;
  }
}

function lamp(state, text) {
  const before = document.getElementById("light-text").textContent;
  light.className = `light ${state}`;
  if (before !== text) document.getElementById("light-text").textContent = text;
}

function gone() {
  if (away) return;
  away = true;
  lamp("unknown", "No answer");
  alerts.textContent = `The node has not answered since ${new Date().toLocaleTimeString()}. What is shown is as it was; it is asked again every two seconds.`;
}

// heard takes the node's status in.
function heard(s) {
  status = s;
  if (away) {
    away = false;
    alerts.textContent = "";
    say("The node answers again.");
    guarded(() => screen?.load(true));
  }
  document.getElementById("who").textContent = `${status.self.name || status.self.id}${status.self.farm ? ` · ${status.self.farm}` : ""}`;
  const found = findings(status);
  lamp(found.length ? "amiss" : "well", found.length ? `${found.length} amiss` : "All well");
  screen?.status?.(status);
}

async function watch() {
  await guarded(async () => locked || heard(await ask("/api/status")));
  setTimeout(watch, away ? awayEvery : statusEvery);
}

// follow hears of operations as they go on, as long as the page is there.
async function follow() {
  const controller = new AbortController();
  let begun = false;
  await guarded(() => locked ? null : events("/api/events", controller.signal, (kind, op) => {
    if (!begun && screen?.event) guarded(() => screen.load(true)); // what has ended meanwhile was not heard of
    begun = true;
    if (kind !== "operation") return;
    if (op.state !== "running") say(`${op.kind} ${op.target}: ${op.state}`);
    guarded(async () => screen?.event?.(op));
  })).catch(() => {}); // a stream that breaks begins again
  setTimeout(follow, awayEvery);
}

// route shows the screen that the address names.
function route() {
  if (location.hash && !location.hash.startsWith("#/")) return;
  const [path, query] = location.hash.slice(2).split("?");
  const [name, of] = path.split("/").map((part) => new URLSearchParams(`p=${part.replaceAll("+", "%2B")}`).get("p")); // which takes anything
  const found = (of ? screens[name]?.one : screens[name]?.show) ? screens[name] : screens[""];
  const first = screen === null;
  if (screen) clearInterval(screen.timer);
  const kept = {keep: Object.fromEntries(new URLSearchParams(query)), changed: (q) => history.replaceState(null, "", `#/${path}?${new URLSearchParams(Object.entries(q).filter(([, v]) => v))}`)};
  const title = of && found.one ? `${found.single} ${of}` : found.title;
  screen = (of && found.one ? found.one : found.show)({of, keep: kept, status: () => status});
  const heading = el("h1", {tabindex: "-1"}, title);
  main.replaceChildren(heading, ...screen.nodes);
  document.title = `${title} · grange`;
  for (const a of document.querySelectorAll("nav[aria-label=Screens] a")) {
    if (a.getAttribute("href") === `#/${found.under ?? (screens[name] ? name : "")}`) a.setAttribute("aria-current", "page");
    else a.removeAttribute("aria-current");
  }
  if (locked) return lock("");
  if (!first) heading.focus();
  const load = () => document.hidden || away || locked || guarded(() => screen.load());
  screen.timer = setInterval(load, screen.every * 1000);
  guarded(() => screen.load(true));
}

// lock asks for the token, in the place of the screen.
function lock(why) {
  keepToken("");
  const again = locked;
  locked = true;
  forget.hidden = true;
  lamp("unknown", "Locked");
  if (again && main.querySelector("form")) return;
  const input = el("input", {id: "token", type: "password", autocomplete: "off", spellcheck: "false", required: true, "aria-describedby": "token-why"});
  main.replaceChildren(el("h1", {tabindex: "-1"}, "The node's token"), el("form", {class: "token", onsubmit: async (e) => {
    e.preventDefault();
    keepToken(input.value.trim());
    locked = false;
    await guarded(async () => {
      heard(await ask("/api/status"));
      forget.hidden = false;
      route();
      say("The token is right.");
    });
  }}, el("p", {id: "token-why"}, why && el("strong", {}, `${why} `), "It is in the file api.token in the node's data folder. This tab keeps it until it is closed."), el("label", {for: "token"}, "Token"), " ", input, " ", el("button", {type: "submit"}, "Open")));
  input.focus();
}

forget.addEventListener("click", () => lock(""));
forget.hidden = !hasToken();
document.querySelector(".skip").addEventListener("click", (e) => { // "#main" is no screen
  e.preventDefault();
  main.focus();
});
addEventListener("hashchange", route);
document.addEventListener("visibilitychange", () => document.hidden || guarded(() => locked || screen?.load()));
route();
watch();
follow();
