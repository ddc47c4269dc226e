/* One head as a map: a canvas with rulers, drawn from the tiles that are there. */
import { SCALES, paintPixels, spanKey } from "./colours.js";
import { el } from "./dom.js";
import { clamp, shown } from "./numbers.js";
import { drawRuler } from "./rulers.js";

const GRID_FROM = 12; // pixels of a cell from which cells have edges
const NUMBERS_FROM = 46; // and from which they say their value

export class MapPane {
  constructor(app, head) {
    Object.assign(this, { app, head });
    this.canvas = el("canvas", { "aria-hidden": "true" });
    this.title = el("button", { type: "button", class: "rx-pane-title", onclick: () => app.closePane(this.head) });
    this.element = el("div", { class: "rx-pane" }, this.canvas, this.title);
    this.backdrop = null;
  }

  /* Size in pixels of the page; the map itself lies right of and below the rulers. */
  layout() {
    const box = this.element.getBoundingClientRect(), ratio = devicePixelRatio || 1;
    this.ruler = box.width < 480 ? 62 : 92;
    this.width = Math.max(box.width, 60);
    this.height = Math.max(box.height, 60);
    const [w, h] = [Math.round(this.width * ratio), Math.round(this.height * ratio)];
    if (this.canvas.width !== w || this.canvas.height !== h) [this.canvas.width, this.canvas.height] = [w, h];
    this.ratio = ratio;
    this.middle = [(this.width + this.ruler) / 2, (this.height + this.ruler) / 2];
  }

  get span() {
    return [this.width - this.ruler, this.height - this.ruler];
  }

  /* Cells to pixels and back. */
  toX(key) { return this.middle[0] + (key - this.app.state.x) / this.app.state.z; }
  toY(query) { return this.middle[1] + (query - this.app.state.y) / this.app.state.z; }
  cellAt(x, y) {
    const { state, facts } = this.app;
    const key = Math.floor(state.x + (x - this.middle[0]) * state.z), query = Math.floor(state.y + (y - this.middle[1]) * state.z);
    const inside = key >= 0 && query >= 0 && key < facts.n && query < facts.n && x >= this.ruler && y >= this.ruler;
    return inside ? { query, key } : null;
  }

  /* Cells a pixel of the tiles that fit this zoom. */
  get scale() {
    const { state, facts } = this.app;
    return clamp(2 ** Math.floor(Math.log2(state.z) + 1e-9), 1, facts.top_scale);
  }

  /* Runs of queries and keys that are in sight. */
  inSight() {
    const { state, facts } = this.app, [w, h] = this.span;
    const run = (middle, size) => [
      clamp(Math.floor(middle - (size * state.z) / 2), 0, facts.n - 1), clamp(Math.ceil(middle + (size * state.z) / 2), 1, facts.n),
    ];
    return { keys: run(state.x, w), queries: run(state.y, h) };
  }

  /* The tiles in sight, those in the middle first; above the diagonal of a causal text there is nothing to ask for. */
  wanted() {
    const { state, facts } = this.app, scale = this.scale, step = scale * facts.tile, { keys, queries } = this.inSight();
    const picture = this.app.pictureOf(this.head), found = [];
    for (let row = Math.floor(queries[0] / step); row * step < queries[1]; row++) {
      for (let column = Math.floor(keys[0] / step); column * step < keys[1]; column++) {
        if (this.app.isHidden(this.head, row * step, (row + 1) * step, column * step, (column + 1) * step)) continue;
        const away = Math.hypot((row + 0.5) * step - state.y, (column + 0.5) * step - state.x) / step;
        const key = this.app.store.key(picture.text, scale, row, column);
        found.push({ key, away, question: { kind: "tile", ...picture.asked, scale, row, column } });
      }
    }
    return found.sort((a, b) => a.away - b.away);
  }

  /* The largest value in sight, of the tiles that are there. */
  largest() {
    let top = 0;
    for (const { key } of this.wanted()) {
      const tile = this.app.store.held.get(key);
      if (!tile) continue;
      const pool = this.app.state.pool;
      tile.tops ??= {};
      tile.tops[pool] ??= tile[pool].reduce((most, x) => (x === x && Math.abs(x) > most ? Math.abs(x) : most), 0);
      top = Math.max(top, tile.tops[pool]);
    }
    return top;
  }

  draw() {
    const { state, facts } = this.app, context = this.canvas.getContext("2d"), colours = SCALES[this.app.theme];
    this.ready = true;
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.fillStyle = colours.outside;
    context.fillRect(0, 0, this.width, this.height);
    context.save();
    context.beginPath();
    const [left, top] = [Math.max(this.toX(0), this.ruler), Math.max(this.toY(0), this.ruler)];
    context.rect(left, top, Math.min(this.toX(facts.n), this.width) - left, Math.min(this.toY(facts.n), this.height) - top);
    context.clip();
    context.fillStyle = colours.hidden;
    context.fillRect(0, 0, this.width, this.height);
    this.#drawBackdrop(context);
    this.#drawTiles(context);
    this.#drawCells(context, colours);
    this.#drawPins(context, colours);
    context.restore();
    this.#drawRulers(context, colours, state, facts);
  }

