/* Tiles: asked for from the middle outwards, kept within a bound, the nearest coarser one shown meanwhile. */
const MOST_TILES = 240;
const AT_ONCE = 3;

export class TileStore {
  constructor(ask, { onready, onerror, onbusy }) {
    Object.assign(this, { ask, onready, onerror, onbusy });
    this.held = new Map();
    this.failed = new Map();
    this.coming = new Map();
    this.queue = [];
    this.stopped = false;
  }

  key(picture, scale, row, column) {
    return `${picture}|${scale}|${row}|${column}`;
  }

  /* A tile that is there; looking at it keeps it. */
  get(key) {
    const tile = this.held.get(key);
    if (tile) {
      this.held.delete(key);
      this.held.set(key, tile);
    }
    return tile;
  }

  /* What is wanted now, the most wanted first; what is no longer wanted is dropped, also at the server. */
  want(wanted) {
    const keys = new Set(wanted.map((tile) => tile.key));
    for (const [key, { abort }] of this.coming) if (!keys.has(key)) abort.abort();
    this.queue = wanted.filter(({ key }) => !this.held.has(key) && !this.coming.has(key) && !this.failed.has(key));
    this.#pump();
  }

  /* Ask for nothing more until something else is looked at. */
  stop() {
    this.stopped = true;
    this.queue = [];
    for (const { abort } of this.coming.values()) abort.abort();
    this.onbusy(0);
  }

  /* Try again what failed or was stopped. */
  forgive() {
    this.stopped = false;
    this.failed.clear();
  }

  get waiting() {
    return this.queue.length + this.coming.size;
  }

  #pump() {
    while (this.queue.length && this.coming.size < AT_ONCE && !this.stopped) this.#fetch(this.queue.shift());
    this.onbusy(this.waiting);
  }

  async #fetch({ key, question }) {
    const abort = new AbortController();
    this.coming.set(key, { abort });
    try {
      const { arrays } = await this.ask(question, abort.signal);
      this.held.set(key, { mean: arrays.mean, max: arrays.max, shape: arrays.mean.shape, painted: new Map() });
      while (this.held.size > MOST_TILES) this.held.delete(this.held.keys().next().value);
      this.onready(key);
    } catch (error) {
      if (!abort.signal.aborted) {
        this.failed.set(key, error);
        this.onerror(error);
      }
    }
    this.coming.delete(key);
    this.#pump();
  }
}
