/* The samples of training, token by token, and what each checkpoint answers: filtered, listed, looked into. */
"use strict";

const PAGE = 100; // entries of a list that are shown at once
const QUANTITIES = {
  a: ["Advantage", "advantage"], v: ["Value", "value"], kl: ["KL", "KL: log p(policy) - log p(reference)"], lp: ["Log-prob", "log p(policy)"],
};

function statusMark(status) {
  const known = ["correct", "wrong", "no_answer", "error", "timeout", "blocked"].includes(status) ? status : "other";
  return make("span", { class: "status" }, make("i", { class: `s-${known}` }), (status || "no status").replace(/_/g, " "));
}

function response(row) {
  return row.r ?? row.t.join("");
}

/** A search as a function of text; null for a pattern that is no regular expression. */
function searcher(text, regular) {
  if (!text) return () => true;
  if (!regular) {
    const wanted = text.toLowerCase();
    return (value) => (value || "").toLowerCase().includes(wanted);
  }
  try {
    const pattern = new RegExp(text, "im");
    return (value) => pattern.test(value || "");
  } catch {
    return null;
  }
}

/** Filters above a list beside a detail: what samples and predictions have in common. */
class Inspector {
  constructor(section, name) {
    this.holder = section.querySelector(".inspector");
    this.filters = make("div", { class: "filters", role: "search", "aria-label": `Filter ${name}` });
    this.found = make("p", { class: "found", role: "status" });
    this.list = make("ul", { class: "list", "aria-label": name });
    this.detail = make("div", { class: "detail", role: "region", "aria-label": `The chosen one of ${name}`, tabindex: "-1" });
    this.holder.append(this.filters, this.found, make("div", { class: "split" }, this.list, this.detail));
    this.inputs = {};
  }

  select(key, label, options) {
    const input = make("select", { on: { change: () => this.refresh() } }, ...options.map(([value, text]) => make("option", { value: String(value) }, text)));
    this.inputs[key] = input;
    this.filters.append(make("label", {}, label, input));
  }

  number(key, label) {
    const input = make("input", { type: "number", min: "0", step: "1", on: { input: () => this.refresh() } });
    this.inputs[key] = input;
    this.filters.append(make("label", {}, label, input));
  }

  search(label) {
    this.inputs.text = make("input", { type: "search", on: { input: () => this.refresh() } });
    this.inputs.regular = make("input", { type: "checkbox", on: { change: () => this.refresh() } });
    this.filters.append(make("label", { class: "search" }, label, this.inputs.text), make("label", { class: "choice" }, this.inputs.regular, " regular expression"));
  }

  value(key) {
    return this.inputs[key] ? this.inputs[key].value : "";
  }

  searched() {
    const found = searcher(this.inputs.text.value, this.inputs.regular.checked);
    this.inputs.text.setAttribute("aria-invalid", String(found === null));
    return found || (() => false);
  }

  fill(rows, text) {
    this.rows = rows;
    this.found.textContent = this.inputs.text.getAttribute("aria-invalid") === "true" ? "This is not a regular expression." : text;
    this.list.replaceChildren();
    this.grow();
    if (rows.length) this.pick(rows.includes(this.current) ? this.current : rows[0]);
    else {
      this.current = null;
      this.detail.replaceChildren(make("p", { class: "empty" }, "Nothing passes these filters."));
    }
  }

  grow() {
    const from = this.list.querySelectorAll("button[data-row]").length;
    this.list.querySelector("li.more")?.remove();
    const next = this.rows.slice(from, from + PAGE).map((row, i) => make("li", {}, make("button", { type: "button", "data-row": String(from + i), on: { click: () => this.pick(row) } }, ...this.entry(row))));
    this.list.append(...next);
    const left = this.rows.length - from - next.length;
    if (left > 0) this.list.append(make("li", { class: "more" }, make("button", { type: "button", on: { click: () => this.grow() } }, `Show more (${left} left)`)));
    this.mark();
  }

  pick(row) {
    this.current = row;
    this.mark();
    this.detail.replaceChildren(...this.look(row));
  }

