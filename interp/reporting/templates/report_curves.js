/* The panel's curves: attention and scores by distance, and the histogram of scores beside the bound. */
const sides = page.second ? [page.first, page.second] : [page.first];
const sideNames = ["first", "second"];
const SECOND = { dash: "dot", width: 2 };
let distanceView = "attention_mean";

const axis = (title, more = {}) => ({ title: { text: title, font: { size: 12 } }, tickfont: { size: 11 }, ...more });
const CHART = { template: page.template, margin: { l: 54, r: 12, t: 8, b: 42 }, font: { size: 11 }, showlegend: false };
const LEGEND = { showlegend: sides.length > 1, legend: { x: 1, xanchor: "right", y: 1, yanchor: "top" } };
function chart(id, traces, layout) {
  const place = document.getElementById(id);
  return Plotly.react(place, exchange(traces), exchange({ ...CHART, ...layout }), { ...config, displayModeBar: false });
}

/* Distances on a log axis; Δ = 0 is half a step left of 1. */
const centres = (d) => d.first.map((a, i) => (a > 0 ? Math.sqrt(a * d.last[i]) : 0.5));
const spans = (d) => d.first.map((a, i) => (a === d.last[i] ? grouped(a) : `${grouped(a)}–${grouped(d.last[i])}`));
function distanceAxis(d) {
  const top = Math.max(...d.last, 1), ticks = [0.5], text = ["0"];
  for (let x = 1; x <= top; x *= 10) { ticks.push(x); text.push(grouped(x)); }
  const range = [Math.log10(0.4), Math.log10(top * 1.08)];
  return axis("distance Δ [tokens]", { type: "log", tickvals: ticks, ticktext: text, range });
}
function windowMark(layer, top) {
  if (!layer.window || layer.window > top + 1) return {};
  const line = { color: page.colours.quiet, width: 1, dash: "dot" };
  const text = { text: `window ${grouped(layer.window)}`, font: { size: 10, color: page.colours.quiet } };
  const place = { x: Math.log10(layer.window), y: 1, yref: "paper", yanchor: "bottom", xanchor: "right" };
  return {
    shapes: [{ type: "line", x0: layer.window, x1: layer.window, y0: 0, y1: 1, yref: "paper", line }],
    annotations: [{ ...place, ...text, showarrow: false }],
  };
}

/* Under two decades, ticks at 2 and 5 as well. */
function decades(traces) {
  const drawn = traces.flatMap((trace) => trace.y).filter((y) => y !== null);
  return { type: "log", exponentformat: "power", dtick: Math.max(...drawn) < 100 * Math.min(...drawn) ? "D2" : 1 };
}

function drawDistance(r, c) {
  const log = distanceView === "attention_mean";
  const traces = sides.map((side, i) => ({
    x: centres(side.distance),
    y: finite(row(side.distance[distanceView], r, c)).map((y) => (y > 0 || !log ? y : null)),
    customdata: spans(side.distance),
    mode: "lines+markers",
    marker: { size: 3.5 },
    line: { color: page.colours.series[i], width: 1.8, ...(i ? SECOND : {}) },
    name: sideNames[i],
    hovertemplate: `Δ %{customdata}: %{y:.3g}<extra>${sides.length > 1 ? sideNames[i] : ""}</extra>`,
  }));
  const share = { rangemode: "tozero", tickformat: ".0%" };
  return chart("panel-distance", traces, {
    xaxis: distanceAxis(page.first.distance),
    yaxis: axis(log ? "mean attention of a pair" : "share of the head's attention", log ? decades(traces) : share),
    margin: { l: 58, r: 12, t: 18, b: 42 },
    ...LEGEND,
    ...windowMark(layers[r], Math.max(...page.first.distance.last)),
  });
}

