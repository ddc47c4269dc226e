"""An audit in words: what holds of layers alike, what schedules would change, which heads lean on position most."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import xarray as xr

from interp.analyses.weights.audit_data import AuditData
from interp.common.words import KIND_NAME, head_name, number_ranges
from interp.reporting.sentences import number

_MOST_HEADS = 3
_SHORT = {"float16": "float16", "float8_e4m3fn": "float8 e4m3", "float8_e5m2": "float8 e5m2"}


class Words(NamedTuple):
    """A table of words: a name for each column but the first, and rows that begin with what they are about."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Alike(NamedTuple):
    """Layers of one kind with the same steps."""

    name: str
    kind: str
    layers: tuple[int, ...]


def headline(data: AuditData) -> str:
    """The model in one line."""
    cfg = data.cfg
    shared = "" if cfg.n_kv_heads == cfg.n_heads else f" on {_count(cfg.n_kv_heads, 'kv head')}"
    return (
        f"{_count(cfg.n_layers, 'layer')}, {_count(cfg.n_heads, 'head')}{shared} of {cfg.d_head} features, made for "
        f"{cfg.n_ctx:,} tokens"
    )


def layers_alike(data: AuditData) -> list[Alike]:
    """The audited layers by kind and steps, in the order of their first layers."""
    found: dict[tuple[str, str], list[int]] = {}
    kinds, steps = (data.layers[name].values.tolist() for name in ("layer_type", "steps"))
    for layer, kind, step in zip(data.layers["layer"].values.tolist(), kinds, steps, strict=True):
        found.setdefault((kind, step), []).append(layer)
    names = [KIND_NAME[kind] for kind, _ in found]
    return [
        Alike(KIND_NAME[kind] if names.count(KIND_NAME[kind]) == 1 else f"{KIND_NAME[kind]}, {step}", kind, tuple(each))
        for (kind, step), each in found.items()
    ]


def layer_words(data: AuditData) -> Words:
    """A column for layers alike, and a row for each thing that an audit finds out about them."""
    alike = layers_alike(data)
    columns = [dict(_group_words(data, each)) for each in alike]
    labels = list(dict.fromkeys(label for column in columns for label in column))
    rows = [(label, *(column.get(label, "–") for column in columns)) for label in labels]
    return Words(tuple("all layers" if len(alike) == 1 else f"{each.name} layers" for each in alike), tuple(rows))


def schedule_words(data: AuditData) -> Words:
    """A column for each rotation and a row for each schedule: pairs slower, first negative sum, what scores grow by."""
    table, rows = data.schedules, []
    plain = bool((data.rotations["rope_type"] == "default").all())
    for name in table["schedule"].values.tolist():
        if name == "default" and plain:  # it is as it is
            continue
        cells = []
        for rotation in table["rotation"].values.tolist():
            one = table.sel(schedule=name, rotation=rotation)
            factor = float(one["attention_factor"]) ** 2
            if not np.isfinite(factor):
                cells.append("–")
                continue
            parts = [f"{int(one['changed_pairs'])} of {int(np.isfinite(one['kept']).sum())}"]
            parts.append(_first_negative(float(one["first_negative"])))
            cells.append(" · ".join(parts + ([] if abs(factor - 1) < 1e-9 else [f"scores × {number(factor)}"])))
        rows.append((name if name != "own" else "as it is", *cells))
    names = [KIND_NAME[name] for name in table["rotation"].values.tolist()]
    return Words(tuple("all that turn" if len(names) == 1 else f"{name} layers" for name in names), tuple(rows))


def leaning(data: AuditData) -> list[tuple[int, int]]:
    """(layer, head) of every head whose mean score over token embeddings is known, the one that moves most first."""
    swing = data.swing().transpose("layer", "head")
    values = swing.values.ravel()
    order = [int(at) for at in np.argsort(-np.nan_to_num(values, nan=-1.0), kind="stable") if np.isfinite(values[at])]
    places = (divmod(at, swing.sizes["head"]) for at in order)
    return [(int(swing["layer"][row]), int(swing["head"][column])) for row, column in places]


def leaning_heads(data: AuditData, most: int = _MOST_HEADS) -> list[str]:
    """The heads whose mean score over token embeddings moves most with the distance, in sentences."""
    said = []
    for layer, head in leaning(data)[:most]:
        one = data.heads["mean_score"].sel(layer=layer, head=head)
        total = one.sum("pair", skipna=True, min_count=1).dropna("distance")
        high, low = (int(total["distance"][int(find(total.values))]) for find in (np.argmax, np.argmin))
        pair = int(np.argmax((one.max("distance") - one.min("distance")).fillna(0).values))
        wavelength = float(data.heads["wavelength"].sel(layer=layer).isel(pair=pair))
        said.append(
            f"{head_name(layer, head)}: {number(float(total.max()))} at Δ {high:,}, {number(float(total.min()))} at "
            f"Δ {low:,}; most from pair {pair} (wavelength {number(wavelength)})"
        )
    return said


