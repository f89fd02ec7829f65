/* The curves: one uPlot for each chart of DATA.charts, redrawn for the width, the theme, and what the reader chooses. */
"use strict";

const DASHES = [[], [8, 4], [2, 3], [8, 3, 2, 3], [14, 4], [5, 2], [8, 3, 2, 3, 2, 3], [2, 7]];
const COLOR_OF = { "dev check": "devcheck" };

/** Centred moving mean; nulls stay out, at the ends the window shrinks. */
function smoothed(values, window) {
  const half = Math.floor(window / 2);
  const places = values.flatMap((value, i) => (value === null || value === undefined ? [] : [i]));
  const sums = [0];
  for (const i of places) sums.push(sums[sums.length - 1] + values[i]);
  const out = new Array(values.length).fill(null);
  places.forEach((place, j) => {
    const reach = Math.min(half, j, places.length - 1 - j);
    out[place] = (sums[j + reach + 1] - sums[j - reach]) / (2 * reach + 1);
  });
  return out;
}

/** The value at an index or, where another curve's step is not this one's, at the nearest that has one. */
function nearest(values, index) {
  for (let away = 0; away < values.length; away++) {
    for (const i of [index - away, index + away]) {
      if (i >= 0 && i < values.length && values[i] !== null && values[i] !== undefined) return values[i];
    }
  }
  return null;
}

function lastOf(values) {
  return nearest(values, values.length - 1);
}

class Chart {
  constructor(spec, holder) {
    this.spec = spec;
    this.axis = Object.keys(spec.axes)[0];
    this.off = new Set();
    this.at = make("li", { class: "at" });
    this.box = make("div", { class: "plot", tabindex: "0", role: "img", "aria-roledescription": "chart", on: { keydown: (e) => this.key(e), blur: () => this.leave() } });
    this.legend = make("ul", { class: "legend" });
    const heading = make("h3", {}, spec.title, spec.unit ? make("span", { class: "unit" }, `  ${spec.unit}`) : null);
    this.figure = make("figure", { class: spec.id === "accuracy" ? "chart wide" : "chart" },
      make("figcaption", {}, heading, spec.text ? make("p", { class: "about" }, spec.text) : null));
    if (Object.keys(spec.axes).length > 1) {
      this.figure.firstChild.append(choices("Over", `axis-${spec.id}`, spec.axes, this.axis, (axis) => { this.axis = axis; this.draw(); }));
    }
    this.figure.append(this.box, this.legend);
    holder.append(this.figure);
    new ResizeObserver(() => this.fit()).observe(this.box);
    redraws.push(() => this.draw());
    this.draw();
  }

  height() {
    return this.spec.id === "accuracy" ? Math.min(360, Math.max(240, this.box.clientWidth * 0.45)) : 190;
  }

  fit() {
    const width = this.box.clientWidth;
    if (this.plot && width && Math.abs(width - this.plot.width) >= 1) this.plot.setSize({ width, height: this.height() });
  }

  /** Aligned columns, uPlot's series and bands, and for each curve shown in the legend where its raw numbers are. */
  layout() {
    const curves = this.spec.series.filter((one) => one.by[this.axis]);
    const tables = curves.map(({ by: { [this.axis]: c } }) => [c.x, c.y, ...(c.lo ? [c.lo, c.hi] : [])]);
    const joined = uPlot.join(tables);
    const data = [joined[0]], series = [{}], bands = [];
    this.shown = [];
    let column = 1;
    for (const [i, one] of curves.entries()) {
      const color = cssColor(COLOR_OF[one.color] || one.color);
      const raw = joined[column++];
      const entry = { one, color, raw, members: [] };
      const show = !this.off.has(one.label);
      const add = (values, options) => {
        data.push(values);
        series.push({ show, spanGaps: true, points: { show: false }, ...options });
        entry.members.push(series.length - 1);
      };
      if (tables[i].length === 4) {
        add(joined[column++], { width: 0, stroke: "transparent" });
        add(joined[column++], { width: 0, stroke: "transparent" });
        bands.push({ series: [series.length - 1, series.length - 2], fill: faded(color, 0.18) });
      }
      const dash = DASHES[(one.dash || 0) % DASHES.length];
      const points = { show: one.points, size: 6, fill: color, width: 0 };
      const smooth = document.getElementById("smooth").checked && !one.points && tables[i][0].length >= 30;
      if (smooth) {
        add(raw, { stroke: faded(color, 0.38), width: 1, dash });
        add(smoothed(raw, Math.floor(tables[i][0].length / 10)), { stroke: color, width: 2, dash });
      } else add(raw, { stroke: one.thin ? faded(color, 0.8) : color, width: one.thin ? 1 : 2, dash, points });
      this.shown.push(entry);
    }
    return { data, series, bands };
  }

  /** Stacked areas, the highest first, so that each lies on the one before. */
  stacked() {
    const joined = uPlot.join(this.spec.series.map(({ by: { step } }) => [step.x, step.y]));
    const total = new Array(joined[0].length).fill(0), layers = [];
    this.shown = [];
    for (const [i, one] of this.spec.series.entries()) {
      let before = 0;
      const raw = Array.from(joined[i + 1], (value) => (before = value ?? before));
      raw.forEach((value, j) => (total[j] += value));
      const color = cssColor(COLOR_OF[one.color] || one.color);
      layers.unshift({ values: total.slice(), color });
      this.shown.push({ one, color, raw, members: [] });
    }
    const series = layers.map(({ color }) => ({ stroke: color, fill: color, width: 0, points: { show: false } }));
    return { data: [joined[0], ...layers.map((layer) => layer.values)], series: [{}, ...series], bands: [] };
  }

