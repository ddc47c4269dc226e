/* The page: what is looked at, and the parts that show it. It asks through a function, whoever carries the questions. */
import { VIEWS, MOST_HEADS, readAddress, writeAddress } from "./address.js";
import { Charts } from "./charts.js";
import { inkOver, spanOf, viewWords } from "./colours.js";
import { copyMenu } from "./copying.js";
import { el, later, segmented } from "./dom.js";
import { HeadGrid } from "./heads.js";
import { MapPane } from "./map.js";
import { Moving } from "./moving.js";
import { clamp, grouped, headName } from "./numbers.js";
import { Legend, Overview, Progress, Readout, Search } from "./parts.js";
import { TileStore } from "./tiles.js";
import { TextPanel, TokenBook } from "./words.js";
import { WhatIf } from "./asking.js";

const KEYS = [
  ["arrows", "move the map, by a cell once cells are large; with Shift farther"], ["+ − 0", "nearer, farther, the whole text"],
  ["Enter", "pin the pair in the middle"], ["q, k", "pin its query or its key alone"], ["Esc", "unpin"], ["d", "to the diagonal"],
  ["n, p", "next and previous head"], ["/", "search"],
];

export class App {
  constructor(root, ask, { addressOf, onaddress, theme }) {
    Object.assign(this, { root, ask, addressOf, onaddress, theme });
    this.hover = null;
    this.focused = false;
    this.spoken = el("div", { class: "rx-hidden", role: "status", "aria-live": "polite" });
    this.toast = el("div", { class: "rx-card rx-toast", hidden: true });
    root.classList.add("rx");
    root.dataset.theme = theme;
  }

  async start(address) {
    const { said } = await this.ask({ kind: "overview" });
    this.facts = said;
    const middle = said.n / 2;
    this.first = {
      heads: [said.start], view: "pattern", pool: "mean", scale: "log", variant: null, query: null, key: null, by: "query",
      metric: said.metrics[0]?.name ?? "", x: middle, y: middle, z: 0,
    };
    this.state = { ...this.first, ...readAddress(address, said) };
    this.words = new TokenBook(this.ask, said.n, () => this.touch());
    this.store = new TileStore(this.ask, {
      onready: () => this.touch(),
      onerror: (error) => this.say(error.message),
      onbusy: (waiting) => this.progress.busy(waiting),
    });
    this.#build();
    this.#panes();
    if (!this.state.z) this.state.z = this.wholeZoom();
    new ResizeObserver(() => this.#resized()).observe(this.map);
    this.refreshText = later(120, () => this.text.update());
    this.refreshCharts = later(350, () => this.root.dataset.ready === "true" && this.charts.update());
    this.writeAddress = later(150, () => this.onaddress(writeAddress(this.state)));
    this.prefetch = later(0, () => this.store.want(this.panes.flatMap((pane) => pane.wanted()).sort((a, b) => a.away - b.away)));
    await this.#changed();
  }

  #build() {
    const { facts, state } = this, many = facts.layers.some((layer) => layer.values);
    const there = { value: many, attribution: facts.gradient_of !== "" };
    const views = VIEWS.filter((view) => there[view] !== false).map((view) => [view, { pattern: "Pattern", score: "Score", value: "Value-weighted", difference: "Difference", attribution: "Attribution" }[view], viewWords(view, facts.gradient_of)]);
    this.views = segmented("What is drawn", views, state.view, (view) => this.chooseView(view));
    this.pools = segmented("A pixel is", [["mean", "Mean", "the mean of the pairs that a pixel covers"], ["max", "Max", "the largest of them"]], state.pool, (pool) => this.set({ pool }));
    this.scales = segmented("Colours", [["log", "Log", "colours by the logarithm"], ["linear", "Linear", "colours by the value"]], state.scale, (scale) => this.set({ scale }));
    this.name = el("strong", { class: "rx-name" });
    this.subtitle = el("span", {});
    this.legend = new Legend(this);
    this.overview = new Overview(this);
    this.readout = new Readout(this);
    this.search = new Search(this);
    this.progress = new Progress(this);
    this.grid = new HeadGrid(this);
    this.text = new TextPanel(this);
    this.charts = new Charts(this);
    this.whatif = new WhatIf(this);
    this.paneBox = el("div", { class: "rx-panes" });
    const zooms = [["+", "nearer", () => this.moving.zoom(0.5)], ["−", "farther", () => this.moving.zoom(2)], ["⤢", "the whole text", () => this.showWhole()]];
    const controls = el("div", { class: "rx-card rx-zoom" }, ...zooms.map(([text, name, onclick]) => el("button", { type: "button", "aria-label": name, title: name, onclick }, text)));
    this.map = el("div", { class: "rx-map", tabindex: "0", role: "application", "aria-label": "Attention map: queries down, keys across. Arrow keys move it, plus and minus zoom, Enter pins the pair in the middle, Escape unpins." },
      this.paneBox, this.overview.element, controls, this.progress.element, this.toast);
    this.moving = new Moving(this, this.map);
    for (const [name, on] of [["focus", true], ["blur", false]]) this.map.addEventListener(name, () => { this.focused = on && this.map.matches(":focus-visible"); this.touch(); });
    this.by = segmented("The text is coloured by", [["query", "by a query", "what the pinned query attends to"], ["key", "by a key", "who attends to the pinned key"]], state.by, (by) => this.set({ by }));
    const part = (title, open, ...children) => el("details", { class: "rx-part", open }, el("summary", {}, el("h2", {}, title)), ...children);
    const help = el("details", { class: "rx-menu" }, el("summary", { "aria-label": "keys" }, "?"), el("dl", { class: "rx-menu-items rx-keys" }, ...KEYS.flatMap(([key, what]) => [el("dt", {}, key), el("dd", {}, what)])));
    const theme = el("button", { type: "button", "aria-label": "light or dark", title: "light or dark", onclick: () => this.setTheme(this.theme === "dark" ? "light" : "dark") }, "◐");
    this.root.replaceChildren(
      el("header", { class: "rx-top-bar" }, el("h1", {}, this.name, this.subtitle),
        this.views.group, this.pools.group, this.scales.group, this.search.element, el("span", { class: "rx-tools" }, copyMenu(this), help, theme)),
      el("div", { class: "rx-body" },
        el("div", { class: "rx-side", tabindex: "0", role: "group", "aria-label": "Heads" }, this.grid.element),
        el("main", { class: "rx-middle" }, this.map, this.legend.element),
        el("aside", { class: "rx-panel", "aria-label": "Details" },
          part("One pair", true, this.readout.element),
          part("Text", true, this.by.group, this.text.element),
          part("What if", Boolean(state.variant), this.whatif.element),
          part("In view", true, this.charts.element))),
      this.spoken);
    this.root.addEventListener("keydown", (event) => this.onkey(event));
  }