/* Between which scores all pairs lie, as two lines with the area between them. */
function scoreArea(d, r, c) {
  const edge = { x: centres(d), mode: "lines", line: { width: 0 }, hoverinfo: "skip" };
  const area = { fill: "tonexty", fillcolor: "rgba(128,140,155,0.22)", name: "all scores" };
  return [{ ...edge, y: finite(row(d.score_max, r, c)) }, { ...edge, ...area, y: finite(row(d.score_min, r, c)) }];
}
function bandLines(bands, r, c) {
  const x = centres(bands), customdata = spans(bands), colours = page.colours.series;
  const lines = bands.labels.map((name, b) => ({
    x, y: finite(row(bands.score, r, c, b)), customdata, name, mode: "lines",
    line: { color: colours[(b + 1) % colours.length], width: 1.3 },
    hovertemplate: `${plotText(name)}, Δ %{customdata}: %{y:.3g}<extra></extra>`,
  }));
  return lines.filter((line) => line.y.some((y) => y !== null));
}
function drawScores(r, c) {
  const means = sides.map((side, i) => ({
    x: centres(side.distance),
    y: finite(row(side.distance.score_mean, r, c)),
    customdata: spans(side.distance),
    mode: "lines",
    line: { color: page.colours.ink, width: 2.2, ...(i ? SECOND : {}) },
    name: i ? "mean, second" : "mean score",
    hovertemplate: "mean score, Δ %{customdata}: %{y:.4g}<extra></extra>",
  }));
  const bands = page.first.bands ? bandLines(page.first.bands, r, c) : [];
  const traces = [...scoreArea(page.first.distance, r, c), ...bands, ...means];
  const xaxis = distanceAxis(page.first.distance);
  chart("panel-scores", traces, { xaxis, yaxis: axis("score", { zeroline: true }) });
  drawKey(traces.filter((trace) => trace.name));
}

/* The key to the lines, as text that wraps. */
function drawKey(traces) {
  document.getElementById("scores-key").replaceChildren(...traces.map((trace) => {
    const swatch = element("i", {});
    swatch.style.background = exchange(trace.fillcolor ?? trace.line.color);
    return element("span", {}, swatch, trace.name);
  }));
}

function drawHistogram(r, c) {
  const [first, second] = page.colours.series;
  const bars = (step) => ({ type: "bar", width: step, marker: { color: first, line: { width: 0 } } });
  const outline = { mode: "lines", line: { shape: "hvh", color: second, width: 1.8 } };
  const traces = sides.map((side, i) => {
    const h = side.histogram, low = h.low[r][c], share = finite(row(h.share, r, c));
    const step = (h.high[r][c] - low) / share.length, edge = (k) => shown(low + k * step);
    return {
      x: share.map((_, k) => low + (k + 0.5) * step),
      y: share,
      customdata: share.map((_, k) => `${edge(k)} … ${edge(k + 1)}`),
      ...(i ? outline : bars(step)),
      name: sideNames[i],
      hovertemplate: "scores %{customdata}: %{y:.2%} of pairs<extra></extra>",
    };
  });
  const yaxis = axis("share of pairs", { tickformat: ".1~%", rangemode: "tozero" });
  chart("panel-histogram", traces, { xaxis: axis("score"), yaxis, bargap: 0, ...LEGEND });
  drawGauge(r, c);
}

/* How much of the room between −bound and +bound the scores take. */
function drawGauge(r, c) {
  const h = page.first.histogram, bound = h.bound[r][c], gauge = document.getElementById("gauge");
  gauge.classList.toggle("boundless", bound === null);
  const text = document.getElementById("gauge-text"), span = `${shown(h.low[r][c])} … ${shown(h.high[r][c])}`;
  if (bound === null) { text.textContent = `Scores ${span}; the weights prove no bound.`; return; }
  const place = (score) => 50 + (50 * Math.min(Math.max(score / bound, -1), 1));
  const bar = gauge.firstElementChild;
  bar.style.left = `${place(h.low[r][c])}%`;
  bar.style.width = `max(3px, ${place(h.high[r][c]) - place(h.low[r][c])}%)`;
  text.textContent = `Scores ${span}, in a frame from −bound to +bound, ±${shown(bound)}.`;
}