  /* The statistics' own small map: there before any tile is. */
  #drawBackdrop(context) {
    const { state, facts } = this.app;
    if (!this.backdrop || state.view !== "pattern" || state.variant) return;
    const values = this.backdrop[state.pool], key = `${state.pool} ${spanKey(this.app.span)} ${this.app.theme}`;
    if (this.backdrop.key !== key) {
      this.backdrop.painted = paintPixels(values, values.shape, this.app.span, this.app.theme);
      this.backdrop.key = key;
    }
    context.imageSmoothingEnabled = false;
    context.drawImage(this.backdrop.painted, this.toX(0), this.toY(0), facts.n / state.z, facts.n / state.z);
  }

  #drawTiles(context) {
    const { store, facts } = this.app, scale = this.scale, picture = this.app.pictureOf(this.head).text, { keys, queries } = this.inSight();
    // Coarse ones first; a finer one that is there covers what it is finer than.
    for (let coarse = facts.top_scale; coarse > scale; coarse /= 2) this.#drawLevel(context, picture, coarse, keys, queries, (key) => store.held.get(key));
    this.#drawLevel(context, picture, scale, keys, queries, (key) => {
      const tile = store.get(key);
      if (!tile) this.ready = false;
      return tile;
    });
  }

  #drawLevel(context, picture, scale, keys, queries, find) {
    const { facts, state, store } = this.app, step = scale * facts.tile;
    context.imageSmoothingEnabled = false;
    for (let row = Math.floor(queries[0] / step); row * step < queries[1]; row++) {
      for (let column = Math.floor(keys[0] / step); column * step < keys[1]; column++) {
        if (this.app.isHidden(this.head, row * step, (row + 1) * step, column * step, (column + 1) * step)) continue;
        const tile = find(store.key(picture, scale, row, column));
        if (!tile) continue;
        const [height, width] = tile.shape, snap = (x) => Math.round(x * this.ratio) / this.ratio;
        const [x, y] = [snap(this.toX(column * step)), snap(this.toY(row * step))];
        const [right, bottom] = [snap(this.toX(column * step + width * scale)), snap(this.toY(row * step + height * scale))];
        context.drawImage(this.#painted(tile, state.pool), x, y, right - x, bottom - y);
      }
    }
  }

  #painted(tile, pool) {
    const key = `${pool} ${spanKey(this.app.span)} ${this.app.theme}`;
    if (!tile.painted.has(key)) {
      if (tile.painted.size > 1) tile.painted.clear();
      tile.painted.set(key, paintPixels(tile[pool], tile.shape, this.app.span, this.app.theme));
    }
    return tile.painted.get(key);
  }

  /* Edges and values of single cells, once there is room. */
  #drawCells(context, colours) {
    const { state } = this.app, cell = 1 / state.z;
    if (cell < GRID_FROM) return;
    const { keys, queries } = this.inSight();
    context.fillStyle = colours.line;
    context.globalAlpha = 0.45;
    for (let key = keys[0]; key <= keys[1]; key++) context.fillRect(Math.round(this.toX(key)), this.ruler, 1, this.height);
    for (let query = queries[0]; query <= queries[1]; query++) context.fillRect(this.ruler, Math.round(this.toY(query)), this.width, 1);
    context.globalAlpha = 1;
    if (cell < NUMBERS_FROM) return;
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (let query = queries[0]; query < queries[1]; query++) {
      for (let key = keys[0]; key < keys[1]; key++) {
        const value = this.app.valueAt(this.head, query, key);
        if (!Number.isFinite(value)) continue;
        context.fillStyle = this.app.inkOn(value);
        context.fillText(shown(value, 2), this.toX(key + 0.5), this.toY(query + 0.5));
      }
    }
  }

  #drawPins(context, colours) {
    const { state, hover } = this.app, cell = Math.max(1 / state.z, 1.5);
    // A line where cells are small, two edges where they are large: no cell changes its colour.
    const band = (colour, alpha, query, key) => {
      context.fillStyle = colour;
      context.globalAlpha = alpha;
      const edges = cell > 6 ? [[-1, 2], [cell - 1, 2]] : [[0, cell]];
      for (const [from, wide] of edges) {
        if (query !== null) context.fillRect(this.ruler, this.toY(query) + from, this.width, wide);
        if (key !== null) context.fillRect(this.toX(key) + from, this.ruler, wide, this.height);
      }
      context.globalAlpha = 1;
    };
    if (hover) band(colours.hover, 0.6, hover.query, hover.key);
    band(colours.pin, 0.85, state.query, state.key);
    if (!this.app.focused) return;
    const [x, y] = this.middle;
    context.strokeStyle = colours.pin;
    context.lineWidth = 1.5;
    context.strokeRect(x - 7, y - 7, 14, 14);
  }

  #drawRulers(context, colours, state, facts) {
    const { keys, queries } = this.inSight(), shared = { cell: 1 / state.z, zoom: state.z, size: this.ruler, words: this.app.words, colours };
    context.fillStyle = colours.paper;
    context.fillRect(0, 0, this.width, this.ruler);
    context.fillRect(0, 0, this.ruler, this.height);
    context.fillStyle = colours.line;
    context.fillRect(this.ruler, this.ruler - 1, this.width, 1);
    context.fillRect(this.ruler - 1, this.ruler, 1, this.height);
    context.save();
    context.beginPath();
    context.rect(this.ruler - 7, 0, this.width, this.ruler);
    context.clip();
    drawRuler(context, "top", (i) => this.toX(i), { first: keys[0], last: Math.min(keys[1], facts.n), ...shared, pinned: state.key, hovered: this.app.hover?.key });
    context.restore();
    context.save();
    context.beginPath();
    context.rect(0, this.ruler, this.ruler, this.height);
    context.clip();
    drawRuler(context, "left", (i) => this.toY(i), { first: queries[0], last: Math.min(queries[1], facts.n), ...shared, pinned: state.query, hovered: this.app.hover?.query });
    context.restore();
    context.fillStyle = colours.quiet;
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "right";
    context.textBaseline = "alphabetic";
    context.fillText("key →", this.ruler - 14, this.ruler - 22);
    context.fillText("query ↓", this.ruler - 14, this.ruler - 8);
  }
}
