/* How a value becomes a colour, and the legend that says so. */
import { clamp, powerOfTen, roundUp, shown } from "./numbers.js";

/* The scales of every figure of this project, light and dark. */
export const SCALES = {
  light: {
    shades: ["#ffffff", "#dbe9f6", "#9fc9e6", "#4a98c9", "#1764ab", "#08264f"],
    diverging: ["#7a3300", "#d9701a", "#f6cda8", "#fdfdfe", "#a9cde8", "#2f7fbd", "#0a3a6b"],
    hidden: "#eef1f4", outside: "#e3e8ed", ink: "#1f2933", quiet: "#5b6773", line: "#c3ccd5", paper: "#ffffff",
    pin: "#b5179e", hover: "#d55e00",
  },
  dark: {
    shades: ["#161b22", "#16304a", "#1f5580", "#3b86b8", "#86bfe4", "#e8f4ff"],
    diverging: ["#ffb37a", "#d9803a", "#6e4423", "#191e26", "#234a68", "#4c97cc", "#a8d8fb"],
    hidden: "#0e1319", outside: "#090d12", ink: "#e3e9ef", quiet: "#a3b0bd", line: "#39434e", paper: "#161b22",
    pin: "#f57fe0", hover: "#f08a4b",
  },
};
const STEPS = 512;
const channels = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

/* A scale as 512 packed colours, as ImageData wants them. */
function packedScale(colours) {
  const packed = new Uint32Array(STEPS), stops = colours.map(channels);
  for (let i = 0; i < STEPS; i++) {
    const at = (i / (STEPS - 1)) * (stops.length - 1), low = Math.min(Math.floor(at), stops.length - 2);
    const [r, g, b] = [0, 1, 2].map((c) => Math.round(stops[low][c] * (low + 1 - at) + stops[low + 1][c] * (at - low)));
    packed[i] = (255 << 24) | (b << 16) | (g << 8) | r;
  }
  return packed;
}
const packedScales = new Map();
function packedOf(theme, name) {
  const key = `${theme} ${name}`;
  if (!packedScales.has(key)) packedScales.set(key, packedScale(SCALES[theme][name]));
  return packedScales.get(key);
}

const awayFromZero = (view) => view === "difference" || view === "attribution";
export const isSigned = (view) => view === "score" || awayFromZero(view);

/* What the colours span: `top` is the value at the end of the scale, and `decades` how far a logarithm goes below it. */
export function spanOf(view, how, n, largest) {
  const decades = Math.max(3, Math.ceil(Math.log10(n)) + 1);
  const most = roundUp(largest || 1), top = view !== "pattern" ? most : how === "log" ? 1 : Math.min(most, 1);
  return { view, how: view === "score" ? "linear" : how, top, decades: awayFromZero(view) ? 4 : decades };
}
export const spanKey = (span) => `${span.view} ${span.how} ${span.top} ${span.decades}`;

/* Where a value lies on its scale, 0 … 1. */
export function placeOf(value, { view, how, top, decades }) {
  const size = Math.abs(value) / top;
  const along = how === "log" ? (size > 0 ? 1 + Math.log10(size) / decades : 0) : size;
  const place = clamp(along, 0, 1);
  return isSigned(view) ? 0.5 + (Math.sign(value) * place) / 2 : place;
}

export function cssColour(value, span, theme) {
  const packed = packedOf(theme, isSigned(span.view) ? "diverging" : "shades")[Math.round(placeOf(value || 0, span) * (STEPS - 1))];
  return `rgb(${packed & 255},${(packed >> 8) & 255},${(packed >> 16) & 255})`;
}

/* Black or white, whichever can be read on a value's colour. */
export function inkOver(value, span, theme) {
  const light = (c) => (c <= 10 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4);
  const [r, g, b] = cssColour(value, span, theme).match(/\d+/g).map((c) => light(Number(c)));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000000" : "#ffffff";
}

/* A canvas of one pixel a value; hidden ones have the page's own quiet colour. */
export function paintPixels(values, [height, width], span, theme) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  const out = new Uint32Array(image.data.buffer), signed = isSigned(span.view);
  const packed = packedOf(theme, signed ? "diverging" : "shades");
  const [r, g, b] = channels(SCALES[theme].hidden), none = ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
  const { how, top, decades } = span, last = STEPS - 1, scale = 1 / (decades * Math.LN10), log = how === "log";
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    if (value !== value) { out[i] = none; continue; }
    const size = Math.abs(value) / top;
    let place = log ? (size > 0 ? 1 + Math.log(size) * scale : 0) : size;
    place = place < 0 ? 0 : place > 1 ? 1 : place;
    if (signed) place = value < 0 ? 0.5 - place / 2 : 0.5 + place / 2;
    out[i] = packed[(place * last + 0.5) | 0];
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

const VIEW_WORDS = {
  pattern: "attention", score: "score", value: "attention × ‖v W_O‖", difference: "change of attention",
  attribution: "effect, to first order, on",
};
/* What a view shows, in words; an effect is one on a metric. */
export const viewWords = (view, metric) => (view === "attribution" ? `${VIEW_WORDS[view]} ${metric}` : VIEW_WORDS[view]);

/* What the legend says: ticks as [place, text], and one line on scale and pooling. */
export function legendOf(span, pool, cells, metric) {
  const { view, how, top, decades } = span, ticks = [];
  if (how === "log" && !awayFromZero(view)) {
    const end = Math.log10(top), step = decades > 4 ? 2 : 1;
    for (let down = 0; down <= decades; down += step) {
      const whole = Math.abs(end - Math.round(end)) < 1e-9;
      ticks.unshift([1 - down / decades, whole ? powerOfTen(Math.round(end) - down) : shown(top * 10 ** -down, 2)]);
    }
  } else if (isSigned(view)) {
    ticks.push([0, shown(-top, 2)], [0.5, "0"], [1, shown(top, 2)]);
  } else ticks.push([0, "0"], [0.5, shown(top / 2, 2)], [1, shown(top, 2)]);
  const kinds = how === "log" ? (awayFromZero(view) ? `logarithmic away from 0, from ${shown(top * 10 ** -decades, 1)}` : "logarithmic") : "linear";
  const extreme = awayFromZero(view) ? "the cell farthest from 0" : "the largest cell";
  const each = cells === 1 ? "1 pixel is 1 pair: exact" : `1 pixel is ${cells} × ${cells} pairs: ${pool === "mean" ? "their mean" : extreme}, exact`;
  return { ticks, line: `${viewWords(view, metric)}, ${kinds}`, each };
}

export function gradient(span, theme) {
  return `linear-gradient(to right, ${SCALES[theme][isSigned(span.view) ? "diverging" : "shades"].join(",")})`;
}
