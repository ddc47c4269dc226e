"""kv_precision: what a cache of keys and values in few bits changes, by what shares a scale, before RoPE and after."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from interp.analyses.counterfactual.recompute import rotated_keys
from interp.analyses.patterns.head_rows import HeadRows
from interp.analyses.position.massive import values_if_held
from interp.analyses.scores.layer_bounds import chosen_layers
from interp.analyses.scores.rounding_cost import CELLS, Tally, log_sum_exp
from interp.analyses.scores.schema import KV_PRECISION
from interp.common.finite import check_finite
from interp.common.labels import labelled, result_of
from interp.common.progress import track
from interp.measure.subsampling import sample_rows
from interp.tensors.capture_data import CaptureData, check_capture

GROUPINGS = {"channel": 0, "token": -1}  # the axis of [pos d_head] along which one scale serves
_FLOAT8 = torch.finfo(torch.float8_e4m3fn).max
_COSTS = ("kl", "kl_max", "score_error_max", "score_error_rms")

Rounding = Callable[[Float[Tensor, "pos d_head"], int], Float[Tensor, "pos d_head"]]


def _whole_steps(bits: int) -> Rounding:
    """Rounding to 2^bits levels from the smallest to the largest number of each group."""

    def rounded(x: Float[Tensor, "pos d_head"], axis: int) -> Float[Tensor, "pos d_head"]:
        low, high = x.amin(axis, keepdim=True), x.amax(axis, keepdim=True)
        step = (high - low) / (2**bits - 1)
        return torch.where(step > 0, low + ((x - low) / step).round() * step, x)

    return rounded


def _float8(x: Float[Tensor, "pos d_head"], axis: int) -> Float[Tensor, "pos d_head"]:
    """Rounding to float8 (e4m3) with one scale for each group, that makes its largest number the format's."""
    scale = x.abs().amax(axis, keepdim=True) / _FLOAT8
    return torch.where(scale > 0, (x / scale).float().to(torch.float8_e4m3fn).double() * scale, x)


FORMATS: dict[str, Rounding] = {"int8": _whole_steps(8), "int4": _whole_steps(4), "float8": _float8}


@torch.no_grad()
def kv_precision(
    cap: CaptureData, layers: int | Sequence[int] | None = None, queries: int | Sequence[int] | None = 256
) -> xr.Dataset:
    """Rounding of a KV cache: what int8, int4 and float8 keys and values change in each head.

    One scale serves a channel (a feature of a kv head over all tokens) or a token (all features of a kv head). int8
    and int4 have equal steps from the group's smallest to its largest number, float8 is e4m3 scaled to the group's
    largest. Keys are rounded as they enter the score ("final"), or before they are rotated and then rotated exactly
    ("pre_rope"): rotation mixes the two features of a pair, so a channel that is large before it is two that vary
    after it. q, products and softmax stay exact, in float64.

    Args:
        cap: a capture. Costs before the rotation are measured where it holds the stage pre_rope and rotation is the
            layer's last step.
        layers: which of its layers; None is all of them.
        queries: how many queries to measure on, drawn evenly stratified with a fixed seed; their indices; or None for
            all.

    Returns:
        Dataset: kl, kl_max, score_error_max, score_error_rms and key_error over (layer, head, stage, grouping, dtype),
        NaN at pre_rope where that is not known; value_error and output_error over (layer, head, grouping, dtype), where
        the capture holds v.

    Raises:
        InputError: NaN or infinity in q, k or v, or queries that q does not have.
        StageError: a layer that was not captured.
        TextError: fewer than two tokens.

    Source:
        arXiv 2402.02750 (KIVI: keys by channel, values by token); 2401.18079 (KVQuant: keys before RoPE).
    """
    chosen = chosen_layers(check_capture(cap), layers)
    amount = int(queries) if isinstance(queries, np.integer) else queries
    rows = torch.cat(sample_rows(amount, len(cap.positions), torch.device("cpu")).rows).sort().values
    stages, heads = ("pre_rope", "final"), cap.cfg.n_heads
    shape = len(chosen), heads, len(stages), len(GROUPINGS), len(FORMATS)
    keys = {name: np.full(shape, np.nan) for name in (*_COSTS, "key_error")}
    values = {name: np.full((*shape[:2], *shape[3:]), np.nan) for name in ("value_error", "output_error")}
    for at, layer in enumerate(track(chosen, "measuring the cost of precision")):
        v = values_if_held(cap, layer)
        check_finite(rows="position", of=f"layer {layer}: ", q=cap.q(layer), k=cap.k(layer), v=v)
        rounded = _rounded_keys(cap, layer)
        for head in range(heads):
            exact, kv_head = HeadRows.of(cap, layer, head), head // (heads // cap.k(layer).shape[1])
            own = {place: k[:, kv_head] for place, k in rounded.items()}
            own_v = None if v is None else v[:, kv_head].cpu().double()
            for name, found in _head_cost(exact, rows, own, own_v).items():
                for place, number in found.items():
                    (keys if name in keys else values)[name][(at, head, *place)] = number
    out = xr.Dataset(
        {n: (KV_PRECISION[n].dims, x) for n, x in (keys | values).items() if np.isfinite(x).any() or n in keys},
        {
            "layer": list(chosen),
            "head": np.arange(heads),
            "stage": list(stages),
            "grouping": list(GROUPINGS),
            "dtype": list(FORMATS),
        },
        {"queries": f"{len(rows)} of {len(cap.positions)} queries measured"},
    )
    return result_of("kv_precision", labelled(out, KV_PRECISION), "rounding of keys and values in few bits")


