// The screens: what each asks the node for, and how it shows that. One has nodes to show, load to ask anew, every, in
// seconds, and maybe event, for what becomes of an operation.

import {ask, Problem} from "./ask.js";
import {chart} from "./chart.js";
import {List} from "./list.js";
import {bytes, commands, el, facts, moment, nodes, say, sources, span} from "./page.js";

const sourceNames = ["cache", "farm", "swarm", "origin"];

// findings are what is amiss with a node, by its status: as `grange doctor` has them.
export function findings(s) {
  const out = [];
  const add = (about, text, mend) => out.push({about, text, mend});
  if (!s.ready) add("node", `it waits for ${(s.waiting ?? []).join(", ")}`, "grange status --wait 30s");
  if (s.self.revoked) add("membership", "this node is no member any more: it needs an empty folder and a new token, made on an admin", "grange token create --role node");
  if (!["ok", "read-only"].includes(s.origin.state) && !s.seed) add("origin", `it is ${s.origin.state}${s.origin.detail ? `: ${s.origin.detail}` : ""}`, "grange doctor");
  for (const name of s.failing ?? []) add(`volume:${name}`, "it can't be served, or can't be written to, or too few members hold it", `grange volume show ${name}`);
  if (s.cache.full) add("cache", "the disk has no room: what comes is passed on without being kept", "grange doctor");
  for (const w of s.warnings) add(w.about, w.text, w.text.includes("`") ? "" : w.about.startsWith("volume:") ? `grange volume show ${w.about.slice(7)}` : "grange doctor");
  return out;
}

// drawn shows what draw makes of a document, and keeps what is there while that is the same.
function drawn(path, draw, place = el("div")) {
  let before = "";
  return {node: place, load: async () => {
    const doc = await ask(path);
    const now = JSON.stringify(doc);
    if (now !== before) place.replaceChildren(...nodes(draw(doc)));
    before = now;
  }};
}

const loads = (...parts) => (anew) => Promise.all(parts.map((p) => p.load(anew)));

function overview({status}) {
  const light = el("section", {"aria-labelledby": "light-head"});
  const numbers = el("section", {"aria-labelledby": "numbers-head"});
  const history = drawn("/api/history", (h) => chart("Bytes read", sourceNames, h, (s) => s.bytes));
  const running = new List({path: "/api/operations", title: "Latest operations", match: false, key: (o) => o.id, none: "There were none since the node's start.", columns: operationColumns});
  const shown = (s) => {
    const found = findings(s);
    light.replaceChildren(el("h2", {id: "light-head"}, found.length ? `${found.length} ${found.length > 1 ? "things are" : "thing is"} amiss` : "All well"),
      found.length ? el("ul", {class: "findings"}, found.map((f) => el("li", {}, el("strong", {}, f.about), ": ", commands(f.text), f.mend && [" ", el("code", {}, f.mend)])))
        : el("p", {}, "The node is ready, the origin answers, the members that it knows are in reach, and its volumes are served."));
    const ways = ["LAN", "direct", "relayed"].map((w) => [w, s.farm.filter((p) => p.way === w).length]).filter(([, n]) => n).map(([w, n]) => `${n} ${w}`).join(", ");
    numbers.replaceChildren(el("h2", {id: "numbers-head"}, "This node"), el("dl", {class: "facts"}, [
      ["node", `${s.self.name ?? ""} ${s.self.id}`], ["farm, role", `${s.self.farm || "none"}, ${s.self.role}`], ["neighbours", `${s.farm.length}${ways ? `: ${ways}` : ""}`],
      ["origin", `${s.origin.state} ${s.origin.url ?? ""}`], ["volumes", s.volumes], ["cache", `${bytes(s.cache.used_bytes)} of ${bytes(s.cache.quota_bytes)}, ${s.cache.chunks.toLocaleString()} chunks`],
      ["read since its start", sources(s.bytes) || "nothing yet"], ["started", moment(s.started)], ["version", s.version],
    ].map(([k, v]) => [el("dt", {}, k), el("dd", {}, v)])));
  };
  if (status()) shown(status());
  return {nodes: [light, history.node, numbers, running.node], load: loads(history, running), every: 10, status: shown, event: (op) => running.update(op) || running.load(true)};
}

const running = (o) => o.state === "running";

async function tell(method, path, done) {
  try {
    await ask(path, {method});
    say(done);
  } catch (e) {
    if (!(e instanceof Problem)) throw e;
    say(e.message);
    document.getElementById("alert").textContent = e.message;
  }
}

