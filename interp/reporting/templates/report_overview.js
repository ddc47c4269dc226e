/* The overview: a grid of heads coloured by a metric, the filters, and which head is chosen. */
const layers = page.layers, heads = page.heads;
const grid = document.getElementById("grid");
const metricChoice = document.getElementById("metric");
const filters = {
  layer: document.getElementById("only-layer"),
  kind: document.getElementById("only-kind"),
  group: document.getElementById("only-group"),
};
const cells = new Map();
let chosen = { row: 0, column: 0 };
const onChoice = [];

const groupOf = (column) => Math.floor(heads[column] / page.group_size);
const metric = () => page.metrics.find((m) => m.key === metricChoice.value);
const sideOf = () => document.getElementById("side")?.value ?? "first";
function valuesOf(m) {
  if (sideOf() === "second") return m.other;
  if (sideOf() === "difference") {
    const change = (one, other) => (one === null || other === null ? null : other - one);
    return m.values.map((line, r) => line.map((value, c) => change(value, m.other[r][c])));
  }
  return m.values;
}
const isShown = (row, column) =>
  (filters.layer.value === "" || filters.layer.value === String(layers[row].layer)) &&
  (filters.kind.value === "" || filters.kind.value === layers[row].kind) &&
  (filters.group.value === "" || filters.group.value === String(groupOf(column)));

function buildGrid() {
  grid.style.setProperty("--heads", heads.length);
  const top = element("div", { class: "row", role: "row" }, element("span", { role: "columnheader" }, ""));
  heads.forEach((head) => {
    const about = { class: "name", role: "columnheader", "aria-label": `head ${head}` };
    top.append(element("span", about, String(head)));
  });
  grid.append(top);
  layers.forEach((layer, r) => {
    const about = { role: "rowheader", "aria-label": `layer ${layer.layer}, ${layer.kind}` };
    const line = element("div", { class: "row", role: "row" }, element("span", about, String(layer.layer)));
    heads.forEach((head, c) => {
      const cell = element("button", { type: "button", role: "gridcell", tabindex: "-1", "data-row": r, "data-column": c });
      cell.addEventListener("click", () => choose(r, c));
      cells.set(`${r},${c}`, cell);
      line.append(cell);
    });
    grid.append(line);
  });
}

function paintGrid() {
  const m = metric(), values = valuesOf(m), all = values.flat().filter((x) => x !== null);
  const top = Math.max(...all.map(Math.abs), 1e-12), signed = all.some((x) => x < 0);
  const scale = (signed ? page.colours.diverging : page.colours.shades).map((c) => (dark() ? page.colours.dark[c] ?? c : c));
  for (const [at, cell] of cells) {
    const [r, c] = at.split(",").map(Number), value = values[r][c];
    const place = signed ? 0.5 + value / top / 2 : value / top;
    cell.style.background = value === null ? "transparent" : `rgb(${colourAt(scale, place).join(",")})`;
    const text = `${headName(layers[r].layer, heads[c])}: ${m.label} ${shown(value, m.units)}`;
    cell.title = text;
    cell.setAttribute("aria-label", text);
  }
  document.getElementById("key-low").textContent = shown(signed ? -top : 0, m.units);
  document.getElementById("key-high").textContent = shown(top, m.units) + unitOf(m);
  document.getElementById("key-colours").style.background = `linear-gradient(to right, ${scale.join(",")})`;
  document.getElementById("about-metric").textContent = m.about + (m.formula ? `: ${m.formula}` : "");
}

function applyFilters() {
  layers.forEach((_, r) => {
    const any = heads.some((_, c) => isShown(r, c));
    cells.get(`${r},0`).parentElement.hidden = !any;
    heads.forEach((_, c) => { cells.get(`${r},${c}`).disabled = !isShown(r, c); });
  });
  document.querySelectorAll("[data-of-head]").forEach((item) => {
    const [r, c] = item.dataset.ofHead.split(",").map(Number);
    item.hidden = !isShown(r, c);
  });
  document.querySelectorAll("[data-of-layer]").forEach((item) => {
    item.hidden = !heads.some((_, c) => isShown(Number(item.dataset.ofLayer), c));
  });
  const left = [...cells.keys()].map((at) => at.split(",").map(Number)).filter(([r, c]) => isShown(r, c));
  const said = left.length < cells.size ? `${left.length} of ${cells.size} heads match.` : "";
  document.getElementById("filtered").textContent = said;
  if (!isShown(chosen.row, chosen.column) && left.length) choose(...left[0]);
}

function choose(r, c, { scroll = false, focus = false, record = true } = {}) {
  chosen = { row: r, column: c };
  for (const [at, cell] of cells) {
    const mine = at === `${r},${c}`;
    cell.setAttribute("aria-selected", String(mine));
    cell.tabIndex = mine ? 0 : -1;
    if (mine && focus) cell.focus({ preventScroll: true });
    if (mine) keepInView(cell);
  }
  document.querySelectorAll("tr.chosen").forEach((line) => line.classList.remove("chosen"));
  document.querySelectorAll(`tr[data-of-head="${r},${c}"]`).forEach((line) => line.classList.add("chosen"));
  if (record) putInAddress(`#L${layers[r].layer}H${heads[c]}`);
  if (scroll) document.getElementById("explore").scrollIntoView();
  return Promise.all(onChoice.map((follow) => follow()));
}

function putInAddress(fragment) {
  try { history.replaceState(null, "", fragment); } catch { /* a page without an address of its own */ }
}

/* Scroll the grid, never the page, so that the chosen cell can be seen. */
function keepInView(cell) {
  const box = grid.parentElement, outer = box.getBoundingClientRect(), inner = cell.getBoundingClientRect();
  if (inner.top < outer.top) box.scrollTop -= outer.top - inner.top + 20;
  if (inner.bottom > outer.bottom) box.scrollTop += inner.bottom - outer.bottom + 20;
  if (inner.left < outer.left) box.scrollLeft -= outer.left - inner.left + 20;
  if (inner.right > outer.right) box.scrollLeft += inner.right - outer.right + 20;
}

/* The next head in a direction that the filters leave; it stays where there is none. */
function move(down, right) {
  let { row: r, column: c } = chosen;
  do { r += down; c += right; } while (r >= 0 && r < layers.length && c >= 0 && c < heads.length && !isShown(r, c));
  if (r >= 0 && r < layers.length && c >= 0 && c < heads.length) choose(r, c, { focus: true });
}
function step(by) {
  const order = [...cells.keys()].map((at) => at.split(",").map(Number)).filter(([r, c]) => isShown(r, c));
  const at = order.findIndex(([r, c]) => r === chosen.row && c === chosen.column);
  if (order.length) choose(...order[(at + by + order.length) % order.length]);
}

function fromAddress() {
  const found = /^#L(\d+)H(\d+)$/i.exec(location.hash);
  if (!found) return undefined;
  const r = layers.findIndex((layer) => layer.layer === Number(found[1])), c = heads.indexOf(Number(found[2]));
  if (r < 0 || c < 0) return undefined;
  if (!isShown(r, c)) Object.values(filters).forEach((filter) => { filter.value = ""; });
  applyFilters();
  return choose(r, c, { scroll: true, record: false });
}

const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
grid.addEventListener("keydown", (event) => {
  if (!MOVES[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  move(...MOVES[event.key]);
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  if (event.key === "n") step(1);
  if (event.key === "p") step(-1);
});