  mark() {
    for (const button of this.list.querySelectorAll("button[data-row]")) {
      if (this.rows[button.dataset.row] === this.current) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  }
}

class Samples extends Inspector {
  constructor(section) {
    super(section, "samples");
    this.by = "a";
    const sources = DATA.samples.map((source, i) => [i, DATA.runs.length > 1 ? `${DATA.runs[source.run]}: ${source.stage}` : source.stage]);
    this.select("source", "Stage", sources);
    this.number("from", "From step");
    this.number("to", "To step");
    const statuses = [...new Set(DATA.samples.flatMap((source) => source.rows.map((row) => row.st)))].sort();
    this.select("status", "Status", [["", "any"], ...statuses.map((status) => [status, status.replace(/_/g, " ")])]);
    this.search("Question or response");
    this.asked = make("select", { on: { change: () => this.refresh() } });
    this.inputs.item = this.asked;
    this.filters.append(make("label", { class: "asked" }, "Questions asked more than once", this.asked));
    redraws.push(() => this.current && this.pick(this.current));
    this.refresh();
  }

  refresh() {
    const source = DATA.samples[Number(this.value("source"))];
    if (source !== this.source) this.offer(source);
    const from = this.value("from") === "" ? -Infinity : Number(this.value("from")), to = this.value("to") === "" ? Infinity : Number(this.value("to"));
    const status = this.value("status"), item = this.value("item"), fits = this.searched();
    const rows = source.rows.filter((row) => (!item || row.i === item) && row.s >= from && row.s <= to && (!status || row.st === status) && (fits(row.q) || fits(response(row)) || fits(row.i)));
    const kept = source.rows.length === source.total ? `all ${source.total.toLocaleString("en")} logged samples` : `${source.rows.length.toLocaleString("en")} of ${source.total.toLocaleString("en")} logged samples are in this page`;
    this.source = source;
    this.fill(rows, `${rows.length.toLocaleString("en")} shown; ${kept}`);
  }

  /** The questions with several answers in the page, the most asked first. */
  offer(source) {
    const counts = new Map();
    for (const row of source.rows) counts.set(row.i, (counts.get(row.i) || 0) + 1);
    const often = [...counts].filter(([, count]) => count > 1).sort((a, b) => b[1] - a[1]).slice(0, 200);
    this.asked.replaceChildren(make("option", { value: "" }, often.length ? "all questions" : "none"), ...often.map(([item, count]) => make("option", { value: item }, `${item}: ${count} answers`)));
  }

  entry(row) {
    return [make("span", { class: "row1" }, make("span", {}, `step ${row.s}`), statusMark(row.st)), make("span", { class: "row2" }, row.q || row.i)];
  }

  look(row) {
    const numbers = { status: statusMark(row.st), answer: row.x ?? "none", score: row.score, KL: row.kl, tokens: row.t.length ? row.cut || row.t.length : undefined };
    const facts = make("dl", { class: "numbers" });
    for (const [name, value] of Object.entries(numbers)) {
      if (value !== undefined) facts.append(make("div", {}, make("dt", {}, name), make("dd", {}, typeof value === "number" ? digits(value) : value)));
    }
    return [make("h3", {}, `Step ${row.s}, ${row.i}`), facts, make("p", { class: "label" }, "Question"), make("p", { class: "question" }, row.q ?? "not stored"),
      make("p", { class: "label" }, "Response"), ...this.tokens(row), ...this.over(row)];
  }