function buttons(o) {
  if (!running(o)) return "";
  const of = `${o.kind} of ${o.target}`;
  const path = `/api/operations/${o.id}`;
  return [
    el("button", {type: "button", "aria-label": `Cancel the ${of}`, onclick: () => tell("DELETE", path, `The ${of} is told to end.`)}, "Cancel"), " ",
    el("button", {type: "button", "aria-label": `${o.paused ? "Resume" : "Pause"} the ${of}`, onclick: () => tell("POST", `${path}/${o.paused ? "resume" : "pause"}`, `The ${of} ${o.paused ? "goes on" : "waits"}.`)}, o.paused ? "Resume" : "Pause"),
  ];
}

function progress(o) {
  const amount = o.unit ? (n) => `${n.toLocaleString()} ${o.unit}` : bytes;
  const nodes = Object.entries(o.nodes ?? {}).map(([name, n]) => `${name}: ${n.state} ${bytes(n.done)}${n.error ? `, ${n.error}` : ""}`).join("; ");
  return [
    running(o) && el("progress", {max: o.total || undefined, value: o.total ? Math.min(o.done, o.total) : undefined, "aria-label": `${o.kind} of ${o.target}`}), " ",
    o.total ? `${amount(o.done)} of ${amount(o.total)}` : amount(o.done), nodes && el("div", {}, nodes),
  ];
}

const operationColumns = [
  {name: "Operation", show: (o) => `${o.kind} ${o.target}`, sort: "kind", wide: true},
  {name: "State", show: (o) => [o.paused ? "paused" : o.state, (o.error || o.note) && el("div", {class: "detail"}, o.error || o.note)], sort: "state"},
  {name: "Done", show: progress, sort: "done"},
  {name: "Left", show: (o) => o.eta_seconds ? `about ${span(o.eta_seconds)}` : "", sort: "eta_seconds"},
  {name: "Moved", show: (o) => sources(o.bytes)},
  {name: "Started", show: (o) => moment(o.started), sort: "started"},
  {name: "Do", show: buttons, sign: (o) => `${o.state} ${o.paused}`},
];

function operations({keep}) {
  const list = new List({path: "/api/operations", title: "Operations", ...keep, key: (o) => o.id, none: "There were none since the node's start.", columns: operationColumns});
  return {nodes: [list.node], load: loads(list), every: 30, event: (op) => list.update(op) || list.load(true)};
}

const link = (screen, name) => el("a", {href: `#/${screen}/${encodeURIComponent(name)}`}, name);

// hits is how much of what was read of an image was here already.
function hits(i) {
  const total = Object.values(i.bytes ?? {}).reduce((a, b) => a + b, 0);
  return total ? `${Math.floor(100 * i.bytes.cache / total)} %` : "";
}

const nameColumns = [
  {name: "Name", show: (i) => [link(i.kind === "tree" ? "trees" : "images", i.name), i.target && el("div", {class: "detail"}, `→ ${i.target}`)], sort: "name", wide: true},
  {name: "Kind", show: (i) => i.kind, sort: "kind"},
  {name: "Size", show: (i) => bytes(i.size), sort: "size"},
  {name: "Stored", show: (i) => bytes(i.stored), sort: "stored"},
  {name: "Scope", show: (i) => i.scope, sort: "scope"},
  {name: "Version", show: (i) => i.version, sort: "version"},
  {name: "Published", show: (i) => moment(i.signed_at), sort: "signed_at"},
  {name: "Seen at the origin", show: (i) => `${span(i.age_seconds)}${i.age_seconds >= 1 ? " ago" : ""}${i.confirmed ? "" : ", unconfirmed"}`, sort: "age_seconds"},
  {name: "From the cache", show: hits},
  {name: "Boot list", show: (i) => i.boot ? `${i.boot.chunks} chunks, ${bytes(i.boot.stored)}` : ""},
  {name: "Source", show: (i) => i.source ?? "", sort: "source", wide: true},
];

function names({keep}) {
  const none = "There are none: `grange image import NAME FILE` publishes one.".replaceAll("`", "");
  const images = new List({path: "/api/images", title: "Images and their tags", ...keep, key: (i) => i.name, none, columns: nameColumns});
  const trees = new List({path: "/api/trees", title: "Trees and their tags", key: (i) => i.name, none: none.replace("image", "tree").replace("FILE", "DIR"), columns: nameColumns});
  return {nodes: [images.node, trees.node], load: loads(images, trees), every: 60};
}

