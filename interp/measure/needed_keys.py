"""How many keys a query needs: the fewest that hold a share of its attention, and those near its largest score."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooks.config.attention_spec import AttentionSpec
from hooks.errors import InputError
from hooks.functional.float64 import float64_device
from hooks.functional.scores import finish_scores
from interp.common.progress import counted
from interp.measure.arguments import check_tensors, checked_documents, checked_mask, checked_positions, checked_start
from interp.measure.visibility import Visibility
from interp.measure.work import OVERFLOW

# Scores of a block in float64, and as many again in the sort: 16 MB each.
_CELLS = 2**21
_SLACK = 1 - 1e-9  # a level is reached up to rounding: half of two equal keys is one key


class NeededKeys(NamedTuple):
    """Counts of keys for each query.

    Attributes:
        needed: fewest keys that hold each level, NaN where no number of them does: the query sees nothing, or a
            learned sink holds the rest.
        within: keys whose score is at most each gap below the query's largest.
        seen: keys that the query sees.
    """

    needed: Float[np.ndarray, "head level query"]
    within: Int[np.ndarray, "head gap query"]
    seen: Int[np.ndarray, " query"]


@torch.no_grad()
def needed_keys(
    q: Float[Tensor, "query head d_head"],
    k: Float[Tensor, "key kv_head d_head"],
    spec: AttentionSpec,
    levels: Sequence[float],
    gaps: Sequence[float] = (),
    *,
    query_start: int | None = None,
    key_mask: Tensor | None = None,
    query_positions: Int[Tensor, " query"] | None = None,
    key_positions: Int[Tensor, " key"] | None = None,
    documents: Sequence[int] | Int[Tensor, " document"] | None = None,
    portable: bool = False,
) -> NeededKeys:
    """``n_p(i)``, the fewest keys j with ``Σ p_ij ≥ p``, and ``#{j: max_j s_ij − s_ij ≤ g}``, in O(n) memory.

    Exact for every query: a count lies between those of the sorted float64 pattern at p − 10⁻⁶ and p + 10⁻⁶. On the
    CPU, float32 scores without soft-cap and ALiBi are counted compiled; the keys that hold much of a row get their
    score in float64, and a row whose scores are too large for float32 is sorted in float64, as everything else is.

    Args:
        q: queries as they enter the score.
        k: keys, one per kv head.
        spec: how q and k become a pattern.
        levels: shares of the attention, ascending, above 0 and below 1.
        gaps: distances from the largest score.
        query_start: as `attention_statistics` takes it, and so are the rest.
        key_mask: True where a key is real.
        query_positions: positions of the queries.
        key_positions: positions of the keys.
        documents: rows of k at which documents begin.
        portable: sort every row.

    Raises:
        InputError: shapes that do not fit together, NaN or infinity.
    """
    check_tensors(q, k, None, None, spec)
    start = checked_start(query_start, q, k, spec)
    device = float64_device(q.device)
    q, k = q.to(device), k.to(device)
    query_positions = checked_positions("query_positions", query_positions, start, q.shape[0], q.device)
    key_positions = checked_positions("key_positions", key_positions, 0, k.shape[0], k.device)
    documents = checked_documents(documents, k.shape[0], k.device)
    see = Visibility.of(spec, query_positions, key_positions, start, checked_mask(key_mask, k), documents)
    shares, near = np.asarray(levels, dtype=np.float64) * _SLACK, np.asarray(gaps, dtype=np.float64)
    heads, rows = q.shape[1], see.row.cpu().numpy()
    plain = spec.softcap is None and spec.alibi_slopes is None and torch.float64 not in (q.dtype, k.dtype)
    with counted("counting keys") as report:
        finished = 0

        def done(n: int) -> None:
            nonlocal finished
            finished += n
            report(finished, heads * rows.size)

        if plain and not portable and device.type == "cpu":
            found = _count_fused(q, k, spec, see, shares, near, done)
        else:
            every = [torch.arange(rows.size, device=see.row.device)] * heads
            empty = np.zeros((heads, rows.size, shares.size)), np.zeros((heads, rows.size, near.size))
            found = _sort(q, k, spec, see, shares, near, every, empty, done)
    needed = np.full((heads, shares.size, q.shape[0]), np.nan, dtype=np.float32)
    within = np.zeros((heads, near.size, q.shape[0]), dtype=np.int32)
    needed[:, :, rows] = np.where(found[0] > 0, found[0], np.nan).swapaxes(1, 2)
    within[:, :, rows] = found[1].swapaxes(1, 2)
    seen = np.zeros(q.shape[0], dtype=np.int64)
    seen[rows] = (see.stop - see.first).cpu().numpy()
    return NeededKeys(needed, within, seen)


def _count_fused(
    q: Tensor, k: Tensor, spec: AttentionSpec, see: Visibility, levels: Any, gaps: Any, done: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Counts of every row, compiled; numba is imported only now. Rows of scores too large for float32 are sorted."""
    from interp.measure.fused.ranked_rows import count_fused
    from interp.measure.fused.ranking import COARSE

    found = count_fused(q, k, spec, see, levels, gaps, done)
    coarse = [torch.from_numpy(np.flatnonzero(head[:, 0] == COARSE)) for head in found[0]]
    return _sort(q, k, spec, see, levels, gaps, coarse, found, lambda n: None)


