"""Mean scores by distance, split exactly into what each RoPE frequency pair contributes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from hooks import AttentionSpec, checks
from hooks.errors import InputError, MaterializationError, StageError
from hooks.functional.float64 import float64_device
from hooks.memory import free_bytes
from interp.analyses.position.correlation import correlations
from interp.analyses.position.schema import FREQUENCY_BIAS
from interp.common.binning import bin_starts, ratio
from interp.common.finite import check_finite
from interp.common.labels import labelled, result_of
from interp.common.progress import track
from interp.common.stacking import named_layer
from interp.common.words import number_ranges
from interp.measure.visibility import reach
from interp.tensors.capture_data import CaptureData
from interp.tensors.rotation import rotating_layers
from interp.tensors.selection import head_numbers

Distances = Literal["all", "binned"]


def frequency_bias(
    cap: CaptureData,
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
    *,
    distances: Distances = "all",
) -> xr.Dataset:
    """What each RoPE frequency pair contributes to a head's mean score at every distance, exactly.

    A score is a sum over features, ``s_ij = scale · Σ_c q_ic k_jc``, so its mean at a distance is a sum over the pairs
    of features that turn together, plus the features that do not turn: ``Σ_pair score_mean + score_mean_rest`` is the
    ``score_mean`` of `positional_bias`, as long as the score has neither soft-cap nor ALiBi. q and k are those that
    enter the score, whatever the order of norm and rotation.

    Args:
        cap: a capture of a model that rotates; no stage but the final one is needed.
        layers: which of its layers that rotate; None is all of them.
        heads: which query heads; None is all of them.
        distances: "all" keeps every Δ, 8 bytes for each layer, head, frequency pair and Δ. "binned" merges distances
            into bins of equal width on a log axis, as `positional.bin_distances` does. Both are exact.

    Returns:
        Dataset: score_mean (layer, head, pair, distance), score_mean_rest (layer, head, distance), count (layer,
        distance), inv_freq [rad/token] and wavelength [token] (layer, pair), q_norm and k_norm (layer, head, pair).
        NaN where a layer sees no key at the distance or has no such pair. When binned, ``distance_bin`` with the
        coordinates first_distance and last_distance stands in place of ``distance``.

    Raises:
        StageError: no such layer or head, or a layer that does not rotate or whose frequencies are not known.
        InputError: q or k hold NaN or infinity, positions have gaps or are of packed documents, or there are fewer
            than two.
        MaterializationError: the result does not fit in free memory.

    Source:
        arXiv 2410.06205 (what heads use each frequency for), 2502.01563 (massive values).
    """
    distances = checks.choice("distances", distances, ("all", "binned"))
    chosen = rotating_layers(cap, layers)
    pairs = [pairs_of(cap, layer) for layer in chosen]
    cap.check_one_text("frequency_bias")
    if bool((cap.positions.diff() != 1).any()):
        raise InputError(
            "positions have gaps, and a correlation needs each to be one more than the last; cap.statistics() measures "
            "score_mean at any positions, though not by frequency pair"
        )
    specs = [cap.spec(layer) for layer in chosen]
    head_index = np.array(head_numbers(heads, cap.cfg.n_heads))
    grid = _Grid.of(specs, len(cap.positions), distances)
    out = _empty((len(chosen),), len(head_index), max(p.inv_freq.numel() for p in pairs), grid)
    for row, layer in enumerate(track(chosen, "correlating q and k")):
        held = {name: array[row] for name, array in out.items()}
        with named_layer(layer):
            _measure(cap.q(layer), cap.k(layer), specs[row], pairs[row], head_index, grid, held)
    result = _dataset(out, {"layer": list(chosen), "head": head_index}, grid)
    capped = [layer for layer, spec in zip(chosen, specs, strict=True) if spec.softcap is not None]
    return result.assign_attrs(softcapped_layers=number_ranges(capped)) if capped else result


@torch.no_grad()
def frequency_scores(
    q: Float[Tensor, "pos head d_head"],
    k: Float[Tensor, "pos kv_head d_head"],
    spec: AttentionSpec,
    inv_freq: Float[Tensor, " pair"],
    *,
    interleaved: bool = False,
    heads: int | Sequence[int] | None = None,
    distances: Distances = "all",
) -> xr.Dataset:
    """`frequency_bias` of one layer's tensors, for q and k that no capture holds.

    Args:
        q: Queries as they enter the score, each position one more than the last.
        k: Keys at the same positions; head h uses kv head ``h // (head / kv_head)``.
        spec: Scale, causality and window count; soft-cap and ALiBi are left out.
        inv_freq: Angle per token of each pair in radians; features past ``2 · pair`` belong to none.
        interleaved: Pairs are features (2i, 2i + 1) instead of (i, i + pair).
        heads: Which query heads; None is all.
        distances: "all" or "binned".

    Returns:
        Dataset over (head, pair, distance) with the variables of `frequency_bias`.

    Raises:
        InputError: shapes that do not fit together, NaN or infinity, fewer than two positions.
        StageError: no such head.
        MaterializationError: the result does not fit in free memory.
    """
    if q.ndim != 3 or k.ndim != 3 or q.shape[0] != k.shape[0] or q.shape[1] % k.shape[1] or q.shape[2] != k.shape[2]:
        raise InputError(
            f"q {tuple(q.shape)} and k {tuple(k.shape)} must be [pos head d_head] and [pos kv_head d_head] with the "
            "same positions and d_head, and the heads of q a multiple of those of k"
        )
    if 2 * inv_freq.numel() > q.shape[2]:
        raise InputError(f"{inv_freq.numel()} frequencies do not fit heads of {q.shape[2]} features: two for each")
    head_index = np.array(head_numbers(heads, q.shape[1]))
    grid = _Grid.of([spec], q.shape[0], distances)
    out = _empty((), len(head_index), inv_freq.numel(), grid)
    _measure(q, k, spec, Pairs(inv_freq.cpu().double(), interleaved), head_index, grid, out)
    return _dataset(out, {"head": head_index}, grid)


@dataclass(frozen=True)
class Pairs:
    """Frequencies, and the features that turn with each."""

    inv_freq: Float[Tensor, " pair"]
    interleaved: bool

    @property
    def features(self) -> Int[Tensor, "pair 2"]:
        """The two features of each pair."""
        index = torch.arange(2 * self.inv_freq.numel())
        return index.view(-1, 2) if self.interleaved else index.view(2, -1).T


def pairs_of(cap: CaptureData, layer: int) -> Pairs:
    """The frequency pairs of a layer that rotates."""
    frequencies, rope = cap.constants(layer).inv_freq, cap.cfg.rope_for(layer)
    if frequencies is None or rope is None:
        raise StageError(
            f"the frequencies of layer {layer} are not known to this capture: its cache or its model does not state "
            "them. Capture with capture(HookedTransformer.from_pretrained(…), text), or give q, k and inv_freq to "
            "interp.analyses.position.frequencies.frequency_scores"
        )
    return Pairs(frequencies.cpu().double(), bool(rope.interleaved))


@dataclass(frozen=True)
class _Grid:
    """Every distance that some layer sees; where bins begin, when distances are merged."""

    distance: np.ndarray
    starts: np.ndarray | None

    @classmethod
    def of(cls, specs: Sequence[AttentionSpec], n: int, distances: Distances) -> "_Grid":
        """The distances of n positions under some specs."""
        if distances not in get_args(Distances):
            raise InputError(f"distances={distances!r}: choose from {', '.join(get_args(Distances))}")
        if n < 2:
            raise InputError(f"{n} position: a profile over distances needs at least 2, so capture a longer text")
        lows, highs = zip(*(reach(spec, n) for spec in specs), strict=True)
        distance = np.arange(min(lows), max(highs) + 1)
        return cls(distance, bin_starts(distance, per_octave=4) if distances == "binned" else None)

    @property
    def n_entries(self) -> int:
        """Length of the result's distance axis."""
        return len(self.distance if self.starts is None else self.starts)

    def merged(self, values: np.ndarray) -> np.ndarray:
        """Sums over each bin."""
        return values if self.starts is None else np.add.reduceat(values, self.starts, axis=-1)

    def coordinates(self) -> dict[str, tuple[str, np.ndarray]]:
        """Coordinates of the result's distance axis."""
        if self.starts is None:
            return {"distance": ("distance", self.distance)}
        last = np.append(self.starts[1:], len(self.distance)) - 1
        return {
            "first_distance": ("distance_bin", self.distance[self.starts]),
            "last_distance": ("distance_bin", self.distance[last]),
        }


