/* What the charts and the inspector share. Text from data reaches the page through textContent alone. */
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const redraws = []; // called when the theme changes

/** An element: tag, its properties (class, attributes by name, on: {event: function}), its children (elements or text). */
function make(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "on") for (const [event, run] of Object.entries(value)) node.addEventListener(event, run);
    else if (key === "class") node.className = value;
    else if (key in node && typeof value !== "string") node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function cssColor(name, fallback = "other") {
  const style = getComputedStyle(document.documentElement);
  return style.getPropertyValue(`--${name}`).trim() || style.getPropertyValue(`--${fallback}`).trim();
}

function faded(color, alpha) {
  const n = parseInt(color.slice(1), 16);
  return `rgb(${n >> 16} ${(n >> 8) & 255} ${n & 255} / ${alpha})`;
}

/** A number in few digits: what is below 0.001 in powers of ten. */
function digits(value, percent = false) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (percent) return `${(100 * value).toFixed(1)} %`;
  const size = Math.abs(value);
  if (size >= 1e6) return value.toExponential(2);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  if (Number.isInteger(value)) return String(value);
  if (size >= 100) return value.toFixed(1);
  if (size >= 1) return value.toFixed(2);
  if (size >= 0.001) return value.toFixed(4).replace(/0+$/, "");
  return value.toExponential(1);
}

function announce(text) {
  document.getElementById("announce").textContent = text;
}

/** One choice of several as radio buttons; `pick(key)` is called with the chosen key. */
function choices(title, name, options, chosen, pick) {
  const buttons = Object.entries(options).map(([key, label]) =>
    make("label", { class: "choice" },
      make("input", { type: "radio", name, value: key, checked: key === chosen, on: { change: () => pick(key) } }), ` ${label}`));
  return make("fieldset", {}, make("legend", {}, title), ...buttons);
}

function remembered(store, key, value) {
  try { // storage can be forbidden for pages from disk
    if (value === undefined) return window[store].getItem(key);
    window[store].setItem(key, value);
  } catch { /* then nothing is remembered */ }
  return null;
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  document.getElementById("theme").textContent = theme === "dark" ? "Light theme" : "Dark theme";
  for (const redraw of redraws) redraw();
}

(function start() {
  for (const node of document.querySelectorAll("[data-needs-script]")) node.hidden = false;
  document.getElementById("tools").hidden = false;
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const saved = remembered("localStorage", "reft-theme");
  setTheme(saved || (system.matches ? "dark" : "light"));
  system.addEventListener("change", () => {
    if (!remembered("localStorage", "reft-theme")) setTheme(system.matches ? "dark" : "light");
  });
  document.getElementById("theme").addEventListener("click", () => {
    const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    remembered("localStorage", "reft-theme", theme);
    setTheme(theme);
  });
  if (DATA.watch) {
    const box = document.getElementById("reload");
    document.getElementById("live").hidden = false;
    box.checked = remembered("sessionStorage", "reft-reload") === "yes";
    box.addEventListener("change", () => remembered("sessionStorage", "reft-reload", box.checked ? "yes" : "no"));
    setInterval(() => { if (box.checked) location.reload(); }, 1000 * DATA.watch);
  }
})();