def _sort(
    q: Tensor,
    k: Tensor,
    spec: AttentionSpec,
    see: Visibility,
    levels: Float[np.ndarray, " level"],
    gaps: Float[np.ndarray, " gap"],
    chosen: Sequence[Int[Tensor, " chosen"]],
    found: tuple[np.ndarray, np.ndarray],
    done: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Put the counts of some rows of each head, of the rows that see something, into the arrays."""
    group = q.shape[1] // k.shape[1]
    for head, rows in enumerate(chosen):
        sinks = None if spec.sinks is None else spec.sinks[head : head + 1]
        slopes = None if spec.alibi_slopes is None else spec.alibi_slopes[head : head + 1]
        own = replace(spec, sinks=sinks, alibi_slopes=slopes)
        for part in rows.split(max(_CELLS // max(see.key.numel(), 1), 1)):
            if part.numel():
                scores = _scores(q[:, head], k[:, head // group], own, see, part)
                at = part.cpu().numpy()
                found[0][head, at], found[1][head, at] = _counts(scores, own, levels, gaps)
                done(part.numel())
    return found


def _scores(q: Tensor, k: Tensor, spec: AttentionSpec, see: Visibility, rows: Tensor) -> Float[Tensor, "row key"]:
    """Scores of some rows in float64, −∞ where a row does not see the key."""
    low, high = int(see.first[rows].min()), int(see.stop[rows].max())
    keys = slice(low, high)
    products = q[see.row[rows]].double() @ k[see.key[keys]].double().T
    scores = finish_scores(products[None], spec, see.query_position[rows], see.key_position[keys])[0]
    column = torch.arange(low, high, device=scores.device)
    hidden = (column < see.first[rows, None]) | (column >= see.stop[rows, None])
    return scores.masked_fill_(hidden, -torch.inf)


def _counts(
    scores: Float[Tensor, "row key"], spec: AttentionSpec, levels: np.ndarray, gaps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Keys needed, 0 for never, and keys within, of sorted rows."""
    scores = scores.sort(-1, descending=True).values
    top = scores[:, :1].clone()
    if not bool(torch.isfinite(top).all()):
        raise InputError(OVERFLOW)
    below = scores.sub_(top)
    within = [(below >= -gap).sum(-1) for gap in gaps.tolist()]
    mass = below.exp_().cumsum(-1)
    total = mass[:, -1:]
    sink = 0.0 if spec.sinks is None else (spec.sinks.to(top) - top).exp()
    target = (total + sink) * torch.from_numpy(levels).to(total)
    needed = torch.searchsorted(mass, target) + 1
    needed = torch.where(target <= total, needed, 0)
    nothing = torch.zeros(len(scores), 0)
    return needed.cpu().numpy(), (torch.stack(within, -1) if within else nothing).cpu().numpy()
