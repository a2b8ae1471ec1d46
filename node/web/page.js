// What pages are made of. All text goes in as text: names are of anybody's making, and none of it is ever markup.

// el makes an element. What begins with "on" is listened for; undefined, null and false are left out.
export function el(tag, attributes = {}, ...children) {
  const e = document.createElement(tag);
  set(e, attributes);
  e.append(...nodes(children));
  return e;
}

// nodes are what children become: text where they are no elements already.
export function nodes(...children) {
  return children.flat(Infinity).filter((c) => c !== undefined && c !== null && c !== false && c !== "").map((c) => c instanceof Node ? c : String(c));
}

export function set(e, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) e.addEventListener(name.slice(2), value);
    else e.setAttribute(name, value === true ? "" : value);
  }
}

const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function bytes(n) {
  if (n === undefined || n === null) return "";
  let i = 0;
  for (; Math.abs(n) >= 1024 && i < units.length - 1; i++) n /= 1024;
  return `${i === 0 || n >= 100 ? Math.round(n) : n.toFixed(1)} ${units[i]}`;
}

export function span(seconds) {
  if (seconds < 1) return "now";
  for (const [size, name] of [[86400, "d"], [3600, "h"], [60, "min"]]) if (seconds >= 2 * size) return `${Math.floor(seconds / size)} ${name}`;
  return `${Math.round(seconds)} s`;
}

export function moment(text) {
  if (!text || text.startsWith("0001-")) return "";
  const at = new Date(text);
  return el("time", {datetime: text, title: at.toLocaleString()}, `${span(Math.max(0, (Date.now() - at) / 1000))} ago`.replace("now ago", "now"));
}

// sources says how many bytes came from where, those that are none left out.
export function sources(of) {
  return Object.entries(of ?? {}).filter(([, n]) => n > 0).map(([from, n]) => `${from} ${bytes(n)}`).join(", ");
}

// commands makes code of what stands in backticks.
export function commands(text) {
  return text.split("`").map((part, i) => i % 2 ? el("code", {}, part) : part);
}

// facts shows a document as terms and what they are, member by member.
export function facts(doc, leave = []) {
  const list = el("dl", {class: "facts"});
  const add = (name, value) => {
    if (value === "" || value === null || value === undefined || leave.includes(name)) return;
    if (Array.isArray(value)) {
      if (value.length) entry(name, value.every((v) => typeof v !== "object") ? value.join(", ") : value.map((v) => JSON.stringify(v)).join(", "));
    } else if (typeof value === "object") {
      if (Object.values(value).every((v) => typeof v === "number") && "origin" in value) entry(`read, from`, sources(value) || "nowhere yet");
      else Object.entries(value).forEach(([k, v]) => add(`${name}: ${k}`, v));
    } else entry(name, shown(name, value));
  };
  const entry = (name, value) => value && list.append(el("dt", {}, name.replace(/_(at|bytes|seconds)$/, "").replaceAll("_", " ")), el("dd", {}, value));
  Object.entries(doc).forEach(([k, v]) => add(k, v));
  return list;
}

function shown(name, value) {
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "string" && /^\d{4}-\d\d-\d\dT/.test(value)) return moment(value);
  if (/(^|: |_)(bytes|size|stored|memory|disk)$/.test(name) && typeof value === "number") return bytes(value);
  if (name.endsWith("seconds")) return span(value);
  return String(value);
}

// say has screen readers say something.
export function say(text) {
  document.getElementById("said").textContent = text;
}
