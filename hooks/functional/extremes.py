"""The smallest and the largest score of each head: exact, a block of rows at a time, nothing kept for a gradient."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hooks.config.attention_spec import AttentionSpec
from hooks.functional.place import FROM_START, Place
from hooks.functional.scores import finish_scores
from hooks.functional.visible import RowBlock, additive_mask, row_blocks

_BUDGET = 32 * 2**20
# Measured on CPU over 12 × 64 features at 256 and 1,024 tokens: flat from 32 to 128.
_HEIGHT = 64


@torch.no_grad()
def score_extremes(
    q: Float[Tensor, "batch query head d_head"],
    k: Float[Tensor, "batch key kv_head d_head"],
    spec: AttentionSpec,
    place: Place = FROM_START,
) -> tuple[Float[Tensor, " head"], Float[Tensor, " head"]]:
    """Least and largest over the visible pairs of the score that enters softmax, for each head over the whole batch.

    Products are float32 or better whatever the type of q and k. O(n) memory; one multiplication of a forward pass's
    two, over visible blocks only.

    Args:
        q: Queries as they enter the score.
        k: Keys, one per kv head.
        spec: How q·k becomes a score, and which keys a query sees.
        place: Where queries and keys stand.

    Returns:
        Smallest and largest score; a NaN anywhere is a NaN here, and a head that sees nothing has inf and −inf.
    """
    place, wide = place.plain(), torch.promote_types(q.dtype, torch.float32)
    n_queries, n_keys, heads, kv_heads = q.shape[1], k.shape[1], q.shape[2], k.shape[2]
    height = max(min(_BUDGET // (wide.itemsize * q.shape[0] * heads * n_keys), _HEIGHT), 1)
    memory = torch.empty(q.shape[0] * heads * min(height, n_queries) * n_keys, dtype=wide, device=q.device)
    future = torch.ones(height, height, dtype=torch.bool, device=q.device).triu_(1)
    ends = []
    with torch.autocast(q.device.type, enabled=False):
        grouped = q.to(wide).view(*q.shape[:2], kv_heads, -1, q.shape[3]).permute(0, 2, 3, 1, 4)
        turned = k.to(wide).permute(0, 2, 3, 1).reshape(-1, k.shape[3], n_keys).contiguous()  # a view multiplies slowly
        for block in row_blocks(spec, n_queries, n_keys, height, place.query_start, place.documents):
            rows, keys = block
            shape = (q.shape[0], heads, rows.stop - rows.start, keys.stop - keys.start)
            scores = memory[: math.prod(shape)].view(shape)
            flat = grouped[:, :, :, rows].reshape(len(turned), -1, q.shape[3])
            torch.bmm(flat, turned[..., keys], out=scores.view(len(turned), -1, shape[3]))
            if spec.alibi_slopes is not None:  # the others keep the order of scores, so the ends are enough
                scores = finish_scores(scores, spec, *place.positions(rows, keys, q.device))
            ends.append(_ends(scores, spec, block, place, future))
    low, high = torch.stack([end[0] for end in ends]).amin(0), torch.stack([end[1] for end in ends]).amax(0)
    if spec.alibi_slopes is None:
        at = place.positions(slice(0, 1), slice(0, 1), q.device)
        low, high = (finish_scores(end[:, None, None], spec, *at)[:, 0, 0] for end in (low, high))
    return low, high


def _ends(
    scores: Float[Tensor, "batch head row key"],
    spec: AttentionSpec,
    block: RowBlock,
    place: Place,
    future: Bool[Tensor, "row row"],
) -> tuple[Float[Tensor, " head"], Float[Tensor, " head"]]:
    """Least and largest visible score of a block, which may be overwritten."""
    dims = (0, 2, 3)
    before = place.query_start + block.rows.start - block.keys.start
    if place.key_mask is None and place.documents is None and spec.window is None and before >= 0:
        if spec.causal and before < scores.shape[-1]:
            # Of these keys the first is there for every row: in the place of those that are not, it changes no end.
            part = scores[..., before:]
            torch.where(future[: part.shape[-2], : part.shape[-1]], part[..., :1].clone(), part, out=part)
        return scores.amin(dims), scores.amax(dims)
    mask = additive_mask(spec, block, place, scores.dtype, scores.device)
    low, high = (scores, scores) if mask is None else (scores - mask, scores + mask)
    return low.amin(dims), high.amax(dims)