def each_layer(data: AuditData) -> Words:
    """A row for each layer."""
    columns = ("layer", "kind", "q, k → score", "relative", "gain q", "gain k", "bound", *_SHORT.values())
    rows = []
    for layer in data.layers["layer"].values.tolist():
        one = data.layers.sel(layer=layer)
        rows.append(
            (
                str(layer),
                KIND_NAME[one["layer_type"].item()],
                one["steps"].item(),
                one["relative"].item(),
                *(_span(one[name]) for name in ("gain_q", "gain_k", "largest_bound")),
                *(f"≥ {number(float(room))} ×" if np.isfinite(room) else "–" for room in one["headroom"].min("head")),
            )
        )
    return Words(columns, tuple(rows))


def _group_words(data: AuditData, alike: Alike) -> Iterator[tuple[str, str]]:
    """What holds of layers alike, row by row."""
    part = data.layers.sel(layer=list(alike.layers))
    first = part.isel(layer=0)
    window = int(first["window"])
    yield "layers", number_ranges(alike.layers)
    yield "a query sees", f"{min(window, data.cfg.n_ctx) if window else data.cfg.n_ctx:,} tokens"
    yield "q, k → score", str(first["steps"].item())
    if first["norm"].item():
        yield "QK-norm", str(first["norm"].item())
    yield "relative", _same(part["relative"])
    if "rope" in str(first["steps"].item()) and alike.kind in data.rotations["rotation"].values:
        yield from _rotation_words(data.rotations.sel(rotation=alike.kind))
    if np.isfinite(part["gain_q"]).any():
        yield "largest gain", f"q {_span(part['gain_q'])}, k {_span(part['gain_k'])}"
    yield from _bound_words(part)


def _rotation_words(rotation: xr.Dataset) -> Iterator[tuple[str, str]]:
    """How layers turn."""
    pairs = np.isfinite(rotation["wavelength"]).sum()
    yield "base θ", f"{float(rotation['rope_theta']):,.0f}, {rotation['rope_type'].item()}"
    turning = rotation["wavelength"].where(np.isfinite(rotation["wavelength"]))
    yield "wavelengths", f"{number(float(turning.min()))} to {number(float(turning.max()))} tokens"
    yield "never turn once", f"{int(rotation['slow_pairs'])} of {int(pairs)} pairs"
    yield "critical dimension", f"{int(rotation['critical_dimension'])} of {int(rotation['rotary_dim'])}"
    first = float(rotation["first_negative"])
    seen = "" if not np.isfinite(first) else ", seen" if first < int(rotation["span"]) else ", never seen"
    yield "Σ cos(θΔ) < 0", _first_negative(first) + seen


def _bound_words(part: xr.Dataset) -> Iterator[tuple[str, str]]:
    """What is proven of scores."""
    if not np.isfinite(part["largest_bound"]).any():
        yield "score bound", f"none: {_same(part['bound_reason'])}"
        return
    bounded = np.isfinite(part["bound"].transpose("distance", "layer", "head").values).any((1, 2))
    furthest = int(part["distance"].values[bounded].max())
    yield "score bound", _span(part["largest_bound"])
    yield "  near", f"{_span(part['bound'].sel(distance=min(1, furthest)))} at Δ {min(1, furthest)}"
    yield "  far", f"{_span(part['bound'].sel(distance=furthest))} at Δ {furthest:,}"
    yield "proven by", _same(part["bound_source"])
    for name, short in _SHORT.items():
        room = part["headroom"].sel(dtype=name)
        safe, least = int((room > 1).sum()), float(room.min())
        verdict = "proven safe" if safe == room.size else f"proven in {safe} of {room.size} heads"
        yield short, f"{verdict}, room ≥ {number(least)} ×"


def _first_negative(distance: float) -> str:
    return f"from Δ {distance:,.0f}" if np.isfinite(distance) else "nowhere"


def _span(values: xr.DataArray) -> str:
    """The smallest and the largest, once where they are alike."""
    low, high = number(float(values.min())), number(float(values.max()))
    return low if low == high else f"{low} – {high}"


def _same(words: xr.DataArray) -> str:
    """The words of layers alike, each once."""
    return "; ".join(dict.fromkeys(str(word) for word in words.values.ravel().tolist() if word)) or "–"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