  /* Keys that work wherever one is, but in a field. */
  onkey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
    const order = this.facts.layers.flatMap(({ layer }) => Array.from({ length: this.facts.heads }, (_, head) => [layer, head]));
    const at = order.findIndex(([l, h]) => l === this.state.heads[0][0] && h === this.state.heads[0][1]);
    if (event.key === "n" || event.key === "p") this.chooseHead(order[(at + (event.key === "n" ? 1 : -1) + order.length) % order.length]);
    else if (event.key === "/") this.search.input.focus();
    else return;
    event.preventDefault();
  }

  /* One pane for each head, kept where it is still shown. */
  #panes() {
    const before = new Map((this.panes ?? []).map((pane) => [pane.head.join("."), pane]));
    this.panes = this.state.heads.map((head) => before.get(head.join(".")) ?? new MapPane(this, head));
    this.paneBox.replaceChildren(...this.panes.map((pane) => pane.element));
    this.paneBox.dataset.panes = this.panes.length;
    for (const pane of this.panes) {
      pane.title.replaceChildren(headName(...pane.head), el("span", { "aria-hidden": "true" }, " ×"));
      pane.title.setAttribute("aria-label", `close ${headName(...pane.head)}`);
      pane.title.hidden = this.panes.length < 2;
      if (!pane.asked) {
        pane.asked = this.ask({ kind: "backdrop", layer: pane.head[0], head: pane.head[1] }).then(({ arrays }) => {
          pane.backdrop = arrays;
          this.touch();
        }, () => undefined);
      }
      pane.layout();
    }
  }

  /* Change what is looked at; everything that depends on it follows. */
  set(change) {
    Object.assign(this.state, change);
    if (this.state.view === "difference" && !this.state.variant) this.state.view = "pattern";
    if (this.state.view === "attribution" && this.state.variant) this.state.view = "pattern"; // the gradient is of the run
    return this.#changed();
  }

  async #changed() {
    const { state } = this;
    if (this.panes.map((pane) => pane.head.join(".")).join() !== state.heads.map((head) => head.join(".")).join()) this.#panes();
    this.views.press(state.view);
    for (const button of this.views.buttons) button.disabled = { difference: !state.variant, attribution: state.variant !== null }[button.dataset.value] ?? false;
    this.pools.press(state.pool);
    this.scales.press(state.scale);
    for (const button of this.scales.buttons) button.disabled = state.view === "score" && button.dataset.value === "log";
    this.by.press(state.by);
    const [[layer, head]] = state.heads, { kind, window } = this.layerOf(state.heads[0]);
    this.name.textContent = state.heads.length > 1 ? `${state.heads.length} heads` : headName(layer, head);
    this.subtitle.textContent = `${window ? `window ${grouped(window)}` : kind} · ${this.facts.model} · ${grouped(this.facts.n)} tokens`;
    this.whatif.update();
    this.store.forgive();
    this.root.dataset.address = writeAddress(state);
    this.moveTo({});
    this.refreshText();
    if (state.query !== null && state.key !== null && !this.hover) this.readout.show({ query: state.query, key: state.key, head: state.heads[0] });
    await this.grid.update();
  }

  /* Move the map; x and y are the key and query in its middle, z is cells a pixel. */
  moveTo(change, aloud = false) {
    const { state, facts } = this;
    Object.assign(state, change);
    state.z = clamp(state.z, 1 / 96, this.wholeZoom() * 1.25);
    state.x = clamp(state.x, 0, facts.n);
    state.y = clamp(state.y, 0, facts.n);
    this.touch();
    this.writeAddress();
    this.refreshCharts();
    if (state[state.by] === null) this.refreshText();
    if (aloud) this.readout.show({ ...this.middleCell(), head: state.heads[0] }, true);
  }

  /* Draw at the next frame. */
  touch() {
    if (this.waiting || !this.panes) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      const { state, facts } = this, needs = state.view !== "pattern" || state.scale === "linear";
      const largest = needs ? Math.max(...this.panes.map((pane) => pane.largest())) : 1;
      // While tiles are missing the colours stay, so that panning does not flicker.
      const same = this.span && this.span.view === state.view && this.spanOf === `${state.view}${state.scale}${state.pool}`;
      if (!same || (largest > 0 && this.panes.every((pane) => pane.ready))) this.span = spanOf(state.view, state.scale, facts.n, largest);
      this.spanOf = `${state.view}${state.scale}${state.pool}`;
      for (const pane of this.panes) pane.draw();
      this.legend.draw();
      this.overview.draw();
      this.prefetch();
      this.root.dataset.ready = String(this.panes.every((pane) => pane.ready));
      if (!this.wasReady && this.root.dataset.ready === "true") {
        this.refreshCharts();
        this.touch();
      }
      this.wasReady = this.root.dataset.ready === "true";
    });
  }

  #resized() {
    const whole = Math.abs(this.state.z - this.wholeZoom()) < 1e-6;
    for (const pane of this.panes) pane.layout();
    if (whole) this.state.z = this.wholeZoom();
    this.touch();
  }

  chooseHead(head, beside = false) {
    const same = ([l, h]) => l === head[0] && h === head[1], { heads } = this.state;
    if (!beside) return this.set({ heads: [head] });
    const left = heads.filter((one) => !same(one));
    return this.set({ heads: left.length < heads.length && left.length ? left : [...left, head].slice(-MOST_HEADS) });
  }
  closePane(head) {
    return this.chooseHead(head, true);
  }
  chooseView(view) {
    if (view === "score") this.state.scale = "linear";
    else if (this.state.view === "score") this.state.scale = "log";
    return this.set({ view });
  }
  pinToken(index) {
    const { by } = this.state;
    return this.set({ [by]: this.state[by] === index ? null : index });
  }

  /* Go to a query, a key or both, pinned, near enough to read. */
  goTo({ query = null, key = null }) {
    const { state } = this, z = Math.min(state.z, 1 / 16);
    const y = query ?? (key !== null ? Math.max(key, state.query ?? key) : state.y), x = key ?? (state.key !== null && query !== null ? Math.min(state.key, query) : query);
    if (query !== null) state.query = query;
    if (key !== null) state.key = key;
    this.moving.goal = null;
    this.set({});
    this.moveTo({ x: x + 0.5, y: y + 0.5, z }, true);
  }
  showWhole() {
    this.moving.goal = null;
    this.moveTo({ x: this.facts.n / 2, y: this.facts.n / 2, z: this.wholeZoom() }, true);
  }
  wholeZoom() {
    const [w, h] = this.panes[0].span;
    return this.facts.n / Math.max(Math.min(w, h), 50);
  }
  middleCell() {
    const { state, facts } = this, within = (x) => clamp(Math.floor(x), 0, facts.n - 1);
    return { query: within(state.y), key: within(state.x) };
  }

  setHover(cell, head = this.state.heads[0]) {
    const same = this.hover?.query === cell?.query && this.hover?.key === cell?.key;
    this.hover = cell && { ...cell, head };
    if (!same) this.touch();
    if (!same && cell) this.readout.show(this.hover);
  }

  layerOf([layer]) {
    return this.facts.layers.find((one) => one.layer === layer);
  }

  /* What a tile of a head is asked by, and the same as a text. */
  pictureOf([layer, head]) {
    const asked = { layer, head, view: this.state.view, variant: this.state.variant };
    return { asked, text: JSON.stringify(asked) };
  }

  /* No query in [top, bottom) sees a key in [left, right). */
  isHidden([layer], top, bottom, left, right) {
    const { causal, window } = this.layerOf([layer]), most = this.facts.n - 1;
    const last = Math.min(bottom - 1, most);
    if (left > (causal ? last : window ? last + window - 1 : most)) return true;
    return window !== null && Math.min(right, this.facts.n) - 1 < top - window + 1;
  }

  /* What is in sight as a question, cut to whole pixels; none where nothing can be seen. */
  windowAsked(kind) {
    const pane = this.panes[0], { keys, queries } = pane.inSight(), scale = pane.scale, most = 2048 * scale, { n } = this.facts;
    const cut = ([a, b]) => {
      const start = Math.floor(a / scale) * scale, stop = Math.min(Math.ceil(b / scale) * scale, n);
      return [start, Math.min(stop, start + most)];
    };
    const asked = { kind, ...this.pictureOf(pane.head).asked, scale, queries: cut(queries), keys: cut(keys) };
    const seen = !this.isHidden(pane.head, ...asked.queries, ...asked.keys);
    return seen && asked.queries[0] < asked.queries[1] && asked.keys[0] < asked.keys[1] ? asked : null;
  }

  /* The value of one pair, if its tile is there. */
  valueAt(head, query, key) {
    const { tile } = this.facts, held = this.store.held.get(this.store.key(this.pictureOf(head).text, 1, Math.floor(query / tile), Math.floor(key / tile)));
    return held ? held[this.state.pool][(query % tile) * held.shape[1] + (key % tile)] : NaN;
  }
  inkOn(value, span = this.span) {
    return inkOver(value, span, this.theme);
  }

  setTheme(theme) {
    this.theme = theme;
    this.root.dataset.theme = theme;
    this.touch();
    this.grid.update();
    this.refreshText();
  }

  address() {
    return this.addressOf(writeAddress(this.state));
  }
  goToAddress(address) {
    if (address.replace(/^#/, "") === writeAddress(this.state)) return undefined;
    const z = this.wholeZoom();
    return this.set({ ...this.first, z, ...readAddress(address, this.facts) });
  }

  /* Stop what is being computed: a what-if is left, and the map waits until something else is looked at. */
  async cancelWork() {
    this.store.stop();
    await this.ask({ kind: "cancel" });
    if (this.state.variant) await this.set({ variant: null });
    this.say("cancelled");
  }

  /* Say something, to be seen for a moment or only heard. */
  say(text, heard = false) {
    this.spoken.textContent = text;
    if (heard) return;
    this.toast.replaceChildren(text);
    this.toast.hidden = false;
    clearTimeout(this.toastTimer);
    this.toastTimer = setTimeout(() => { this.toast.hidden = true; }, 5000);
  }

  /* A text to be copied by hand, where the browser keeps the clipboard to itself. */
  showText(what, text) {
    const area = el("textarea", { readonly: true, rows: 8, "aria-label": what }, text);
    this.toast.replaceChildren(area, el("button", { type: "button", onclick: () => { this.toast.hidden = true; } }, "Close"));
    this.toast.hidden = false;
    area.select();
  }
}
