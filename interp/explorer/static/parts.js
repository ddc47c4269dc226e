/* The smaller parts around the map: legend, overview, what is under the pointer, search, work in progress. */
import { gradient, legendOf, paintPixels, spanKey, spanOf, SCALES } from "./colours.js";
import { el, later } from "./dom.js";
import { clamp, grouped, headName, shown } from "./numbers.js";
import { inSentence } from "./words.js";

const POLL = 400; // milliseconds between looks at work in progress
const OVERVIEW = 116; // pixels of the small map along a side

export class Legend {
  constructor(app) {
    this.app = app;
    this.bar = el("i", {});
    this.ticks = el("div", { class: "rx-legend-ticks" });
    this.line = el("strong", {});
    this.each = el("span", {});
    this.element = el("div", { class: "rx-legend" }, el("div", { class: "rx-legend-words" }, this.line, this.each), el("div", { class: "rx-legend-scale" }, this.bar, this.ticks));
  }
  draw() {
    const { app } = this, { state } = app, scale = app.panes[0].scale, ready = app.panes.every((pane) => pane.ready);
    const key = `${spanKey(app.span)} ${state.pool} ${scale} ${app.theme} ${ready}`;
    if (this.key === key) return;
    this.key = key;
    const { ticks, line, each } = legendOf(app.span, state.pool, scale, app.facts.gradient_of);
    this.bar.style.background = gradient(app.span, app.theme);
    this.ticks.replaceChildren(...ticks.map(([place, text]) => {
      const tick = el("span", {}, text);
      tick.style.left = `${place * 100}%`;
      return tick;
    }));
    this.line.textContent = line;
    this.each.textContent = ready ? each : `${each}; coarser until it is computed`;
  }
}

/* The whole text at a glance, with a frame where the map is. */
export class Overview {
  constructor(app) {
    this.app = app;
    this.canvas = el("canvas", { width: OVERVIEW * 2, height: OVERVIEW * 2, "aria-hidden": "true" });
    this.element = el("div", { class: "rx-card rx-overview" }, this.canvas);
    const move = (event) => {
      const box = this.canvas.getBoundingClientRect(), n = app.facts.n;
      app.moveTo({ x: ((event.clientX - box.left) / box.width) * n, y: ((event.clientY - box.top) / box.height) * n });
    };
    this.canvas.addEventListener("pointerdown", (event) => {
      event.stopPropagation();
      this.canvas.setPointerCapture(event.pointerId);
      move(event);
    });
    this.canvas.addEventListener("pointermove", (event) => event.buttons && move(event));
  }
  draw() {
    const { app } = this, { state, facts } = app, pane = app.panes[0], context = this.canvas.getContext("2d"), size = OVERVIEW * 2;
    const whole = app.store.held.get(app.store.key(app.pictureOf(pane.head).text, facts.top_scale, 0, 0));
    // Until the whole of what is asked was computed, the pattern as it ran shows where one is.
    const from = whole ?? pane.backdrop, span = whole ? app.span : spanOf("pattern", "log", facts.n, 1);
    context.fillStyle = SCALES[app.theme].hidden;
    context.fillRect(0, 0, size, size);
    if (from) {
      const values = from[state.pool], key = `${spanKey(span)} ${app.theme} ${state.pool}`;
      if (this.of !== from || this.key !== key) {
        this.painted = paintPixels(values, values.shape, span, app.theme);
        [this.of, this.key] = [from, key];
      }
      const [height, width] = values.shape, side = whole ? facts.n / facts.top_scale : null;
      context.imageSmoothingEnabled = true;
      context.drawImage(this.painted, 0, 0, side ?? width, side ?? height, 0, 0, size, size);
    }
    const [w, h] = pane.span.map((x) => (x * state.z * size) / facts.n), at = [state.x, state.y].map((x) => (x / facts.n) * size);
    context.strokeStyle = SCALES[app.theme].pin;
    context.lineWidth = 3;
    context.strokeRect(at[0] - w / 2, at[1] - h / 2, Math.max(w, 5), Math.max(h, 5));
    this.element.hidden = w >= size * 0.98 && h >= size * 0.98;
  }
}

