// A list that the server filters, sorts and cuts into pages: however long it is, the page holds fifty rows of it.

import {page, Problem} from "./ask.js";
import {el, nodes, set} from "./page.js";

const atOnce = 50;
const calm = 300; // ms without a key until what was typed is asked for

export class List {
  // columns have a name, show(row) and maybe sort, the member by which the server sorts, and wide. key(row) tells rows apart.
  constructor({path, title, columns, key, none, keep = {}, changed = () => {}, match = true}) {
    Object.assign(this, {path, columns, key, none, changed});
    this.query = {match: keep.match ?? "", sort: keep.sort ?? ""};
    this.behind = [""]; // what each page up to this one comes behind
    this.count = el("p", {class: "count", role: "status"});
    this.body = el("tbody");
    this.heads = columns.map((c) => el("th", {scope: "col", class: c.wide && "wide"}, c.sort ? el("button", {type: "button", onclick: () => this.sortBy(c.sort)}, c.name) : c.name));
    const id = `caption-${title.replaceAll(/\W/g, "-")}`;
    this.back = el("button", {type: "button", disabled: true, onclick: () => this.turn(-1)}, "Previous");
    this.on = el("button", {type: "button", disabled: true, onclick: () => this.turn(1)}, "Next");
    const input = el("input", {type: "search", id: `${id}-match`, value: this.query.match, autocomplete: "off", spellcheck: "false", oninput: () => {
      clearTimeout(this.typed);
      this.typed = setTimeout(() => this.choose({match: input.value}), calm);
    }});
    this.node = el("section", {class: "list", "aria-labelledby": id},
      match && el("p", {class: "choose", role: "search"}, el("label", {for: input.id}, `Filter ${title.toLowerCase()}`), input),
      this.count,
      el("div", {class: "scroll", tabindex: "0", role: "group", "aria-labelledby": id}, el("table", {}, el("caption", {id}, title), el("thead", {}, el("tr", {}, this.heads)), this.body)),
      el("nav", {class: "pager", "aria-label": `Pages of ${title.toLowerCase()}`}, this.back, this.on));
    this.mark();
  }

  sortBy(member) {
    this.choose({sort: this.query.sort === member ? `-${member}` : member});
  }

  choose(change) {
    Object.assign(this.query, change);
    this.behind = [""];
    this.mark();
    this.changed(this.query);
    return this.load(true);
  }

  turn(by) {
    if (by < 0) this.behind.pop();
    else this.behind.push(this.after);
    return this.load(true);
  }

  mark() {
    this.columns.forEach((c, i) => c.sort && this.heads[i].setAttribute("aria-sort", {[c.sort]: "ascending", [`-${c.sort}`]: "descending"}[this.query.sort] ?? "none"));
  }

  // load asks for this page; anew whether or not it is as it was.
  async load(anew = false) {
    this.asking?.abort();
    const asking = this.asking = new AbortController();
    try {
      const got = await page(this.path, {limit: atOnce, after: this.behind.at(-1), ...this.query}, anew ? "" : this.tag, asking.signal);
      if (got) this.show(got);
    } catch (e) {
      if (e.name === "AbortError") return;
      if (!(e instanceof Problem) || e.status === 401) throw e;
      this.tag = "";
      this.body.replaceChildren();
      this.count.textContent = e.message;
    }
  }

  show({rows, after, total, tag}) {
    Object.assign(this, {after, tag});
    const first = (this.behind.length - 1) * atOnce + 1;
    const of = total && (total > rows.length) ? ` of ${Number(total).toLocaleString()}` : "";
    const more = after && !total ? ", and more" : "";
    this.count.textContent = rows.length ? `${first.toLocaleString()} to ${(first + rows.length - 1).toLocaleString()}${of}${more}` : this.query.match ? "Nothing matches." : this.none;
    this.back.disabled = this.behind.length < 2;
    this.on.disabled = !after;
    const had = new Map([...this.body.rows].map((r) => [r.dataset.key, r]));
    const now = rows.map((row) => this.row(row, had.get(this.key(row))));
    const same = now.length === this.body.rows.length && now.every((r, i) => r === this.body.rows[i]);
    if (!same) this.body.replaceChildren(...now); // or else who is in it would lose the place
  }

  row(row, tr = el("tr", {"data-key": this.key(row)})) {
    this.columns.forEach((c, i) => {
      const cell = tr.cells[i] ?? tr.appendChild(i ? el("td") : el("th", {scope: "row"}));
      const sign = c.sign ? c.sign(row) : undefined;
      if (sign !== undefined && cell.dataset.sign === sign) return; // its buttons stay
      if (sign !== undefined) cell.dataset.sign = sign;
      set(cell, {class: c.wide && "wide"});
      cell.replaceChildren(...nodes(c.show(row)));
    });
    return tr;
  }

  // update shows what a row has become, if it is on this page.
  update(row) {
    const tr = [...this.body.rows].find((r) => r.dataset.key === this.key(row));
    if (tr) this.row(row, tr);
    return tr !== undefined;
  }
}