  /** The response with each token coloured; its numbers under it, for the token that is pointed at or focused. */
  tokens(row) {
    const numbers = {};
    for (const key of ["a", "v", "lp"]) if (row[key]) numbers[key] = row[key];
    if (row.lp && row.rl) numbers.kl = row.lp.map((value, i) => (value === null || row.rl[i] === null ? null : value - row.rl[i]));
    if (!row.t.length) return [make("pre", { class: "text", tabindex: "0", role: "region", "aria-label": "Response" }, response(row))];
    const options = Object.fromEntries(Object.entries(QUANTITIES).filter(([key]) => numbers[key]).map(([key, [name]]) => [key, name]));
    options.none = "nothing";
    const by = this.by in options ? this.by : Object.keys(options)[0];
    const text = make("pre", { class: "text", role: "listbox", "aria-label": "Tokens of the response; arrow keys go from one to the next", "aria-orientation": "horizontal" });
    const readout = make("div", { class: "readout", "aria-live": "polite" }, make("p", { class: "hint" }, "Point at a token, or focus the response and use the arrow keys, to see its numbers."));
    const spans = row.t.map((piece, i) => {
      const span = make("span", { class: "tok", role: "option", "aria-selected": "false", tabindex: i ? "-1" : "0" });
      const lines = piece.split("\n");
      lines.forEach((line, j) => {
        if (j) span.append(make("span", { class: "end", "aria-hidden": "true" }, "\u21b5"), "\n");
        span.append(line);
      });
      span.addEventListener("mouseenter", () => this.read(row, numbers, i, readout));
      span.addEventListener("focus", () => {
        for (const other of spans) { other.tabIndex = -1; other.setAttribute("aria-selected", "false"); }
        span.tabIndex = 0;
        span.setAttribute("aria-selected", "true");
        this.read(row, numbers, i, readout);
      });
      return span;
    });
    text.append(...spans);
    text.addEventListener("keydown", (event) => {
      const at = spans.indexOf(document.activeElement), step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1, Home: -spans.length, End: spans.length }[event.key];
      if (at < 0 || !step) return;
      event.preventDefault();
      spans[Math.min(spans.length - 1, Math.max(0, at + step))].focus();
    });
    const scale = make("div", { class: "scale" });
    const paint = (key) => this.paint(spans, key, numbers[key], scale);
    paint(by);
    const colours = choices("Colour by", "colour-by", options, by, (key) => { this.by = key; paint(key); });
    const cut = row.cut ? [make("p", { class: "hint" }, `Only the first ${row.t.length.toLocaleString("en")} of ${row.cut.toLocaleString("en")} tokens are in this page.`)] : [];
    return [colours, scale, make("p", { class: "label" }), text, ...cut, readout];
  }

  read(row, numbers, i, readout) {
    const list = make("dl", {}, make("div", {}, make("dt", {}, `token ${i + 1} of ${row.t.length}`), make("dd", { class: "mono" }, JSON.stringify(row.t[i]))));
    const values = { advantage: numbers.a?.[i], value: numbers.v?.[i], KL: numbers.kl?.[i], "log-prob": row.lp?.[i], reference: row.rl?.[i], probability: row.lp ? Math.exp(row.lp[i]) : undefined };
    for (const [name, value] of Object.entries(values)) {
      if (value !== undefined) list.append(make("div", {}, make("dt", {}, name), make("dd", {}, value === null ? "–" : value.toFixed(4))));
    }
    readout.replaceChildren(list);
  }

  /** Blue above 0 and orange below, stronger the farther away; the scale is the response's own. */
  paint(spans, key, values, scale) {
    scale.replaceChildren();
    if (!values) { spans.forEach((span) => { span.style.backgroundColor = ""; }); return; }
    const finite = values.filter((value) => value !== null);
    const least = Math.min(0, ...finite), most = Math.max(0, ...finite), reach = Math.max(most, -least, 1e-6);
    const tint = Number(cssColor("tint")), plus = cssColor("plus"), minus = cssColor("minus");
    const colour = (value) => `rgb(${value >= 0 ? plus : minus} / ${(tint * Math.min(1, Math.abs(value) / reach)).toFixed(3)})`;
    spans.forEach((span, i) => { span.style.backgroundColor = values[i] === null ? "" : colour(values[i]); });
    const canvas = make("canvas", { width: 150, height: 10, "aria-hidden": "true" }), pen = canvas.getContext("2d");
    for (let x = 0; x < 150; x++) {
      pen.fillStyle = colour(least + ((most - least) * x) / 149);
      pen.fillRect(x, 0, 1, 10);
    }
    scale.append(make("span", {}, digits(least)), canvas, make("span", {}, digits(most)), make("span", {}, QUANTITIES[key][1]));
  }

  /** The other answers to the same question, by step. */
  over(row) {
    const same = this.source.rows.filter((other) => other.i === row.i);
    if (same.length < 2) return [make("p", { class: "label" }, "No other answer to this question is in this page.")];
    const rows = same.map((other) => make("tr", { "aria-current": other === row ? "true" : undefined },
      make("th", { scope: "row" }, other === row ? `step ${other.s}` : make("button", { type: "button", class: "linkish", on: { click: () => { this.pick(other); this.detail.focus(); } } }, `step ${other.s}`)),
      make("td", {}, statusMark(other.st)), make("td", { class: "num" }, other.x ?? "–"), make("td", { class: "num" }, digits(other.kl)), make("td", {}, make("pre", {}, response(other)))));
    const heads = ["Step", "Status", "Answer", "KL", "Response"].map((name) => make("th", { scope: "col", class: ["Answer", "KL"].includes(name) ? "num" : "" }, name));
    const caption = `${same.length} answers to this question over training`;
    return [make("p", { class: "label" }), make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
      make("table", { class: "over" }, make("caption", {}, caption), make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows)))];
  }
}

