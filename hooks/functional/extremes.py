"""The smallest and the largest score of each head: exact, a block of rows at a time, nothing kept for a gradient."""

from functools import lru_cache

import torch
from jaxtyping import Float
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
    n_queries, n_keys, kv_heads = q.shape[1], k.shape[1], k.shape[2]
    with torch.autocast(q.device.type, enabled=False):
        grouped = q.to(wide).unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4).contiguous()
        keys = k.to(wide).permute(0, 2, 3, 1).contiguous().flatten(0, 1)  # five times faster than a view
        row_bytes = q.shape[0] * q.shape[2] * n_keys * q.to(wide).element_size()
        height = max(min(_BUDGET // row_bytes, _HEIGHT), 1)

        @lru_cache(maxsize=1)
        def shared_mask(rows: int, width: int, ahead: int) -> Tensor | None:
            """The mask of a block, for all blocks whose first row is as far ahead of their first key."""
            return additive_mask(spec, RowBlock(slice(0, rows), slice(0, width)), ahead, None, wide, q.device)

        lows, highs = [], []
        for block in row_blocks(spec, n_queries, n_keys, height, place.query_start):
            rows = grouped[:, :, :, block.rows].flatten(0, 1).flatten(1, 2)
            products = torch.bmm(rows, keys[..., block.keys]).unflatten(1, (-1, block.rows.stop - block.rows.start))
            products = products.unflatten(0, (-1, kv_heads)).flatten(1, 2)
            if spec.alibi_slopes is not None:  # the others keep the order of scores, so the ends are enough
                products = finish_scores(products, spec, *place.positions(block.rows, block.keys, q.device))
            seen_by_all = _seen_by_all(spec, block, place)
            if seen_by_all:
                whole = products[..., :seen_by_all]
                lows.append(whole.amin((0, 2, 3)))
                highs.append(whole.amax((0, 2, 3)))
            if seen_by_all < products.shape[-1]:
                rest = RowBlock(block.rows, slice(block.keys.start + seen_by_all, block.keys.stop))
                if place.key_mask is None:
                    ahead = place.query_start + rest.rows.start - rest.keys.start
                    mask = shared_mask(rest.rows.stop - rest.rows.start, rest.keys.stop - rest.keys.start, ahead)
                else:
                    mask = additive_mask(spec, rest, place.query_start, place.key_mask, wide, q.device)
                part = products[..., seen_by_all:]
                lows.append((part if mask is None else part - mask).amin((0, 2, 3)))
                highs.append((part if mask is None else part + mask).amax((0, 2, 3)))
        low, high = torch.stack(lows).amin(0), torch.stack(highs).amax(0)
        if spec.alibi_slopes is None:
            at = place.positions(slice(0, 1), slice(0, 1), q.device)
            low, high = (finish_scores(end[:, None, None], spec, *at)[:, 0, 0] for end in (low, high))
    return low, high


def _seen_by_all(spec: AttentionSpec, block: RowBlock, place: Place) -> int:
    """How many of a block's first keys need no mask, because every row sees them."""
    if place.key_mask is not None or spec.window is not None:
        return 0
    width = block.keys.stop - block.keys.start
    return width if not spec.causal else min(width, max(place.query_start + block.rows.start - block.keys.start, 0))
