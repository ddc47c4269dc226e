/* Every view has an address: what is looked at, as a short text and back. */
export const VIEWS = ["pattern", "score", "value", "difference", "attribution"];
const ROPE_FIELDS = new Set([
  "rope_type", "rope_theta", "factor", "original_max_position_embeddings", "max_position_embeddings",
  "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor",
]);
export const MOST_HEADS = 4;

export function variantText(variant) {
  if (!variant) return "";
  const [kind, value] = Object.entries(variant)[0];
  return kind === "rope" ? `rope:${Object.entries(value).map(([name, x]) => `${name}=${x}`).join(";")}` : `${kind}:${value}`;
}

function readVariantText(text) {
  const at = text.indexOf(":"), kind = text.slice(0, at), rest = text.slice(at + 1);
  if (kind === "stage" || kind === "steps") return /^[a-z_]+$/.test(rest) ? { [kind]: rest } : null;
  if (kind !== "rope") return null;
  const fields = {};
  for (const part of rest.split(";")) {
    const [name, value] = part.split("=");
    if (!ROPE_FIELDS.has(name)) return null;
    fields[name] = name === "rope_type" ? value : Number(value);
    if (name !== "rope_type" && !Number.isFinite(fields[name])) return null;
  }
  return { rope: fields };
}

export function writeAddress(state) {
  const short = (x) => String(Number(x.toPrecision(9)));
  const parts = [["h", state.heads.map((pair) => pair.join(".")).join(",")]];
  if (state.view !== "pattern") parts.push(["v", state.view]);
  if (state.pool !== "mean") parts.push(["p", state.pool]);
  if (state.scale !== "log") parts.push(["c", state.scale]);
  if (state.variant) parts.push(["w", variantText(state.variant)]);
  if (state.query !== null) parts.push(["q", state.query]);
  if (state.key !== null) parts.push(["k", state.key]);
  if (state.by !== "query") parts.push(["by", state.by]);
  if (state.metric) parts.push(["m", state.metric]);
  parts.push(["at", [state.x, state.y, state.z].map(short).join(",")]);
  return parts.map(([name, value]) => `${name}=${encodeURIComponent(value).replace(/%2C/g, ",").replace(/%3A/g, ":").replace(/%3D/g, "=").replace(/%3B/g, ";")}`).join("&");
}

/* What an address says; parts that say nothing sensible are left out. */
export function readAddress(text, facts) {
  const found = {}, layers = new Set(facts.layers.map((layer) => layer.layer));
  const whole = (x) => (/^\d{1,9}$/.test(x) ? Number(x) : null);
  const oneOf = (x, allowed) => (allowed.includes(x) ? x : undefined);
  const said = {};
  for (const part of text.replace(/^#/, "").split("&")) {
    const at = part.indexOf("=");
    try { if (at > 0) said[part.slice(0, at)] = decodeURIComponent(part.slice(at + 1)); } catch { /* not text */ }
  }
  const pairs = (said.h ?? "").replace(/^L(\d+)H(\d+)$/i, "$1.$2").split(",").map((pair) => pair.split(".").map(whole));
  const heads = pairs.filter(([l, h]) => layers.has(l) && h !== null && h !== undefined && h < facts.heads);
  if (heads.length) found.heads = heads.slice(0, MOST_HEADS);
  const named = /^L(\d+)H(\d+)$/i.exec(text.replace(/^#/, ""));
  if (named && layers.has(Number(named[1])) && Number(named[2]) < facts.heads) found.heads = [[Number(named[1]), Number(named[2])]];
  found.view = oneOf(said.v, VIEWS);
  found.pool = oneOf(said.p, ["max"]);
  found.scale = oneOf(said.c, ["linear"]);
  found.by = oneOf(said.by, ["key"]);
  found.metric = oneOf(said.m, facts.metrics.map((metric) => metric.name));
  if (said.w) found.variant = readVariantText(said.w) ?? undefined;
  for (const [short, name] of [["q", "query"], ["k", "key"]]) {
    const index = whole(said[short] ?? "");
    if (index !== null && index < facts.n) found[name] = index;
  }
  const place = (said.at ?? "").split(",").map(Number);
  if (place.length === 3 && place.every(Number.isFinite) && place[2] > 0) [found.x, found.y, found.z] = place;
  if (found.view === "difference" && !found.variant) found.view = undefined;
  if (found.view === "attribution" && (found.variant || !facts.gradient_of)) found.view = undefined;
  return Object.fromEntries(Object.entries(found).filter(([, value]) => value !== undefined));
}
