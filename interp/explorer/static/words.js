/* The text: tokens fetched as they come in sight, coloured by a pinned query or key, searched. */
import { cssColour } from "./colours.js";
import { el } from "./dom.js";
import { clamp, grouped, shown } from "./numbers.js";

const RUN = 2048; // tokens of a request
const AROUND = 260; // tokens of the text on either side of what is in focus
const MOST_LISTED = 8;

/* Token strings by index; asks for a run when one of it is looked at. */
export class TokenBook {
  constructor(ask, n, onready) {
    Object.assign(this, { ask, n, onready, runs: new Map() });
  }
  get(index) {
    const run = this.#run(index);
    return run.tokens?.[index % RUN];
  }
  position(index) {
    return this.runs.get(Math.floor(index / RUN))?.positions?.[index % RUN] ?? index;
  }
  #run(index) {
    const number = Math.floor(index / RUN);
    if (!this.runs.has(number)) {
      const run = {};
      this.runs.set(number, run);
      run.coming = this.ask({ kind: "tokens", span: [number * RUN, Math.min((number + 1) * RUN, this.n)] }).then(({ said, arrays }) => {
        run.tokens = said.tokens;
        run.positions = arrays.position;
        this.onready();
      }, () => this.runs.delete(number));
    }
    return this.runs.get(number);
  }
  async whole(first, last) {
    for (let i = first; i < last; i += RUN) await this.#run(i).coming;
    if (last > first) await this.#run(last - 1).coming;
  }
}

const seen = (token) => (token === undefined ? "…" : token === "" ? "∅" : token);
const chip = (token) => el("bdi", { class: "rx-token" }, seen(token).replaceAll(" ", "·"));

/* A token in its sentence, as elements. */
export function inSentence(words, index, n, around = 7) {
  const parts = [];
  for (let i = Math.max(index - around, 0); i < Math.min(index + around + 1, n); i++) {
    parts.push(i === index ? el("mark", { dir: "auto" }, seen(words.get(i))) : el("bdi", {}, seen(words.get(i))));
  }
  return el("span", { class: "rx-sentence" }, ...parts);
}

export class TextPanel {
  constructor(app) {
    this.app = app;
    this.line = el("p", { class: "rx-about" });
    this.body = el("div", { class: "rx-text", role: "group", "aria-label": "The text around what is in focus; a token that is pressed is pinned", tabindex: "0" });
    this.list = el("ol", { class: "rx-top" });
    this.element = el("div", { class: "rx-words" }, this.line, this.list, this.body);
    this.body.addEventListener("click", (event) => {
      const index = event.target.closest("[data-index]")?.dataset.index;
      if (index !== undefined) app.pinToken(Number(index));
    });
  }

  get focus() {
    const { state } = this.app;
    return state.by === "query" ? state.query : state.key;
  }

  async update() {
    const { state, facts, words } = this.app, pinned = this.focus, asked = ++this.turn || (this.turn = 1);
    const middle = clamp(pinned ?? Math.floor(state.by === "query" ? state.y : state.x), 0, facts.n - 1);
    const [first, last] = [Math.max(middle - AROUND, 0), Math.min(middle + AROUND, facts.n)];
    let values = null;
    try {
      await words.whole(first, last);
      if (pinned !== null) {
        const kind = state.by === "query" ? "row" : "column", view = state.view === "difference" && !state.variant ? "pattern" : state.view;
        const { arrays } = await this.app.ask({ kind, heads: state.heads, view, variant: state.variant, [state.by]: pinned });
        values = arrays.values;
      }
    } catch (error) {
      if (asked === this.turn) this.app.say(error.message);
      return;
    }
    if (asked !== this.turn) return;
    this.values = values;
    this.#describe(pinned, values);
    this.#draw(first, last, pinned, values);
  }

  #describe(pinned, values) {
    const { state, words } = this.app, heads = state.heads.length > 1 ? ` (mean of ${state.heads.length} heads)` : "";
    const what = state.by === "query" ? "What this query attends to" : "Who attends to this key";
    this.line.replaceChildren(...(pinned === null
      ? [state.by === "query" ? "Pin a query to see what it attends to: click a token, or a cell of the map." : "Pin a key to see who attends to it: click a token, or a cell of the map."]
      : [`${what}${heads}: `, chip(words.get(pinned)), ` at ${grouped(words.position(pinned))}`]));
    const order = values === null ? [] : Array.from(values, (value, i) => [Math.abs(value), i]).filter(([x]) => x === x);
    order.sort((a, b) => b[0] - a[0]);
    const best = order.slice(0, MOST_LISTED);
    Promise.all(best.map(([, i]) => words.whole(i, i + 1))).then(() => {
      if (values !== this.values) return;
      this.list.replaceChildren(...best.map(([, i]) => {
        const go = () => this.app.goTo(state.by === "query" ? { query: pinned, key: i } : { query: i, key: pinned });
        return el("li", {}, el("button", { type: "button", onclick: go, "aria-label": `go to token ${i}, ${words.get(i)}: ${shown(values[i])}` },
          chip(words.get(i)), el("span", {}, grouped(words.position(i))), el("b", {}, shown(values[i]))));
      }));
    });
  }

  #draw(first, last, pinned, values) {
    const { words, span, theme, state } = this.app, scale = this.#span(values, span);
    const parts = [];
    for (let i = first; i < last; i++) {
      const value = values?.[i], token = el("span", { "data-index": i }, seen(words.get(i)));
      if (i === state.query) token.classList.add("rx-is-query");
      if (i === state.key) token.classList.add("rx-is-key");
      if (value !== undefined && value === value && scale) {
        token.style.background = cssColour(value, scale, theme);
        token.style.color = this.app.inkOn(value, scale);
        token.title = `${grouped(words.position(i))}: ${shown(value)}`;
      }
      parts.push(token);
    }
    this.body.replaceChildren(...parts);
    const mark = this.body.querySelector(".rx-is-query, .rx-is-key");
    if (mark) this.body.scrollTop = mark.offsetTop - this.body.clientHeight / 2;
  }

  /* The text has colours of its own reach: from nothing to the largest that is there. */
  #span(values, span) {
    if (!values) return null;
    const top = values.reduce((most, x) => (x === x && Math.abs(x) > most ? Math.abs(x) : most), 0);
    return { ...span, how: span.how, top: top || 1, decades: Math.min(span.decades, 4) };
  }
}
