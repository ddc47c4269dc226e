"""precision_cost: whether each head's scores fit into float16, bfloat16 and int8, and what rounding q and k changes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from interp.analyses.patterns.head_rows import HeadRows
from interp.analyses.scores.by_variant import largest_product
from interp.analyses.scores.layer_bounds import bound_reason, chosen_layers, layer_bound, linear, vector_bounds
from interp.analyses.scores.moments import PerHead, ScoreMoments
from interp.analyses.scores.rounding_cost import CELLS, Tally, log_sum_exp
from interp.analyses.scores.schema import PRECISION_COST
from interp.common.finite import check_finite
from interp.common.labels import labelled, result_of
from interp.common.progress import track
from interp.measure.subsampling import sample_rows
from interp.tensors.capture_data import CaptureData

_INT8 = 127


class Precision(NamedTuple):
    """A number format for q and k, and how far it reaches.

    Attributes:
        limit: the largest number that the product q·k may be; for int8, of its 32-bit sum.
        step: the relative size of the rounding of one entry.
        rounded: q or k of one head after rounding, in float64.
    """

    limit: float
    step: float
    rounded: Callable[[Float[Tensor, "pos d_head"]], Float[Tensor, "pos d_head"]]


def round_to_int8(x: Float[Tensor, "pos d_head"]) -> Float[Tensor, "pos d_head"]:
    """The nearest points of a symmetric int8 grid with one scale for the whole tensor, max |x| / 127."""
    x = x.double()
    step = _int8_step(x)
    return (x / step).round() * step


PRECISIONS = {
    "float16": Precision(
        torch.finfo(torch.float16).max, torch.finfo(torch.float16).eps / 2, lambda x: x.to(torch.float16).double()
    ),
    "bfloat16": Precision(
        torch.finfo(torch.bfloat16).max, torch.finfo(torch.bfloat16).eps / 2, lambda x: x.to(torch.bfloat16).double()
    ),
    "int8": Precision(float(torch.iinfo(torch.int32).max), 0.0, round_to_int8),
}

_COSTS = ("kl", "kl_max", "score_error_max", "score_error_rms")


@torch.no_grad()
def precision_cost(
    cap: CaptureData, layers: int | Sequence[int] | None = None, queries: int | Sequence[int] | None = 256
) -> xr.Dataset:
    """Range and rounding: does q·k fit into float16, bfloat16 and int8, and how much does the pattern change?

    q and k of each head, as they enter the score, are rounded to the format; products and softmax stay exact
    (float64), as matrix units with wide accumulators nearly do. int8 is symmetric with one scale for a head's q and
    one for its k, max |x| / 127 over this text, and its products are summed in 32 bits. What the head's own precision
    has already cost is not in it: a capture in bfloat16 rounds to bfloat16 for free.

    The verdict is about range: "proven safe" if the norm's weights keep ``|q·k|``, before it is scaled, and every
    entry of q and k under the largest number of the format on any text of this length; "observed safe, not proven" if
    they stayed under it on this text; "overflows" if they did not. bfloat16 reaches as far as float32, and int8 has its
    range from the text.

    Args:
        cap: a capture.
        layers: which of its layers; None is all of them.
        queries: how many queries to measure the cost on, drawn evenly stratified with a fixed seed; their indices; or
            None for all. The range is that of all visible pairs in any case.

    Returns:
        Dataset over (layer, head, dtype): verdict; headroom, limit / observed; proven_headroom, limit / bound, NaN
        without one; kl, kl_max, score_error_max and score_error_rms, inf where the head overflows. Over (layer):
        bound_reason, why there is no bound, empty where there is one. ``attrs["queries"]`` says how many were measured.

    Raises:
        InputError: NaN or infinity in q or k, or queries that q does not have.
        StageError: a layer that was not captured.
        TextError: fewer than two tokens.

    Source:
        Ranges: IEEE 754 binary16; bfloat16 has float32's exponent. int8: symmetric absmax, arXiv 2208.07339 §2.
    """
    chosen = chosen_layers(cap, layers)
    rows = torch.cat(sample_rows(_count(queries), len(cap.positions), torch.device("cpu")).rows).sort().values
    shape = (len(chosen), cap.cfg.n_heads, len(PRECISIONS))
    costs = {name: np.full(shape, np.nan) for name in _COSTS}
    observed, proven = np.full(shape, np.nan), np.full(shape, np.nan)
    for at, layer in enumerate(track(chosen, "measuring the cost of precision")):
        for head in range(cap.cfg.n_heads):
            exact = HeadRows.of(cap, layer, head)
            for name, per_dtype in _head_cost(exact, rows).items():
                costs[name][at, head] = per_dtype
        observed[at], proven[at] = _headroom(cap, layer)
    for cost in costs.values():
        cost[observed < 1] = np.inf
    verdicts = [
        [[_verdict(*one) for one in zip(PRECISIONS, *pair, strict=True)] for pair in zip(*per_layer, strict=True)]
        for per_layer in zip(observed, proven, strict=True)
    ]
    found: dict[str, object] = {
        **costs,
        "headroom": observed,
        "proven_headroom": proven,
        "verdict": np.array(verdicts),
        "bound_reason": [bound_reason(cap, layer, spec=linear(cap.spec(layer))) for layer in chosen],
    }
    out = xr.Dataset(
        {name: (PRECISION_COST[name].dims, values) for name, values in found.items()},
        {"layer": list(chosen), "head": np.arange(cap.cfg.n_heads), "dtype": list(PRECISIONS)},
        {"queries": f"{len(rows)} of {len(cap.positions)} queries measured"},
    )
    what = "range and rounding of each head's q and k in low precision"
    return result_of("precision_cost", labelled(out, PRECISION_COST), what)


def _count(queries: int | Sequence[int] | None) -> int | Sequence[int] | None:
    """A number as int, for numpy's integers."""
    return int(queries) if isinstance(queries, np.integer) else queries


