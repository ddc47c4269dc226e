/* Moving over the map: wheel, drag, pinch and keys. */
import { clamp } from "./numbers.js";

const STILL = 4; // pixels within which a press is no drag
const EASE = 0.28; // of the way left, a frame
const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

export class Moving {
  constructor(app, surface) {
    Object.assign(this, { app, surface });
    this.pointers = new Map();
    this.goal = null;
    surface.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    surface.addEventListener("pointerdown", (event) => this.#down(event));
    surface.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) surface.addEventListener(name, (event) => this.#up(event));
    surface.addEventListener("pointerleave", () => this.app.setHover(null));
    surface.addEventListener("dblclick", (event) => this.#over(event, (pane, x, y) => this.zoom(0.4, pane, x, y)));
    surface.addEventListener("keydown", (event) => this.#key(event));
  }

  /* The pane that an event is over, and where in it. */
  #over(event, use) {
    const pane = this.app.panes.find(({ element }) => element.contains(event.target)) ?? this.app.panes[0];
    const box = pane.canvas.getBoundingClientRect();
    return use(pane, event.clientX - box.left, event.clientY - box.top);
  }

  /* Zoom by a factor of cells a pixel, about a place of a pane that stays where it is. */
  zoom(factor, pane = this.app.panes[0], x = pane.middle[0], y = pane.middle[1]) {
    const { state, facts } = this.app, from = this.goal?.z ?? state.z;
    const z = clamp(from * factor, 1 / 96, this.app.wholeZoom() * 1.25);
    const anchor = { key: state.x + (x - pane.middle[0]) * state.z, query: state.y + (y - pane.middle[1]) * state.z, x: x - pane.middle[0], y: y - pane.middle[1] };
    anchor.key = clamp(anchor.key, 0, facts.n);
    anchor.query = clamp(anchor.query, 0, facts.n);
    this.goal = { z, anchor };
    if (calm()) this.#settle(1);
    else this.#run();
  }

  #run() {
    if (this.running) return;
    this.running = true;
    const step = () => {
      if (!this.goal) { this.running = false; return; }
      this.#settle(EASE);
      if (this.goal) requestAnimationFrame(step);
      else this.running = false;
    };
    requestAnimationFrame(step);
  }

  #settle(share) {
    const { state } = this.app, { z, anchor } = this.goal;
    let next = state.z * (z / state.z) ** share;
    if (Math.abs(Math.log(next / z)) < 0.004) { next = z; this.goal = null; }
    this.app.moveTo({ z: next, x: anchor.key - anchor.x * next, y: anchor.query - anchor.y * next });
  }

  #wheel(event) {
    event.preventDefault();
    const unit = event.deltaMode === 1 ? 30 : 1, turned = clamp(event.deltaY * unit, -240, 240);
    if (event.shiftKey) {
      const { state } = this.app;
      this.app.moveTo({ x: state.x + (event.deltaX + event.deltaY) * unit * state.z });
      return;
    }
    this.#over(event, (pane, x, y) => this.zoom(Math.exp(turned * (event.ctrlKey ? 0.008 : 0.0032)), pane, x, y));
  }

  #down(event) {
    if (event.target.closest("button, .rx-card")) return;
    this.goal = null;
    this.surface.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY, startX: event.clientX, startY: event.clientY });
    this.dragged = this.pointers.size > 1;
    this.over = this.#over(event, (pane) => pane);
  }

  #move(event) {
    const held = this.pointers.get(event.pointerId), { state } = this.app;
    if (!held) {
      this.#over(event, (pane, x, y) => this.app.setHover(pane.cellAt(x, y), pane.head));
      return;
    }
    const before = [...this.pointers.values()].map(({ x, y }) => [x, y]);
    [held.x, held.y] = [event.clientX, event.clientY];
    if (Math.hypot(held.x - held.startX, held.y - held.startY) > STILL) this.dragged = true;
    if (!this.dragged) return;
    this.app.setHover(null);
    const after = [...this.pointers.values()].map(({ x, y }) => [x, y]);
    const middle = (points) => [0, 1].map((axis) => points.reduce((sum, point) => sum + point[axis], 0) / points.length);
    const spread = (points) => (points.length > 1 ? Math.hypot(points[0][0] - points[1][0], points[0][1] - points[1][1]) : 1);
    const [from, to] = [middle(before), middle(after)], box = this.over.canvas.getBoundingClientRect();
    const z = clamp((state.z * spread(before)) / Math.max(spread(after), 1), 1 / 96, this.app.wholeZoom() * 1.25);
    const x = state.x + (from[0] - box.left - this.over.middle[0]) * state.z - (to[0] - box.left - this.over.middle[0]) * z;
    const y = state.y + (from[1] - box.top - this.over.middle[1]) * state.z - (to[1] - box.top - this.over.middle[1]) * z;
    this.app.moveTo({ x, y, z });
  }

  #up(event) {
    const held = this.pointers.get(event.pointerId);
    this.pointers.delete(event.pointerId);
    if (!held || this.dragged || event.type === "pointercancel") return;
    const box = this.over.canvas.getBoundingClientRect();
    const cell = this.over.cellAt(event.clientX - box.left, event.clientY - box.top);
    if (!cell) return;
    this.app.setHover(cell, this.over.head);
    this.app.set({ query: cell.query, key: cell.key });
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("button")) return;
    const { app } = this, { state } = app, cells = state.z < 1 / 8, step = (cells ? 1 : 60 * state.z) * (event.shiftKey ? 6 : 1);
    const middle = () => app.middleCell();
    const acts = {
      ArrowLeft: () => app.moveTo({ x: cells ? Math.floor(state.x) + 0.5 - step : state.x - step }, true),
      ArrowRight: () => app.moveTo({ x: cells ? Math.floor(state.x) + 0.5 + step : state.x + step }, true),
      ArrowUp: () => app.moveTo({ y: cells ? Math.floor(state.y) + 0.5 - step : state.y - step }, true),
      ArrowDown: () => app.moveTo({ y: cells ? Math.floor(state.y) + 0.5 + step : state.y + step }, true),
      "+": () => this.zoom(0.5),
      "=": () => this.zoom(0.5),
      "-": () => this.zoom(2),
      "0": () => app.showWhole(),
      Home: () => app.showWhole(),
      d: () => app.moveTo({ x: state.y }, true),
      Enter: () => app.set(middle()),
      q: () => app.set({ query: middle().query }),
      k: () => app.set({ key: middle().key }),
      Escape: () => app.set({ query: null, key: null }),
    };
    if (!acts[event.key]) return;
    event.preventDefault();
    acts[event.key]();
  }
}