def _measure(
    q: Float[Tensor, "pos head d_head"],
    k: Float[Tensor, "pos kv_head d_head"],
    spec: AttentionSpec,
    pairs: Pairs,
    heads: np.ndarray,
    grid: _Grid,
    out: dict[str, np.ndarray],
) -> None:
    """Fill the arrays of one layer."""
    check_finite(rows="position", q=q, k=k)
    n, n_pairs, group = q.shape[0], pairs.inv_freq.numel(), q.shape[1] // k.shape[1]
    low, high = reach(spec, n)
    seen = slice(low - int(grid.distance[0]), high - int(grid.distance[0]) + 1)
    every = np.zeros(len(grid.distance), dtype=np.int64)
    every[seen] = n - np.abs(grid.distance[seen])
    out["count"][:] = count = grid.merged(every)
    out["inv_freq"][:n_pairs] = pairs.inv_freq.numpy()
    with np.errstate(divide="ignore"):
        out["wavelength"][:n_pairs] = 2 * np.pi / pairs.inv_freq.numpy()

    def put(to: np.ndarray, sums: Float[Tensor, "*group lag"]) -> None:
        by_distance = (sums * spec.scale).cpu().numpy()
        if grid.starts is None:
            np.divide(by_distance, every[seen], out=to[..., seen])
            return
        spread = np.zeros((*sums.shape[:-1], len(every)))
        spread[..., seen] = by_distance
        to[...] = ratio(grid.merged(spread), count)

    rest = torch.arange(2 * n_pairs, q.shape[2])[:, None]
    for kv_head in np.unique(heads // group):
        rows = np.nonzero(heads // group == kv_head)[0]
        queries = q[:, heads[rows].tolist()].permute(1, 2, 0).contiguous()
        keys = k[:, int(kv_head)].T.contiguous()
        for part, index, sums in correlations(queries, keys, pairs.features, low, high):
            put(out["score_mean"][rows[index], part], sums)
        whole = torch.zeros(len(rows), high - low + 1, dtype=torch.float64)
        for _, index, sums in correlations(queries, keys, rest, low, high):
            whole[index] += sums.sum(0).cpu()
        for row, sums in zip(rows, whole, strict=True):
            put(out["score_mean_rest"][row], sums)
        out["q_norm"][rows, :n_pairs] = _pair_norms(queries, pairs.features)
        out["k_norm"][rows, :n_pairs] = _pair_norms(keys[None], pairs.features)


def _pair_norms(x: Float[Tensor, "head d_head pos"], features: Int[Tensor, "pair 2"]) -> np.ndarray:
    """Root mean square over positions of each pair's two features, [head pair]."""
    x = x.to(float64_device(x.device))
    square = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64).square() / x.shape[-1]
    return square[:, features.to(x.device)].sum(-1).sqrt().cpu().numpy()


def _empty(layers: tuple[int, ...], heads: int, pairs: int, grid: _Grid) -> dict[str, np.ndarray]:
    """Arrays of NaN for the result, counts of 0, once they are known to fit."""
    shape = {
        "score_mean": (*layers, heads, pairs, grid.n_entries),
        "score_mean_rest": (*layers, heads, grid.n_entries),
        "count": (*layers, grid.n_entries),
        "inv_freq": (*layers, pairs),
        "wavelength": (*layers, pairs),
        "q_norm": (*layers, heads, pairs),
        "k_norm": (*layers, heads, pairs),
    }
    needed, free = 8 * int(np.prod(shape["score_mean"])), free_bytes()
    if needed > free:
        raise MaterializationError(
            f"score_mean {shape['score_mean']} at every distance needs {needed:,} bytes and {free:,} are free: pass "
            'distances="binned", or fewer layers or heads'
        )
    out = {name: np.full(size, np.nan) for name, size in shape.items() if name != "count"}
    return out | {"count": np.zeros(shape["count"], dtype=np.int64)}


def _dataset(out: dict[str, np.ndarray], index: dict[str, Any], grid: _Grid) -> xr.Dataset:
    """The filled arrays with their names."""
    coords = {name: (name, values) for name, values in index.items()} | grid.coordinates()
    coords["pair"] = ("pair", np.arange(out["inv_freq"].shape[-1]))
    axis = next(iter(grid.coordinates().values()))[0]
    replaced = {"distance": (axis,), "layer": ("layer",) if "layer" in index else ()}

    def dims(name: str) -> list[str]:
        return [dim for said in FREQUENCY_BIAS[name].dims for dim in replaced.get(said, (said,))]

    result = xr.Dataset({name: (dims(name), out[name]) for name in FREQUENCY_BIAS}, coords)
    text = "mean score by distance, split into RoPE's frequency pairs, before soft-cap and ALiBi"
    return result_of("frequency_bias", labelled(result, FREQUENCY_BIAS), text)
