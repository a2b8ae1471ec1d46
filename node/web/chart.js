// Bytes a second over the last hour, by where they came from, as areas on top of each other. The words beside it say the same.

import {bytes, el} from "./page.js";

const wide = 720, high = 180, left = 64, bottom = 22;

function svg(tag, attributes, ...children) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
  Object.entries(attributes).forEach(([k, v]) => e.setAttribute(k, v));
  e.append(...children);
  return e;
}

// chart draws history; of(sample) gives the numbers of a sample by name, in bytes.
export function chart(title, names, history, of) {
  const span = history.span_seconds;
  const totals = Object.fromEntries(names.map((n) => [n, history.samples.reduce((sum, s) => sum + (of(s)[n] ?? 0), 0)]));
  const words = names.map((n) => `${n} ${bytes(totals[n])}`).join(", ");
  const keys = el("ul", {class: "keys"}, names.map((n) => el("li", {class: `from-${n}`}, `${n}: ${bytes(totals[n])}`)));
  const caption = el("figcaption", {}, el("strong", {}, title), ` in the last ${Math.round(history.samples.length * span / 60)} min`, keys);
  if (!history.samples.length) return el("figure", {}, caption, el("p", {}, "The first sample comes ten seconds after the node's start."));
  const rows = smooth(history.samples.map((s) => names.map((n) => (of(s)[n] ?? 0) / span)), 180);
  const top = nice(Math.max(1024, ...rows.map((r) => r.reduce((a, b) => a + b, 0))));
  const x = (i) => left + (wide - left) * (i / Math.max(1, rows.length - 1));
  const y = (v) => (high - bottom) * (1 - v / top) + 4;
  const picture = svg("svg", {viewBox: `0 0 ${wide} ${high + 4}`, role: "img", "aria-label": `${title}: ${words}`});
  for (const part of [0, 0.5, 1]) {
    picture.append(svg("line", {class: "grid", x1: left, x2: wide, y1: y(top * part), y2: y(top * part)}),
      svg("text", {x: left - 6, y: y(top * part) + 4, "text-anchor": "end"}, part ? `${bytes(top * part)}/s` : "0"));
  }
  let below = rows.map(() => 0);
  names.forEach((name, k) => {
    const above = rows.map((r, i) => below[i] + r[k]);
    const points = [...above.map((v, i) => [x(i), y(v)]), ...below.map((v, i) => [x(i), y(v)]).reverse()];
    picture.append(svg("polygon", {class: `from-${name}`, points: points.map((p) => p.map((n) => n.toFixed(1)).join(",")).join(" ")}));
    below = above;
  });
  const ago = (s) => `${Math.round((Date.now() - new Date(s.at)) / 60000)} min ago`;
  picture.append(svg("text", {x: left, y: high}, ago(history.samples[0])), svg("text", {x: wide, y: high, "text-anchor": "end"}, "now"));
  return el("figure", {}, caption, picture);
}

// smooth has no more points than can be told apart: each is the mean of those that it stands for.
function smooth(rows, most) {
  const each = Math.ceil(rows.length / most), out = [];
  for (let i = 0; i < rows.length; i += each) {
    const some = rows.slice(i, i + each);
    out.push(some[0].map((_, k) => some.reduce((sum, r) => sum + r[k], 0) / some.length));
  }
  return out.length > 1 ? out : [...out, ...out];
}

// nice is the next number that is read at a glance, in units of 1024.
function nice(n) {
  const unit = 1024 ** Math.floor(Math.log(n) / Math.log(1024));
  return [1, 2, 5, 10, 20, 50, 100, 200, 500, 1024].find((f) => f * unit >= n) * unit;
}
