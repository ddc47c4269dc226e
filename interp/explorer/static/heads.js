/* The grid of heads, coloured by a number of each; several can be shown side by side. */
import { cssColour } from "./colours.js";
import { choiceOf, el } from "./dom.js";
import { headName, shown } from "./numbers.js";

const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

export class HeadGrid {
  constructor(app) {
    this.app = app;
    const { facts } = app;
    this.values = null;
    this.cells = new Map();
    const names = facts.metrics.map((metric) => [metric.name, metric.label]);
    this.choice = choiceOf("Heads by", names, app.state.metric, (metric) => app.set({ metric }));
    this.about = el("p", { class: "rx-about" });
    this.grid = el("div", { class: "rx-grid", role: "grid", "aria-label": "Heads: a row a layer. Enter shows one, Shift and Enter beside the others." });
    this.grid.style.setProperty("--rx-heads", facts.heads);
    this.#build();
    this.grid.addEventListener("keydown", (event) => this.#onkey(event));
    this.element = el("section", { class: "rx-heads", "aria-label": "Heads" }, this.choice, el("div", { class: "rx-grid-scroll" }, this.grid), this.about);
  }

  #build() {
    const { facts } = this.app, top = el("div", { role: "row", class: "rx-grid-row" }, el("span", { role: "columnheader", class: "rx-corner" }, "layer"));
    for (let head = 0; head < facts.heads; head++) top.append(el("span", { role: "columnheader", "aria-label": `head ${head}` }, String(head)));
    this.grid.append(top);
    facts.layers.forEach(({ layer, kind }, row) => {
      const line = el("div", { role: "row", class: "rx-grid-row" }, el("span", { role: "rowheader", title: `${kind} attention`, class: `rx-${kind}` }, String(layer)));
      for (let head = 0; head < facts.heads; head++) {
        const choose = (event) => this.app.chooseHead([layer, head], event.shiftKey || event.ctrlKey || event.metaKey);
        const cell = el("button", { type: "button", role: "gridcell", tabindex: "-1", "data-row": row, "data-column": head, onclick: choose });
        this.cells.set(`${layer}.${head}`, cell);
        line.append(cell);
      }
      this.grid.append(line);
    });
  }

  #onkey(event) {
    const move = MOVES[event.key], at = event.target.dataset;
    if (!move || at.row === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    const to = this.grid.querySelector(`[data-row="${Number(at.row) + move[0]}"][data-column="${Number(at.column) + move[1]}"]`);
    to?.focus();
  }

  async update() {
    const { state, facts, theme } = this.app, metric = facts.metrics.find((one) => one.name === state.metric);
    this.choice.querySelector("select").value = state.metric;
    if (metric && this.of !== metric.name) {
      this.of = metric.name;
      const { arrays } = await this.app.ask({ kind: "grid", metric: metric.name });
      if (this.of !== metric.name) return;
      this.values = arrays.values;
    }
    const values = this.values ?? [], finite = Array.from(values).filter(Number.isFinite);
    const signed = finite.some((x) => x < 0), top = Math.max(...finite.map(Math.abs), 1e-12);
    const span = { view: signed ? "score" : "pattern", how: "linear", top, decades: 1 };
    const chosen = new Set(state.heads.map((pair) => pair.join(".")));
    let i = 0;
    for (const [name, cell] of this.cells) {
      const value = values[i++], [layer, head] = name.split(".");
      cell.style.background = Number.isFinite(value) ? cssColour(value, span, theme) : "transparent";
      cell.setAttribute("aria-selected", String(chosen.has(name)));
      cell.tabIndex = name === state.heads[0].join(".") ? 0 : -1;
      const text = `${headName(layer, head)}${metric ? `: ${metric.label} ${shown(value)}` : ""}`;
      cell.setAttribute("aria-label", text);
      cell.title = text;
    }
    this.about.textContent = metric ? metric.about : "";
  }
}