  draw() {
    if (this.plot) this.plot.destroy();
    const stack = this.spec.kind === "stack";
    const { data, series, bands } = stack ? this.stacked() : this.layout();
    const ink = cssColor("soft"), grid = cssColor("line");
    const font = "12px ui-sans-serif, system-ui, sans-serif";
    const percent = this.spec.percent;
    const axis = { stroke: ink, font, grid: { stroke: grid, width: 1 }, ticks: { show: false } };
    const yValues = (u, splits) => splits.map((v) => (percent ? `${+(100 * v).toFixed(2)}%` : digits(v)));
    const options = {
      width: Math.max(200, this.box.clientWidth), height: this.height(), series, bands,
      legend: { show: false },
      padding: [10, 12, 0, 0],
      scales: { x: { time: false }, y: stack && percent ? { range: [0, 1] } : {} },
      axes: [
        { ...axis, grid: { show: false }, label: this.spec.axes[this.axis], labelFont: font, labelSize: 18, size: 30,
          values: (u, splits) => splits.map((v) => (v >= 1e4 ? `${+(v / 1000).toFixed(1)}k` : String(+v.toFixed(4)))) },
        { ...axis, values: yValues, size: 52 },
      ],
      cursor: { y: false, points: { show: !stack }, drag: { x: true, y: false }, ...(this.axis === "step" ? { sync: { key: "step", setSeries: false } } : {}) },
      hooks: { setCursor: [(u) => this.numbers(u.cursor.idx)] },
    };
    this.legend.replaceChildren(this.at, ...this.shown.map((entry) => this.entry(entry, stack)));
    this.plot = new uPlot(options, data, this.box);
    this.numbers(null);
  }

  /** A legend entry: its line, its name, the number under the cursor; a button that hides the curve. */
  entry(entry, stack) {
    const dash = DASHES[(entry.one.dash || 0) % DASHES.length].join(" ");
    const mark = svg("svg", { width: 18, height: 10, "aria-hidden": "true" },
      stack ? svg("rect", { width: 12, height: 10, rx: 2, fill: entry.color })
        : svg("line", { x1: 0, x2: 18, y1: 5, y2: 5, stroke: entry.color, "stroke-width": entry.one.thin ? 1.2 : 2.6, "stroke-dasharray": dash }));
    entry.number = make("span", { class: "number" });
    const flip = () => {
      const show = this.off.delete(entry.one.label);
      if (!show) this.off.add(entry.one.label);
      button.setAttribute("aria-pressed", String(show));
      for (const member of entry.members) this.plot.setSeries(member, { show });
    };
    const inside = [mark, make("span", {}, entry.one.label), entry.number];
    const button = stack ? make("button", { type: "button", disabled: true }, ...inside)
      : make("button", { type: "button", "aria-pressed": String(!this.off.has(entry.one.label)), title: "show or hide", on: { click: flip } }, ...inside);
    return make("li", {}, button);
  }

  numbers(index) {
    if (!this.plot && index !== null) return;
    const live = index !== null && index !== undefined;
    const words = [];
    for (const entry of this.shown) {
      const text = digits(live ? nearest(entry.raw, index) : lastOf(entry.raw), this.spec.percent);
      entry.number.textContent = text;
      words.push(`${entry.one.label} ${text}`);
    }
    const x = this.plot.data[0];
    const where = `${this.spec.axes[this.axis]} ${digits(live ? x[index] : x[x.length - 1])}`;
    this.at.textContent = where;
    this.words = `${where}: ${words.join(", ")}`;
    if (!live) this.box.setAttribute("aria-label", `${this.spec.title}. Last values, at ${this.words}. Arrow keys read other points.`);
  }

  key(event) {
    const x = this.plot.data[0], steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const from = this.plot.cursor.idx ?? (steps[event.key] > 0 ? -1 : x.length);
    const to = Math.min(x.length - 1, Math.max(0, from + steps[event.key]));
    this.plot.setCursor({ left: this.plot.valToPos(x[to], "x"), top: 20 });
    this.numbers(to);
    announce(this.words);
  }

  leave() {
    this.plot.setCursor({ left: -10, top: -10 });
    this.numbers(null);
  }
}

(function drawCharts() {
  const holder = document.getElementById("charts");
  const charts = DATA.charts.filter((chart) => !chart.more).map((chart) => new Chart(chart, holder));
  if (!charts.length) holder.append(make("p", { class: "empty" }, "No metrics have been logged yet."));
  document.getElementById("smooth").addEventListener("change", () => redraws.forEach((redraw) => redraw()));
  const rest = DATA.charts.filter((chart) => chart.more), more = document.getElementById("more");
  if (!rest.length) return;
  more.hidden = false;
  more.addEventListener("toggle", () => {
    const inside = more.querySelector(".charts");
    if (more.open && !inside.childElementCount) rest.forEach((chart) => new Chart(chart, inside));
  });
})();