Places = dict[tuple[int, ...], Float[Tensor, "pos kv_head d_head"]]


def _roundings(x: Float[Tensor, "pos d_head"]) -> Iterator[tuple[tuple[int, int], Float[Tensor, "pos d_head"]]]:
    """X of one kv head in every grouping and format."""
    for g, axis in enumerate(GROUPINGS.values()):
        for f, rounded in enumerate(FORMATS.values()):
            yield (g, f), rounded(x, axis)


def _rounded_keys(cap: CaptureData, layer: int) -> Places:
    """Keys of a layer, rounded at each (stage, grouping, format), as they enter the score."""
    out: Places = {}
    before = (
        cap.steps(layer)[-1:] == ("rope",) and "pre_rope" in cap.stages(layer) and cap.cfg.rope_for(layer) is not None
    )
    for s, stage in enumerate(("pre_rope", "final")):
        if stage == "final" or before:
            k = cap.k(layer, stage).cpu().double()
            per_head = [dict(_roundings(k[:, head])) for head in range(k.shape[1])]
            for place in per_head[0]:
                stacked = torch.stack([each[place] for each in per_head], dim=1)
                out[s, *place] = rotated_keys(cap, layer, stacked) if stage == "pre_rope" else stacked
    return out


def _head_cost(
    exact: HeadRows, rows: Int[Tensor, " row"], rounded: Places, v: Float[Tensor, "pos d_v"] | None
) -> dict[str, dict[tuple[int, ...], float]]:
    """Every cost of one head at every place."""
    variants = {place: replace(exact, k=k) for place, k in rounded.items()}
    tallies = {place: Tally() for place in variants}
    others = {} if v is None else dict(_roundings(v))
    moved, size = dict.fromkeys(others, 0.0), 0.0
    for part in rows.split(max(CELLS // len(exact.k), 1)):
        keys = torch.arange(int(exact.see.first[part].min()), int(exact.see.stop[part].max()))
        scores = exact.scores(part, keys)
        lse = log_sum_exp(scores, exact)
        for place, variant in variants.items():
            tallies[place].add(scores, lse, variant.scores(part, keys), variant)
        if v is not None:
            pattern = (scores - lse[:, None]).exp()
            size += float((pattern @ v[keys]).square().sum())
            for place, other in others.items():
                moved[place] += float((pattern @ (other - v)[keys]).square().sum())
    k = exact.k.double()
    out = {name: {place: getattr(tally, name) for place, tally in tallies.items()} for name in _COSTS}
    out["key_error"] = {
        place: _relative(float((other - k).norm()), float(k.norm())) for place, other in rounded.items()
    }
    if v is not None:
        out["value_error"] = {p: _relative(float((other - v).norm()), float(v.norm())) for p, other in others.items()}
        out["output_error"] = {p: _relative(off**0.5, size**0.5) for p, off in moved.items()}
    return out


def _relative(off: float, size: float) -> float:
    """Off / size, 0 of nothing."""
    return off / size if size > 0 else 0.0