def _head_cost(exact: HeadRows, rows: Int[Tensor, " row"]) -> dict[str, list[float]]:
    """What rounding q and k to each format costs one head, on some of its queries."""
    check_finite(rows="position", of=f"{exact.name}: ", q=exact.q, k=exact.k)
    variants = [replace(exact, q=p.rounded(exact.q), k=p.rounded(exact.k)) for p in PRECISIONS.values()]
    tallies = [Tally() for _ in PRECISIONS]
    height = max(CELLS // len(exact.k), 1)
    for part in rows.split(height):
        keys = torch.arange(int(exact.see.first[part].min()), int(exact.see.stop[part].max()))
        scores = exact.scores(part, keys)
        lse = log_sum_exp(scores, exact)
        for rounded, tally in zip(variants, tallies, strict=True):
            tally.add(scores, lse, rounded.scores(part, keys), rounded)
    return {name: [getattr(tally, name) for tally in tallies] for name in _COSTS}


def _headroom(cap: CaptureData, layer: int) -> tuple[Float[np.ndarray, "head dtype"], Float[np.ndarray, "head dtype"]]:
    """Limit over the largest number, observed and proven (NaN without a bound), for each head and format."""
    q, k, spec, heads = cap.q(layer), cap.k(layer), cap.spec(layer), cap.cfg.n_heads
    top_q, top_k = (_per_head_largest(x, heads) for x in (q, k))
    product = largest_product(q, k, spec, ScoreMoments.of(cap.statistics([layer]).isel(layer=0)), cap.documents)
    bound = layer_bound(cap, layer, spec=linear(spec)) / abs(spec.scale)
    bound_q, bound_k = vector_bounds(cap, layer)
    observed, proven = [], []
    for name, precision in PRECISIONS.items():
        if name == "int8":
            # In units of both steps: never more than 127² from each feature, by construction.
            observed.append(_room(precision.limit * (top_q / _INT8) * (top_k / _INT8), product))
            proven.append(np.full(heads, precision.limit / (_INT8**2 * cap.cfg.d_head)))
            continue
        # Rounding both entries of every term moves q·k by at most (2 step + step²) ‖q‖‖k‖.
        moved = (2 + precision.step) * precision.step * bound_q * bound_k
        observed.append(_room(np.full(heads, precision.limit), np.maximum.reduce([product, top_q, top_k])))
        most = np.maximum.reduce([bound + moved, bound_q, bound_k])
        proven.append(np.where(np.isfinite(most), precision.limit / most, np.nan))
    return np.stack(observed, axis=-1), np.stack(proven, axis=-1)


def _room(limit: PerHead, largest: PerHead) -> PerHead:
    """Limit / largest, inf for a head whose products are all 0."""
    return np.divide(limit, largest, out=np.full(len(largest), np.inf), where=largest > 0)


def _per_head_largest(x: Float[Tensor, "pos any_head d_head"], heads: int) -> PerHead:
    """The largest |entry| of what each query head reads."""
    largest = x.abs().amax((0, 2)).cpu().double().numpy()
    return np.repeat(largest, heads // len(largest))


def _int8_step(x: Tensor) -> Tensor:
    """The int8 scale of a tensor; 1 where it is all zeros."""
    largest = x.abs().max()
    return torch.where(largest > 0, largest / _INT8, 1.0)


def _verdict(dtype: str, observed: float, proven: float) -> str:
    """Headroom in words."""
    limit = {"float16": "65,504", "bfloat16": "3.39e38", "int8": "2,147,483,647"}[dtype]
    if proven > 1:
        return f"proven safe: bound {proven:,.3g}× below {limit}"
    if dtype == "bfloat16":
        return "safe: bfloat16 reaches as far as float32"
    return "observed safe, not proven" if observed >= 1 else "overflows"