class Predictions extends Inspector {
  constructor(section) {
    super(section, "predictions");
    if (DATA.predictions.length > 1) this.select("source", "Run", DATA.predictions.map((source, i) => [i, DATA.runs[source.run]]));
    const splits = [...new Set(DATA.predictions.flatMap((source) => source.items.map((item) => item.split)))];
    this.select("split", "Split", [["", "any"], ...splits.map((split) => [split, split])]);
    this.select("differ", "Checkpoints", [["", "any"], ["differ", "disagree"], ["right", "all right"], ["wrong", "all wrong"]]);
    this.search("Question or response");
    this.refresh();
  }

  refresh() {
    const source = DATA.predictions[Number(this.value("source"))];
    const split = this.value("split"), differ = this.value("differ"), fits = this.searched();
    this.source = source;
    const rows = source.items.filter((item) => {
      const right = item.by.filter(Boolean).map((answer) => answer.st === "correct");
      const kind = right.every(Boolean) ? "right" : right.some(Boolean) ? "differ" : "wrong";
      return (!split || item.split === split) && (!differ || kind === differ) && (fits(item.q) || fits(item.i) || item.by.some((answer) => answer && fits(answer.r)));
    });
    this.fill(rows, `${rows.length.toLocaleString("en")} shown; ${source.items.length.toLocaleString("en")} of ${source.total.toLocaleString("en")} questions are in this page, up to half of them chosen because the checkpoints disagree`);
  }

  entry(item) {
    const marks = make("span", {}, ...this.source.labels.map((label, i) => make("span", { class: "status", title: `${label}: ${item.by[i]?.st ?? "none"}` }, make("i", { class: `s-${item.by[i]?.st ?? "none"}` }))));
    const right = item.by.filter((answer) => answer?.st === "correct").length;
    return [make("span", { class: "row1" }, make("span", {}, `${item.i} (${item.split})`), make("span", {}, marks, ` ${right} of ${item.by.filter(Boolean).length} right`)), make("span", { class: "row2" }, item.q || item.by.find(Boolean)?.r || item.i)];
  }

  look(item) {
    const answers = make("div", { class: "answers" });
    for (const [i, label] of this.source.labels.entries()) {
      const answer = item.by[i];
      if (!answer) continue;
      const many = answer.of ? `${answer.right} of ${answer.of} samples right` : "";
      const box = make("div", {}, make("div", { class: "row1" }, make("strong", {}, label), make("span", {}, statusMark(answer.st), ` answer ${answer.x ?? "none"}`)));
      if (answer.r !== null) box.append(make("pre", { class: "text", tabindex: "0", role: "region", "aria-label": `Greedy response of ${label}` }, answer.r));
      if (many) box.append(make("details", {}, make("summary", {}, `${many}; the first of them`),
        ...answer.more.map((more) => make("div", {}, make("div", { class: "row1" }, statusMark(more.st), make("span", {}, `answer ${more.x ?? "none"}`)), make("pre", { class: "text" }, more.r ?? "")))));
      answers.append(box);
    }
    return [make("h3", {}, item.i), make("dl", { class: "numbers" }, make("div", {}, make("dt", {}, "gold answer"), make("dd", {}, item.gold ?? "–")), make("div", {}, make("dt", {}, "split"), make("dd", {}, item.split || "–"))),
      make("p", { class: "label" }, "Question"), make("p", { class: "question" }, item.q ?? "not stored beside the predictions"), make("p", { class: "label" }, "Greedy responses, by checkpoint"), answers];
  }
}

(function inspect() {
  for (const [id, kind, rows] of [["samples", Samples, DATA.samples], ["predictions", Predictions, DATA.predictions]]) {
    const section = document.getElementById(id);
    if (rows.length) new kind(section);
    else {
      section.hidden = true;
      document.querySelector(`nav a[href="#${id}"]`).hidden = true;
    }
  }
})();
