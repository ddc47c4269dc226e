/* What is in view as two small figures: mean by distance, and a histogram. */
import { isSigned } from "./colours.js";
import { el, svg } from "./dom.js";
import { grouped, powerOfTen, roundUp, shown } from "./numbers.js";

const WIDTH = 300, HEIGHT = 156, LEFT = 52, BOTTOM = 32, TOP = 8, RIGHT = 8;

/* Positions along an axis, and its ticks as [place, text]. */
function axisOf(low, high, from, to, log) {
  if (high <= low) high = low + 1;
  const place = (x) => from + ((x - low) / (high - low)) * (to - from);
  const ticks = [];
  if (log) {
    const step = Math.max(1, Math.ceil((high - low) / 5));
    for (let e = Math.ceil(low - 1e-9); e <= high + 1e-9; e += step) ticks.push([place(e), powerOfTen(e)]);
  } else {
    const step = roundUp((high - low) / 4);
    for (let x = Math.ceil(low / step - 1e-9) * step; x <= high + step * 1e-9; x += step) ticks.push([place(x), Math.abs(x) < step / 1e6 ? "0" : Math.abs(x) >= 1000 ? grouped(x) : shown(x)]);
    while (ticks.length > 6) ticks.splice(1, ticks.length - 2, ...ticks.slice(1, -1).filter((_, i) => i % 2));
  }
  return { place, ticks };
}

function frame(x, y, titles) {
  const chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": titles.said, class: "rx-chart" });
  for (const [at, text] of y.ticks) {
    chart.append(svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: at, y2: at, class: "rx-chart-grid" }));
    chart.append(svg("text", { x: LEFT - 5, y: at + 3.5, "text-anchor": "end" }, text));
  }
  for (const [at, text] of x.ticks) chart.append(svg("text", { x: at, y: HEIGHT - BOTTOM + 13, "text-anchor": "middle" }, text));
  chart.append(svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM, class: "rx-chart-axis" }));
  chart.append(svg("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, titles.x));
  return chart;
}

export class Charts {
  constructor(app) {
    this.app = app;
    this.curve = el("div", { class: "rx-figure" });
    this.histogram = el("div", { class: "rx-figure" });
    this.element = el("section", { class: "rx-charts", "aria-label": "What is in view" },
      el("h3", {}, "In view, by distance"), this.curve, el("h3", {}, "In view, how often"), this.histogram);
  }

  /* Asked once the map stands still and its tiles are there, so that nothing new has to be computed for it. */
  async update() {
    const asked = this.app.windowAsked("in_view"), turn = ++this.turn || (this.turn = 1);
    if (!asked) return;
    let arrays;
    try { ({ arrays } = await this.app.ask(asked)); } catch { return; }
    if (turn !== this.turn) return;
    this.#drawCurve(arrays);
    this.#drawHistogram(arrays);
  }

  #drawCurve({ distance, curve }) {
    const { state } = this.app, signed = isSigned(state.view), points = [];
    for (let i = 0; i < curve.length; i++) {
      const [d, v] = [Math.abs(distance[i]), curve[i]];
      if (!signed && !(v > 0)) continue;
      points.push([Math.log10(d + 1), signed ? v : Math.log10(v)]);
    }
    if (points.length < 2) return this.curve.replaceChildren(el("p", { class: "rx-about" }, "Too few distances are in view."));
    points.sort((a, b) => a[0] - b[0]);
    const xs = points.map(([x]) => x), ys = points.map(([, y]) => y);
    const x = axisOf(Math.min(...xs), Math.max(...xs), LEFT, WIDTH - RIGHT, true);
    const y = axisOf(Math.min(...ys), Math.max(...ys), HEIGHT - BOTTOM, TOP, !signed);
    const chart = frame(x, y, { x: "distance + 1 [tokens]", said: `mean ${state.view} by distance, ${grouped(points.length)} distances` });
    chart.append(svg("polyline", { points: points.map(([a, b]) => `${x.place(a).toFixed(1)},${y.place(b).toFixed(1)}`).join(" "), class: "rx-chart-line" }));
    this.curve.replaceChildren(chart);
    return undefined;
  }

  #drawHistogram({ counts, edges }) {
    const { state } = this.app, log = state.view === "pattern" || state.view === "value", most = Math.max(...counts, 1);
    const x = axisOf(edges[0], edges.at(-1), LEFT, WIDTH - RIGHT, log), y = axisOf(0, most, HEIGHT - BOTTOM, TOP, false);
    const chart = frame(x, y, { x: log ? `${state.view === "value" ? "weighted attention" : "attention"} of a pixel` : `${state.view} of a pixel`, said: `histogram of ${grouped(counts.reduce((a, b) => a + b, 0))} pixels` });
    counts.forEach((count, i) => {
      const [left, right, top] = [x.place(edges[i]), x.place(edges[i + 1]), y.place(count)];
      chart.append(svg("rect", { x: left, width: Math.max(right - left - 0.6, 0.6), y: top, height: HEIGHT - BOTTOM - top, class: "rx-chart-bar" }));
    });
    this.histogram.replaceChildren(chart);
  }
}