const shelf = (kind) => ({of}) => {
  const one = drawn(`/api/${kind}/${encodeURIComponent(of)}?holders=true`, (i) => [
    facts(i, ["holders"]),
    el("div", {class: "scroll", tabindex: "0", role: "group", "aria-label": "Who has some of it"}, el("table", {}, el("caption", {}, "Who has some of it"),
      el("thead", {}, el("tr", {}, ["Member", "Farm", "Way", "Chunks", "About"].map((h) => el("th", {scope: "col"}, h)))),
      el("tbody", {}, (i.holders ?? []).map((h) => el("tr", {}, el("th", {scope: "row"}, h.name || h.id), el("td", {}, h.farm ?? ""), el("td", {}, h.way || "not connected"), el("td", {}, h.chunks.toLocaleString()), el("td", {}, bytes(h.bytes))))))),
    i.holders?.length ? "" : el("p", {}, "Nobody in reach is known to have any of it: who reads it reads the origin."),
  ]);
  return {nodes: [one.node], load: loads(one), every: 10};
};

const volumeColumns = [
  {name: "Name", show: (v) => link("volumes", v.name), sort: "name", wide: true},
  {name: "State", show: (v) => [v.state, v.detail && el("div", {class: "detail"}, v.detail)], sort: "state"},
  {name: "Node", show: (v) => v.node ? v.node_name || v.node : "nobody", sort: "node_name"},
  {name: "Farm", show: (v) => v.farm, sort: "farm"},
  {name: "Size", show: (v) => bytes(v.size), sort: "size"},
  {name: "Flush means", show: (v) => v.durability + (v.degraded_since ? ", degraded" : ""), sort: "durability"},
  {name: "Held by", show: (v) => (v.holder_names ?? v.holders ?? []).join(", "), wide: true},
  {name: "Not in the bucket", show: (v) => v.device ? bytes(v.lag_bytes) : "", sort: "lag_bytes"},
  {name: "Folded", show: (v) => moment(v.folded_at) || "never", sort: "folded_at"},
  {name: "If its node died now, lost were", show: (v) => v.if_lost, sort: "alone_bytes", wide: true},
];

function volumes({keep}) {
  const list = new List({path: "/api/volumes?all=true", title: "Volumes of the mesh", ...keep, key: (v) => v.name, none: "There are none: grange volume create NAME --from image:NAME makes one.", columns: volumeColumns});
  return {nodes: [list.node], load: loads(list), every: 15};
}

function volume({of}) {
  const one = el("div");
  const snapshots = new List({path: `/api/snapshots?volume=${encodeURIComponent(of)}`, title: "Its snapshots", match: false, key: (s) => s.snapshot_id, none: "There are none.", columns: [
    {name: "Snapshot", show: (s) => s.snapshot_id, sort: "snapshot_id"}, {name: "Label", show: (s) => s.label ?? "", sort: "label", wide: true}, {name: "Made", show: (s) => moment(s.created), sort: "created"},
    {name: "Durable", show: (s) => s.durable ? "yes" : "not yet", sort: "durable"}, {name: "Comes behind", show: (s) => s.parent ?? ""},
  ]});
  const load = async () => { // of another node's the mesh's list says what its record does
    const all = await ask(`/api/volumes?all=true&match=${encodeURIComponent(of)}`);
    const v = all.find((x) => x.name === of);
    one.replaceChildren(v ? facts(v) : el("p", {}, `There is no volume ${of} that this node knows of.`));
  };
  return {nodes: [one, snapshots.node], load: loads({load}, snapshots), every: 5};
}

function instances({keep}) {
  const list = new List({path: "/api/instances?all=true", title: "Instances of the mesh", ...keep, key: (i) => i.name, none: "There are none: grange instance provision starts one.", columns: [
    {name: "Name", show: (i) => i.name, sort: "name", wide: true},
    {name: "State", show: (i) => [i.state, i.step && ` (${i.step})`, i.detail && el("div", {class: "detail"}, i.detail)], sort: "state"},
    {name: "Since", show: (i) => moment(i.since), sort: "since"},
    {name: "Node", show: (i) => i.node ?? "", sort: "node", wide: true},
    {name: "Farm", show: (i) => i.farm ?? "", sort: "farm"},
    {name: "Runs", show: (i) => i.spec.runtime === "vm" ? "a VM" : (i.spec.command ?? []).join(" "), wide: true},
    {name: "From", show: (i) => i.spec.from ?? ""},
    {name: "Port", show: (i) => i.port || "", sort: "port"},
    {name: "Put away", show: (i) => moment(i.saved_at) || "never", sort: "saved_at"},
    {name: "Crashes", show: (i) => i.crashes || "", sort: "crashes"},
  ]});
  return {nodes: [list.node], load: loads(list), every: 10};
}

