/* The panel's map: the whole text pooled, or the last tokens exactly. */
const MAP_DECADES = page.map_decades;
let mapView = "whole";

/* Maps are PNG files in the page; their one chunk of pixels is read back, so that the panel draws the same numbers. */
const mapCache = new Map();
async function mapLevels(image) {
  if (mapCache.has(image.id)) return mapCache.get(image.id);
  const file = bytesOf(image.src.split(",")[1]), view = new DataView(file.buffer);
  let width = 0, at = 8, pixels = null;
  while (at < file.length) {
    const length = view.getUint32(at), kind = String.fromCharCode(...file.subarray(at + 4, at + 8));
    if (kind === "IHDR") width = view.getUint32(at + 8);
    if (kind === "IDAT") pixels = file.slice(at + 8, at + 8 + length);
    at += 12 + length;
  }
  const stream = new Blob([pixels]).stream().pipeThrough(new DecompressionStream("deflate"));
  const raw = new Uint8Array(await new Response(stream).arrayBuffer()), lines = [];
  for (let start = 0; start < raw.length; start += width + 1) lines.push(raw.subarray(start + 1, start + 1 + width));
  mapCache.set(image.id, lines);
  return lines;
}

/* Level 0 is no pair at all; 1 … 255 are 10^-MAP_DECADES … 1. */
const exponentOf = (level) => (level === 0 ? null : ((level - 1) / 254 - 1) * MAP_DECADES);
const exponents = (lines) => lines.map((line) => Array.from(line, exponentOf));
const attentionOf = (e) => (e <= -MAP_DECADES ? `at most ${10 ** -MAP_DECADES}` : (10 ** e).toPrecision(2));
const COLOUR_BAR = {
  thickness: 8, len: 1, outlinewidth: 0, tickfont: { size: 10 },
  tickvals: [-5, -4, -3, -2, -1, 0], ticktext: ["≤10⁻⁵", "10⁻⁴", "0.001", "0.01", "0.1", "1"],
};
const heat = (x, y, z) => ({
  type: "heatmap", x, y, z, zmin: -MAP_DECADES, zmax: 0, hoverongaps: false, colorbar: COLOUR_BAR,
  colorscale: page.colours.shades.map((colour, i, all) => [i / (all.length - 1), colour]),
});

/* Cells of 5 and 6 tokens take turns; drawn evenly, which is off by less than one of them, plotly is ten times as fast. */
function evenly(places) {
  const step = (places.at(-1) - places[0]) / Math.max(places.length - 1, 1);
  return places.map((_, i) => places[0] + step * i);
}

async function drawMap(r, c) {
  if (mapView === "last") return drawWindow(r, c);
  const [side, name] = mapView === "second" ? [page.second, "second"] : [page.first, "first"];
  const z = exponents(await mapLevels(document.getElementById(`map-${name}-${r}-${c}`)));
  if (chosen.row !== r || chosen.column !== c) return undefined;
  const trace = {
    ...heat(evenly(Array.from(unpack(side.map.key))), evenly(Array.from(unpack(side.map.query))), z),
    customdata: z.map((line) => line.map((e) => (e === null ? null : 10 ** e))),
    hovertemplate: "query %{y:,.0f}, key %{x:,.0f}: %{customdata:.2g}<extra></extra>",
  };
  const square = { tickformat: ",", showgrid: false, constrain: "domain" };
  return chart("panel-map", [trace], {
    xaxis: axis("key position [tokens]", square),
    yaxis: axis("query position [tokens]", { ...square, autorange: "reversed", scaleanchor: "x" }),
    margin: { l: 58, r: 4, t: 8, b: 42 },
  });
}

function drawWindow(r, c) {
  const w = page.first.window, n = w.shape[2], levels = row(w, r, c), place = Array.from({ length: n }, (_, i) => i);
  const z = exponents(place.map((i) => levels.subarray(i * n, (i + 1) * n)));
  const label = (i) => `${w.position[i]} ${plotText(w.token[i])}`;
  const said = (e, i, j) => (e === null ? "" : `query ${label(i)}<br>key ${label(j)}<br>${attentionOf(e)}`);
  const text = z.map((line, i) => line.map((e, j) => said(e, i, j)));
  const short = (i) => plotText(w.token[i].length > 9 ? `${w.token[i].slice(0, 8)}…` : w.token[i]);
  const every = place.filter((i) => i % 2 === 0);
  const ticks = { tickvals: every, ticktext: every.map(short), tickfont: { size: 9 }, showgrid: false };
  return chart("panel-map", [{ ...heat(place, place, z), text, hovertemplate: "%{text}<extra></extra>" }], {
    xaxis: axis("key", { ...ticks, tickangle: -90 }),
    yaxis: axis("query", { ...ticks, autorange: "reversed" }),
    margin: { l: 70, r: 4, t: 8, b: 70 },
  });
}
