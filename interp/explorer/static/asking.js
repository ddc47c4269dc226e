/* What if: q and k at another stage, after other steps, or under another schedule. */
import { choiceOf, el } from "./dom.js";
import { variantText } from "./address.js";

const STEP_WORDS = { no_norm: "no QK-norm", no_rope: "no rotation", swapped_order: "norm and rotation swapped" };
const FIELDS = {
  default: ["rope_theta"],
  linear: ["rope_theta", "factor"],
  dynamic: ["rope_theta", "factor", "max_position_embeddings"],
  yarn: ["rope_theta", "factor", "original_max_position_embeddings"],
  llama3: ["rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"],
};
const WORDS = {
  rope_theta: "base", factor: "factor", max_position_embeddings: "made for [tokens]", original_max_position_embeddings: "trained on [tokens]",
  low_freq_factor: "low-frequency factor", high_freq_factor: "high-frequency factor",
};
const FIRST = { factor: 4, max_position_embeddings: 8192, original_max_position_embeddings: 8192, low_freq_factor: 1, high_freq_factor: 4 };

export class WhatIf {
  constructor(app) {
    this.app = app;
    this.kind = el("div", {});
    this.fields = el("div", { class: "rx-fields" });
    this.apply = el("button", { type: "submit", class: "rx-primary" }, "Show");
    this.reset = el("button", { type: "button", onclick: () => app.set({ variant: null, view: app.state.view === "difference" ? "pattern" : app.state.view }) }, "As it ran");
    this.compare = el("button", { type: "button", onclick: () => app.set({ view: app.state.view === "difference" ? "pattern" : "difference" }) }, "Show the difference");
    this.form = el("form", { class: "rx-whatif", "aria-label": "What if" }, this.kind, this.fields, el("div", { class: "rx-row" }, this.apply, this.reset, this.compare));
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.element = el("div", {}, this.form);
  }

  /* The choices that this layer has; another layer may have others. */
  update() {
    const { state } = this.app, layer = this.app.layerOf(state.heads[0]);
    const made = JSON.stringify([layer.layer, state.variant]);
    this.compare.hidden = this.reset.hidden = !state.variant;
    this.compare.setAttribute("aria-pressed", String(state.view === "difference"));
    if (this.made === made) return;
    this.made = made;
    const options = [["run", "as the model ran"], ...layer.steps.map((name) => [`steps:${name}`, STEP_WORDS[name]])];
    if (layer.rope) options.push(["rope", "another schedule"]);
    options.push(...layer.stages.map((stage) => [`stage:${stage}`, `q and k at ${stage.replace("_", "-")}`]));
    const now = !state.variant ? "run" : state.variant.rope ? "rope" : variantText(state.variant);
    this.kind.replaceChildren(choiceOf("q and k", options, now, () => this.#showFields(layer), { "data-role": "kind" }));
    this.#showFields(layer);
  }

  #showFields(layer) {
    const kind = this.kind.querySelector("select").value, own = { ...layer.rope, ...(this.app.state.variant?.rope ?? {}) };
    if (kind !== "rope") return this.fields.replaceChildren();
    const types = Object.keys(FIELDS).map((type) => [type, type]);
    const current = FIELDS[own.rope_type] ? own.rope_type : "default";
    const inputs = el("div", { class: "rx-fields" });
    const show = (type) => inputs.replaceChildren(...FIELDS[type].map((name) => el("label", { class: "rx-field" }, el("span", {}, WORDS[name]),
      el("input", { type: "number", step: "any", min: name === "rope_theta" ? 1.001 : 0, name, value: own[name] ?? FIRST[name], required: true }))));
    this.fields.replaceChildren(choiceOf("schedule", types, current, show, { "data-role": "type" }), inputs);
    show(current);
    return undefined;
  }

  #submit() {
    const kind = this.kind.querySelector("select").value;
    if (kind === "run") return this.reset.click();
    const [name, value] = kind.split(":");
    const rope = { rope_type: this.fields.querySelector("select")?.value };
    for (const input of this.fields.querySelectorAll("input")) rope[input.name] = Number(input.value);
    return this.app.set({ variant: name === "rope" ? { rope } : { [name]: value } });
  }
}