function mesh({keep}) {
  const farms = new List({path: "/api/farms", title: "Farms", match: false, key: (f) => f.farm, none: "There are none.", columns: [
    {name: "Farm", show: (f) => f.farm || "none (seeds)", sort: "farm"}, {name: "Members", show: (f) => f.members, sort: "members"}, {name: "By LAN", show: (f) => f.lan, sort: "lan"},
    {name: "Direct", show: (f) => f.direct, sort: "direct"}, {name: "Relayed", show: (f) => f.relayed, sort: "relayed"}, {name: "Not connected", show: (f) => f.away, sort: "away"},
  ]});
  const members = new List({path: "/api/members", title: "Members", ...keep, key: (m) => m.id, none: "Nobody is known.", columns: [
    {name: "Name", show: (m) => m.name || m.id, sort: "name", wide: true}, {name: "Farm", show: (m) => m.farm ?? "", sort: "farm"}, {name: "Role", show: (m) => m.role || "unknown", sort: "role"},
    {name: "State", show: (m) => m.state, sort: "state"}, {name: "Way", show: (m) => m.way ?? "", sort: "way"},
    {name: "Path", show: (m) => m.path ?? "", sort: "path", wide: true}, {name: "Received", show: (m) => m.received_bytes ? bytes(m.received_bytes) : "", sort: "received_bytes"},
    {name: "Sent", show: (m) => m.sent_bytes ? bytes(m.sent_bytes) : "", sort: "sent_bytes"}, {name: "Failed requests", show: (m) => m.failures || "", sort: "failures"},
    {name: "Last seen", show: (m) => m.state === "this node" ? "" : moment(m.last_seen), sort: "last_seen"}, {name: "ID", show: (m) => m.id, sort: "id", wide: true},
  ]});
  return {nodes: [farms.node, members.node], load: loads(farms, members), every: 30};
}

// spent is how much of a budget the last minute took.
function spent(name, now, most, show) {
  return [el("dt", {}, name), el("dd", {}, most ? [el("meter", {min: 0, max: most, high: most * 0.9, value: Math.min(now, most), "aria-label": name}), ` ${show(now)} of ${show(most)}`] : `${show(now)}, without a limit`)];
}

function origin({status}) {
  const budget = el("section", {"aria-labelledby": "budget-head"});
  const history = drawn("/api/history", (h) => {
    const minute = h.samples.slice(-Math.round(60 / h.span_seconds)), seconds = Math.max(1, minute.length) * h.span_seconds;
    const rate = (of) => minute.reduce((sum, s) => sum + of(s), 0) / seconds;
    const o = status()?.origin ?? {};
    budget.replaceChildren(el("h2", {id: "budget-head"}, "Its budget, in the last minute"), el("dl", {class: "facts"},
      spent("bytes a second", rate((s) => s.origin_bytes), o.bytes_per_second_max, (n) => `${bytes(n)}/s`), spent("requests a second", rate((s) => s.origin_requests), o.requests_per_second_max, (n) => `${n.toFixed(1)}/s`)));
    return chart("Bytes read from the origin", ["origin"], h, (s) => ({origin: s.origin_bytes}));
  });
  const state = drawn("/api/status", (s) => facts(s.origin));
  const upkeep = drawn("/api/origin", (u) => [el("h2", {}, "Its upkeep"), facts(u)]);
  return {nodes: [state.node, budget, history.node, upkeep.node], load: loads(state, history, upkeep), every: 10};
}

function alone({keep}) {
  const list = new List({path: "/api/alone", title: "What this node has and nobody else", ...keep, key: (x) => x.about, none: "Nothing: this node could be lost, and nothing with it.", columns: [
    {name: "What", show: (x) => x.about, sort: "about", wide: true}, {name: "About", show: (x) => x.bytes ? bytes(x.bytes) : "", sort: "bytes"}, {name: "Since", show: (x) => moment(x.since), sort: "since"},
    {name: "Lost with this node", show: (x) => x.text, wide: true}, {name: "What mends it", show: (x) => x.mend ? el("code", {}, x.mend) : ""},
  ]});
  return {nodes: [list.node], load: loads(list), every: 15};
}

// screens by their path, each with its title and, for one thing alone, how it is shown.
export const screens = {
  "": {title: "Overview", show: overview},
  operations: {title: "Operations", show: operations},
  names: {title: "Names", show: names},
  images: {single: "Image", under: "names", one: shelf("images")},
  trees: {single: "Tree", under: "names", one: shelf("trees")},
  volumes: {title: "Volumes", show: volumes, single: "Volume", one: volume},
  instances: {title: "Instances", show: instances},
  mesh: {title: "Mesh", show: mesh},
  origin: {title: "Origin", show: origin},
  alone: {title: "Only here", show: alone},
};
