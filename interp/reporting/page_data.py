"""Everything that the report's page draws itself when a head is chosen, as one JSON value of bounded size.

Curves are in bins of distance, histograms in fixed bins, maps in 128 × 128 cells: nothing here grows with the text.
"""

import base64
import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from hooks.errors import InputError, StageError
from interp.analyses.patterns.head_rows import HeadRows
from interp.analyses.position.frequencies import frequency_bias
from interp.common.words import KIND_NAME, visible_text
from interp.plots.maps import MAP_DECADES
from interp.tensors.capture_data import CaptureData

_HISTOGRAM_BINS = 64
_TOP_TOKENS = 10
_LONGEST_TOKEN = 32
# Tokens at the end of the text whose attention to each other the page shows exactly.
WINDOW_TOKENS = 40
_LEVELS = 254
# Wavelengths, in tokens, at which one band of frequency pairs ends and the next begins.
_BAND_EDGES = (0, 32, 256, 2048, 32_768, np.inf)


def as_script(value: Any) -> str:
    """JSON that cannot end the script element that holds it, whatever text is in it."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def packed(values: np.ndarray) -> dict[str, Any]:
    """An array as base64 of little-endian float32, with its shape."""
    array = np.ascontiguousarray(values, dtype="<f4")
    return {"shape": list(array.shape), "f4": base64.b64encode(array.tobytes()).decode("ascii")}


def head_data(cap: CaptureData, heads: Sequence[int], binned: xr.Dataset, ranges: xr.Dataset) -> dict[str, Any]:
    """What the panel shows of each head of one capture."""
    stats = cap.statistics().sel(head=list(heads))
    return {
        "model": visible_text(cap.model_id, 80),
        "tokens": len(cap.positions),
        "distance": _curves(binned),
        "bands": _bands(cap, heads),
        "histogram": _histogram(stats, ranges),
        "top": _top_tokens(cap, stats),
        "map": {name: packed(stats[f"map_{name}"].values) for name in ("query", "key")},
        "window": _window(cap, heads),
    }


def layer_data(cap: CaptureData) -> list[dict[str, Any]]:
    """Number, kind and window of each layer."""
    return [
        {
            "layer": layer,
            "kind": KIND_NAME[cap.cfg.layer_type(layer)],
            "window": cap.spec(layer).window or 0,
            "rotates": cap.cfg.rope_for(layer) is not None,
        }
        for layer in cap.layers
    ]


def metric_data(metrics: Sequence[xr.DataArray]) -> list[dict[str, Any]]:
    """Each number per head with what it is; None where there is no value."""
    return [
        {
            "key": str(values.name),
            "label": values.attrs["label"],
            "units": values.attrs.get("units", ""),
            "about": values.attrs.get("description", ""),
            "formula": values.attrs.get("formula", ""),
            "values": _numbers(values.transpose("layer", "head").values),
        }
        for values in metrics
    ]


def _numbers(values: np.ndarray) -> list[list[float | None]]:
    """Rows of numbers with six digits, which JSON can hold."""
    return [[float(f"{x:.6g}") if np.isfinite(x) else None for x in row] for row in values.astype(float)]


def _curves(binned: xr.Dataset) -> dict[str, Any]:
    """Attention and scores by distance, [layer head bin]."""
    names = ("attention_mean", "attention_share", "score_mean", "score_min", "score_max")
    return {
        "first": binned["first_distance"].values.tolist(),
        "last": binned["last_distance"].values.tolist(),
        **{name: packed(binned[name].transpose("layer", "head", "distance_bin").values) for name in names},
    }


def _bands(cap: CaptureData, heads: Sequence[int]) -> dict[str, Any] | None:
    """Mean score by distance, split into bands of frequency pairs, [layer head band bin]; None without rotation."""
    try:
        bias = frequency_bias(cap, heads=list(heads), distances="binned")
    except (StageError, InputError):  # nothing rotates, or positions have gaps
        return None
    bias = bias.reindex(layer=list(cap.layers))
    wavelength = bias["wavelength"].transpose("layer", "pair").values
    scores = bias["score_mean"].transpose("layer", "head", "pair", "distance_bin").values
    layers, heads_, _, bins = scores.shape
    bands = list(itertools.pairwise(_BAND_EDGES))
    out = np.full((layers, heads_, len(bands), bins), np.nan)
    for layer in range(layers):
        for band, (low, high) in enumerate(bands):
            within = (wavelength[layer] >= low) & (
                (wavelength[layer] < high) | np.isinf(high) & ~np.isnan(wavelength[layer])
            )
            if within.any():
                out[layer, :, band] = scores[layer][:, within].sum(1)
    return {
        "labels": [_band_label(*edges) for edges in bands],
        "first": bias["first_distance"].values.tolist(),
        "last": bias["last_distance"].values.tolist(),
        "score": packed(out),
    }


def _band_label(low: float, high: float) -> str:
    """A band of wavelengths in words."""
    if low == 0:
        return f"λ < {high:,}"
    return f"λ ≥ {low:,}" if np.isinf(high) else f"λ {low:,} – {high:,}"


def _histogram(stats: xr.Dataset, ranges: xr.Dataset) -> dict[str, Any]:
    """Share of the pairs in equal bins between each head's smallest and largest score, [layer head bin]."""
    low, high = stats["score_bin_left"].values, stats["score_bin_right"].values
    counts = stats["score_count"].transpose("layer", "head", "score_bin").values.astype(np.float64)
    ends = [ranges[name].transpose("layer", "head").values for name in ("score_min", "score_max")]
    shares = np.zeros((*counts.shape[:2], _HISTOGRAM_BINS))
    for at in np.ndindex(*counts.shape[:2]):
        # Counts inside a fine bin are spread evenly: what lies below each edge is read off the cumulated counts.
        first, last = float(ends[0][at]), float(ends[1][at])
        places = np.concatenate([low[:1], high]).clip(first, last)
        below = np.concatenate([[0], counts[at].cumsum()])
        kept = np.append(np.flatnonzero(np.diff(places)), len(places) - 1)
        edges = np.linspace(first, last, _HISTOGRAM_BINS + 1)
        share = np.diff(np.interp(edges, places[kept], below[kept], left=0)) / max(below[-1], 1)
        shares[at] = share
    return {
        "low": _numbers(ends[0]),
        "high": _numbers(ends[1]),
        "share": packed(shares),
        "bound": _numbers(ranges["bound"].transpose("layer", "head").values),
    }


