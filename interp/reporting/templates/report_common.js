"use strict";
/* What every part of the page uses: the data, colours in both themes, numbers as text, packed arrays. */
const readJson = (id) => JSON.parse(document.getElementById(id).textContent);
const page = readJson("page-data");
const dark = () => document.documentElement.dataset.theme === "dark";
const config = {
  responsive: true, displaylogo: false, displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
};

/* Figures come in light colours; each has its partner. Text and data are never touched. */
const CONTENT = new Set(page.colours.content);
function exchange(value) {
  if (!dark()) return value;
  if (typeof value === "string") return page.colours.dark[value] ?? value;
  if (Array.isArray(value)) return value.map(exchange);
  if (value && typeof value === "object" && !ArrayBuffer.isView(value)) {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, CONTENT.has(key) ? item : exchange(item)]));
  }
  return value;
}

/* A packed float32 array, and one row of it by its leading indices. */
function unpack(packed) {
  if (!packed.values) {
    const bytes = bytesOf(packed.f4 ?? packed.u1);
    packed.values = packed.f4 !== undefined ? new Float32Array(bytes.buffer) : bytes;
  }
  return packed.values;
}
function bytesOf(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}
function row(packed, ...index) {
  const shape = packed.shape;
  let at = 0;
  index.forEach((i, axis) => { at = at * shape[axis] + i; });
  const size = shape.slice(index.length).reduce((a, b) => a * b, 1);
  return unpack(packed).subarray(at * size, (at + 1) * size);
}
const finite = (values) => Array.from(values, (x) => (Number.isFinite(x) ? x : null));

/* Numbers as a reader wants them: three digits, a true minus. */
function shown(value, units) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (units === "%") return `${(value * 100).toFixed(Math.abs(value) < 0.0995 ? 1 : 0)}%`.replace("-", "−");
  const rounded = Number(value.toPrecision(3));
  const text = Math.abs(rounded) >= 1000 && Math.abs(rounded) < 1e7 ? rounded.toLocaleString("en-US") : String(rounded);
  return text.replace("-", "−");
}
const unitOf = (metric) => (["", "%", "score"].includes(metric.units) ? "" : ` ${metric.units}`);
const plotText = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/ /g, "·");
const grouped = (number) => number.toLocaleString("en-US");
const headName = (layer, head) => `L${layer} H${head}`;
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/* The colour at a place in 0 … 1 of a scale of hexadecimal colours. */
function colourAt(scale, place) {
  const at = Math.min(Math.max(place, 0), 1) * (scale.length - 1), low = Math.min(Math.floor(at), scale.length - 2);
  const channel = (colour, i) => parseInt(colour.slice(1 + 2 * i, 3 + 2 * i), 16);
  const mixed = (i) => channel(scale[low], i) * (low + 1 - at) + channel(scale[low + 1], i) * (at - low);
  return [0, 1, 2].map((i) => Math.round(mixed(i)));
}