/* The pair under the pointer, or in the middle of the map for who uses the keyboard. */
export class Readout {
  constructor(app) {
    this.app = app;
    this.body = el("div", {}, el("p", { class: "rx-about" }, "Point at the map, click to pin a pair, or move with the arrow keys."));
    this.element = el("section", { class: "rx-readout", "aria-label": "The pair pointed at" }, this.body);
    this.ask = later(70, (cell, aloud) => this.#show(cell, aloud));
  }
  show(cell, aloud = false) {
    if (cell) this.ask(cell, aloud);
  }
  async #show({ query, key, head }, aloud) {
    const { app } = this, { words, state, facts } = app, turn = ++this.turn || (this.turn = 1);
    const scale = app.panes[0].scale, hidden = app.isHidden(head, query, query + 1, key, key + 1);
    let answer = null;
    try {
      await Promise.all([words.whole(query, query + 1), words.whole(key, key + 1)]);
      if (!hidden) answer = await app.ask({ kind: "cell", layer: head[0], head: head[1], query, key, variant: state.variant });
    } catch (error) {
      if (turn === this.turn) app.say(error.message);
      return;
    }
    if (turn !== this.turn) return;
    const facts_ = hidden ? [["", "the query does not see this key"]] : this.#facts(answer);
    const at = (name, index) => el("p", { class: "rx-at" }, el("span", {}, `${name} ${grouped(words.position(index))}`), inSentence(words, index, facts.n));
    const more = scale > 1 ? el("p", { class: "rx-about" }, `The pixel covers ${scale} × ${scale} pairs; this is one of them.`) : "";
    this.body.replaceChildren(at("query", query), at("key", key),
      el("dl", {}, ...facts_.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])), more);
    const said = hidden ? "not seen" : `attention ${shown(answer.arrays.pattern[0])}, score ${shown(answer.arrays.score[0])}`;
    if (aloud) app.say(`${headName(...head)}, query ${query} ${words.get(query)}, key ${key} ${words.get(key)}: ${said}`, true);
  }
  #facts({ arrays, said }) {
    const was = (name) => (arrays[`run_${name}`] ? ` (as it ran ${shown(arrays[`run_${name}`][0])})` : "");
    const found = [["attention", shown(arrays.pattern[0]) + was("pattern")], ["score", shown(arrays.score[0]) + was("score")]];
    if (arrays.value) found.push(["× ‖v W_O‖", shown(arrays.value[0]) + was("value")]);
    if (arrays.attribution) found.push(["effect", shown(arrays.attribution[0])]);
    found.push(["distance", grouped(said.distance)]);
    return found;
  }
}

/* Search: words, #123 for a token, d100 for a distance from what is pinned. */
export class Search {
  constructor(app) {
    this.app = app;
    this.found = [];
    this.at = -1;
    this.input = el("input", { type: "search", placeholder: "Search, #token or d100", "aria-label": "Search the text; #123 goes to a token, d100 to a distance from the pinned query", maxlength: 200 });
    this.count = el("output", { class: "rx-count", "aria-live": "polite" });
    const step = (by, text, name) => el("button", { type: "button", "aria-label": name, title: name, onclick: () => this.step(by) }, text);
    this.element = el("form", { class: "rx-search", role: "search" }, this.input, this.count, step(-1, "↑", "previous match"), step(1, "↓", "next match"));
    this.element.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.input.value === this.last && this.found.length) this.step(1);
      else this.run();
    });
  }
  async run() {
    const text = this.input.value, { app } = this, { facts, state } = app;
    this.last = text;
    const token = /^#(\d+)$/.exec(text), distance = /^d(\d+)$/i.exec(text);
    if (token) return app.goTo({ [state.by]: clamp(Number(token[1]), 0, facts.n - 1) });
    if (distance) {
      const query = state.query ?? clamp(Math.round(state.y), 0, facts.n - 1);
      return app.goTo({ query, key: clamp(query - Number(distance[1]), 0, facts.n - 1) });
    }
    this.found = [];
    if (text) {
      const { arrays, said } = await app.ask({ kind: "find", text });
      this.found = Array.from(arrays.first, (first, i) => [first, arrays.last[i]]);
      this.more = said.more;
    }
    this.at = -1;
    return this.step(1);
  }
  step(by) {
    const { found } = this;
    if (!found.length) { this.count.textContent = this.last ? "not found" : ""; return; }
    this.at = (this.at + by + found.length) % found.length;
    this.count.textContent = `${this.at + 1} of ${found.length}${this.more ? "+" : ""}`;
    this.app.goTo({ [this.app.state.by]: found[this.at][1] });
  }
}

/* Long work: how far it is, and a way to stop it. */
export class Progress {
  constructor(app) {
    this.app = app;
    this.text = el("span", {});
    this.bar = el("progress", { max: 1, value: 0, "aria-label": "work in progress" });
    this.cancel = el("button", { type: "button", onclick: () => app.cancelWork() }, "Cancel");
    this.element = el("div", { class: "rx-card rx-progress", hidden: true }, this.text, this.bar, this.cancel);
  }
  busy(waiting) {
    this.waiting = waiting;
    if (waiting && !this.timer) this.timer = setInterval(() => this.#look(), POLL);
    if (!waiting) this.#rest();
  }
  #rest() {
    clearInterval(this.timer);
    this.timer = 0;
    this.element.hidden = true;
  }
  async #look() {
    let work;
    try { work = (await this.app.ask({ kind: "progress" })).said.work; } catch { return; }
    if (!this.waiting) return;
    const one = work[0];
    this.element.hidden = !one;
    if (!one) return;
    this.text.textContent = one.name;
    this.bar.value = one.total ? one.done / one.total : 0;
  }
}