def _top_tokens(cap: CaptureData, stats: xr.Dataset) -> dict[str, Any]:
    """The keys that receive most attention in each head: index, share of all attention, share weighted by values."""
    received = stats["received"].transpose("layer", "head", "key").values
    k = min(_TOP_TOKENS, received.shape[-1])
    order = np.argsort(-received, axis=-1, kind="stable")[..., :k]
    share = _share_of_all(received, order)
    moved = None
    if "received_value" in stats:
        moved = packed(_share_of_all(stats["received_value"].transpose("layer", "head", "key").values, order))
    used = np.unique(order)
    return {
        "key": order.tolist(),
        "share": packed(share),
        "moved": moved,
        "token": {int(i): _token(cap, i) for i in used},
        "position": {int(i): int(cap.positions[int(i)]) for i in used},
    }


def _share_of_all(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The chosen entries as shares of the sum over keys."""
    total = np.nansum(values, axis=-1, keepdims=True)
    return np.take_along_axis(values, order, -1) / np.where(total > 0, total, np.nan)


def _token(cap: CaptureData, index: int) -> str:
    """A token as the page shows it."""
    return visible_text(cap.str_tokens[int(index)], _LONGEST_TOKEN) if len(cap.str_tokens) else ""


def _window(cap: CaptureData, heads: Sequence[int]) -> dict[str, Any]:
    """Exact attention among the last tokens, one byte a cell: 0 where no key is seen, else its logarithm."""
    n = len(cap.positions)
    indices = torch.arange(max(0, n - WINDOW_TOKENS), n)
    levels = np.zeros((len(cap.layers), len(heads), len(indices), len(indices)), dtype=np.uint8)
    for row, layer in enumerate(cap.layers):
        for column, head in enumerate(heads):
            for block, _, pattern in HeadRows.of(cap, layer, head).blocks(indices, indices):
                levels[row, column, block] = _as_levels(pattern.numpy())
    return {
        "shape": list(levels.shape),
        "u1": base64.b64encode(levels.tobytes()).decode("ascii"),
        "position": cap.positions[indices].tolist(),
        "token": [_token(cap, i) for i in indices.tolist()],
    }


def _as_levels(attention: np.ndarray) -> np.ndarray:
    """Attention as 1 … 255 on a logarithmic scale, 0 where there is none at all."""
    with np.errstate(divide="ignore"):
        height = 1 + np.log10(attention) / MAP_DECADES
    return np.where(attention > 0, 1 + np.rint(np.clip(height, 0, 1) * _LEVELS), 0).astype(np.uint8)
