"""Three ways to attend that agree, on one description of how queries and keys become a pattern.

``attend_fused`` hands what it can to torch's fused kernel, ``attend_rows`` goes through blocks of query rows and shows
each one to hooks, ``attend_full`` builds the whole matrix. In all of them k and v keep their kv heads, and a query
that sees nothing gets zeros.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hooks.config.attention_spec import AttentionSpec
from hooks.errors import InputError, MaterializationError
from hooks.functional.fused_kernel import fused_kernel
from hooks.functional.place import FROM_START, Place
from hooks.functional.scores import finish_scores
from hooks.functional.visible import RowBlock, additive_mask, row_blocks, visible_keys
from hooks.memory import free_bytes

__all__ = [
    "AttentionSpec",
    "Place",
    "RowBlock",
    "attend_full",
    "attend_fused",
    "attend_rows",
    "row_blocks",
    "visible_keys",
]

RowsHook = Callable[[Tensor, Tensor, Tensor], Tensor]
FullHook = Callable[[Tensor], Tensor]

MEMORY_BUDGET = 256 * 2**20

# Block heights, measured on CPU over 9 × 64 and 4 × 256 heads at 4,096 tokens: flat around these.
_ROWS_HEIGHT = 64
_SLIDING_HEIGHT = 128
_MASKED_HEIGHT = 256


def attend_fused(
    q: Float[Tensor, "batch query head d_head"],
    k: Float[Tensor, "batch key kv_head d_head"],
    v: Float[Tensor, "batch key kv_head d_head"],
    spec: AttentionSpec,
    place: Place = FROM_START,
    **where: Any,
) -> Float[Tensor, "batch query head d_head"]:
    """Attend with torch's fused kernel: O(n) memory; a sliding window costs O(n · window) time.

    What the kernel cannot do (soft-cap, ALiBi, sinks; float64 on CUDA) runs through ``attend_rows`` without hooks.

    Args:
        q: Queries as they enter the score.
        k: Keys, one per kv head; head h uses kv head ``h // (heads / kv_heads)``.
        v: Values, one per kv head.
        spec: How scores become a pattern.
        place: Where queries and keys stand; only ALiBi reads positions.
        **where: Fields of `Place`, given one by one.

    Returns:
        Per-head output z.

    Raises:
        InputError: Shapes that do not fit together.
    """
    place = _checked(q, k, v, spec, replace(place, **where) if where else place)
    by_rows = spec.softcap is not None or spec.sinks is not None or spec.alibi_slopes is not None
    if by_rows or (q.device.type == "cuda" and q.dtype == torch.float64):  # for which CUDA has no fused kernel
        return _rows(q, k, v, spec, place)
    n_queries, n_keys = q.shape[1], k.shape[1]
    sliding = spec.window is not None and spec.window < max(place.query_start + n_queries, n_keys)
    # is_causal lines up the first query with the first key: wrong with an offset.
    one_text = place.key_mask is None and place.documents is None
    last = n_queries == 1 and place.query_start == n_keys - 1  # a step of generation: it sees every key
    if one_text and not sliding and (place.query_start == 0 or last or not spec.causal):
        return fused_kernel(q, k, v, spec.scale, causal=spec.causal and not last)

    @lru_cache(maxsize=1)
    def shared_mask(height: int, width: int, ahead: int) -> Tensor | None:
        """The mask of a block, for all blocks whose first row is as far ahead of their first key."""
        return additive_mask(spec, RowBlock(slice(0, height), slice(0, width)), Place(ahead), q.dtype, q.device)

    def block_z(block: RowBlock) -> Tensor:
        """The fused kernel on one block."""
        rows, keys = block
        if one_text:
            ahead = place.query_start + rows.start - keys.start
            mask = shared_mask(rows.stop - rows.start, keys.stop - keys.start, ahead)
        else:
            mask = additive_mask(spec, block, place, q.dtype, q.device)
        return fused_kernel(q[:, rows], k[:, keys], v[:, keys], spec.scale, mask=mask)

    height = _SLIDING_HEIGHT if sliding else _MASKED_HEIGHT
    blocks = row_blocks(spec, n_queries, n_keys, height, place.query_start, place.documents)
    # Autograd would keep a mask for every block: together n × n unless a window narrows them.
    return _run(q, block_z, blocks, recompute=not sliding and _tracks_grad(q, k, v))


def attend_rows(
    q: Float[Tensor, "batch query head d_head"],
    k: Float[Tensor, "batch key kv_head d_head"],
    v: Float[Tensor, "batch key kv_head d_head"],
    spec: AttentionSpec,
    place: Place = FROM_START,
    *,
    on_scores: RowsHook | None = None,
    on_pattern: RowsHook | None = None,
    memory_budget: int = MEMORY_BUDGET,
    **where: Any,
) -> Float[Tensor, "batch query head d_head"]:
    """Attend one block of query rows at a time, showing each block's scores and pattern to hooks: O(n) memory.

    In bfloat16 and float16 the scores are a product in that precision, and the softmax runs in float32 and is cast
    back, as in transformers' eager attention. With gradients every block is recomputed in the backward pass and
    its hooks run again, so they must be pure.

    Args:
        q: Queries as they enter the score.
        k: Keys, one per kv head.
        v: Values, one per kv head.
        spec: How scores become a pattern.
        place: Where queries and keys stand.
        on_scores: Called with a fresh [batch head row key] block of scores (masked −inf), the positions of its rows
            and the positions of its keys ([query] and [key], with a batch axis where batch rows differ). It may edit
            the block in place, and returns the block to use.
        on_pattern: The same after softmax.
        memory_budget: Bytes that the tensors of one block may take; a block has at least one row.
        **where: Fields of `Place`, given one by one.

    Returns:
        Per-head output z.

    Raises:
        InputError: Shapes that do not fit together, or a hook that returns another shape.
    """
    place = _checked(q, k, v, spec, replace(place, **where) if where else place)
    return _rows(q, k, v, spec, place, on_scores=on_scores, on_pattern=on_pattern, memory_budget=memory_budget)


def attend_full(
    q: Float[Tensor, "batch query head d_head"],
    k: Float[Tensor, "batch key kv_head d_head"],
    v: Float[Tensor, "batch key kv_head d_head"],
    spec: AttentionSpec,
    place: Place = FROM_START,
    *,
    on_scores: FullHook | None = None,
    on_pattern: FullHook | None = None,
    **where: Any,
) -> Float[Tensor, "batch query head d_head"]:
    """Attend through whole [batch head query key] scores and pattern, as TransformerLens does: O(n²) memory.

    The precision is that of ``attend_rows``.

    Args:
        q: Queries as they enter the score.
        k: Keys, one per kv head.
        v: Values, one per kv head.
        spec: How scores become a pattern.
        place: Where queries and keys stand.
        on_scores: Called with the scaled, soft-capped, masked (−inf) scores; returns those to use.
        on_pattern: Called with the pattern; returns the one to use.
        **where: Fields of `Place`, given one by one.

    Returns:
        Per-head output z.

    Raises:
        MaterializationError: Scores and pattern would not fit in free memory.
        InputError: Shapes that do not fit together, or a hook that returns another shape.
    """
    place = _checked(q, k, v, spec, replace(place, **where) if where else place)
    _check_fits(q, k, tracks_grad=_tracks_grad(q, k, v, spec.sinks))
    everything = RowBlock(slice(0, q.shape[1]), slice(0, k.shape[1]))
    return _attend_block(q, k, v, spec, place, everything, on_scores=on_scores, on_pattern=on_pattern)


def _checked(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, place: Place) -> Place:
    """Check that the tensors fit together, and bring the place into its plain form."""
    if k.shape != v.shape or q.shape[::3] != k.shape[::3] or 0 in (*q.shape, *k.shape):
        raise InputError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit together: give "
            "[batch query head d_head] and twice [batch key kv_head d_head], none of them empty"
        )
    n_heads, n_kv_heads = q.shape[2], k.shape[2]
    if n_heads % n_kv_heads:
        raise InputError(f"{n_heads} heads cannot share {n_kv_heads} kv heads: use a divisor of {n_heads}")
    for name, values in (("sinks", spec.sinks), ("alibi_slopes", spec.alibi_slopes)):
        if values is not None and len(values) != n_heads:
            raise InputError(f"{name} has {len(values)} values for {n_heads} heads: give one per head")
    return place.plain()


def _rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec,
    place: Place,
    *,
    on_scores: RowsHook | None = None,
    on_pattern: RowsHook | None = None,
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """``attend_rows`` once its arguments are checked."""
    k, v = _head_major(k), _head_major(v)

    def block_z(block: RowBlock) -> Tensor:
        """One block, its positions handed to the hooks."""
        at = place.positions(block.rows, block.keys, q.device)
        scores_hook, pattern_hook = (
            None if hook is None else lambda tensor, hook=hook: hook(tensor, *at) for hook in (on_scores, on_pattern)
        )
        return _attend_block(q, k, v, spec, place, block, on_scores=scores_hook, on_pattern=pattern_hook)

    n_queries, n_keys = q.shape[1], k.shape[1]
    widest = n_keys if spec.window is None else min(n_keys, 2 * spec.window + _ROWS_HEIGHT)
    row_bytes = 3 * q.shape[0] * q.shape[2] * widest * max(q.element_size(), 4)
    height = max(min(memory_budget // row_bytes, _ROWS_HEIGHT), 1)
    blocks = row_blocks(spec, n_queries, n_keys, height, place.query_start, place.documents)
    return _run(q, block_z, blocks, recompute=_tracks_grad(q, k, v, spec.sinks))


def _attend_block(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec,
    place: Place,
    block: RowBlock,
    *,
    on_scores: FullHook | None,
    on_pattern: FullHook | None,
) -> Tensor:
    """Scores, hook, softmax, hook, product with v."""
    rows, keys = block
    scores = _scores(q[:, rows], k[:, keys], spec, place, block)
    if on_scores is not None:
        scores = _edited("on_scores", on_scores(scores), scores)
    pattern = _softmax(scores, spec.sinks, q.dtype)
    if on_pattern is not None:
        # Softmax keeps its result for the gradient, so the hook gets a tensor of its own to edit.
        pattern = _edited("on_pattern", on_pattern(pattern.clone() if pattern.requires_grad else pattern), pattern)
    return _weighted_values(pattern, v[:, keys])


def _edited(name: str, edited: Tensor, block: Tensor) -> Tensor:
    """What a hook returned, once its shape is known to be right."""
    if not isinstance(edited, Tensor) or edited.shape != block.shape:
        got = tuple(edited.shape) if isinstance(edited, Tensor) else edited
        raise InputError(f"{name} returned {got}: return a tensor of shape {tuple(block.shape)}")
    return edited


def _scores(q: Tensor, k: Tensor, spec: AttentionSpec, place: Place, block: RowBlock) -> Tensor:
    """A fresh [batch head row key] tensor of the scores that enter softmax."""
    batch, n_rows, n_heads, d_head = q.shape
    n_kv_heads = k.shape[2]
    grouped = q.unflatten(2, (n_kv_heads, -1)).permute(0, 2, 3, 1, 4).reshape(batch * n_kv_heads, -1, d_head)
    products = torch.bmm(grouped, k.permute(0, 2, 3, 1).flatten(0, 1)).view(batch, n_heads, n_rows, -1)
    scores = finish_scores(products, spec, *place.positions(block.rows, block.keys, q.device))
    mask = additive_mask(spec, block, place, q.dtype, q.device)
    return scores if mask is None else scores.add_(mask)


def _softmax(scores: Tensor, sinks: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Softmax over keys and the head's sink in float32 or better; a row without a key is zeros, gradient included."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    top = scores.detach().amax(-1, keepdim=True)
    # Only the CPU is asked for an empty row, to save time: a device would have to be waited for.
    if sinks is None and scores.is_cpu and not bool((top == -torch.inf).any()):
        return torch.softmax(scores, -1).to(dtype)
    if sinks is not None:
        sinks = sinks.to(scores.dtype)[:, None, None]
        top = torch.maximum(top, sinks.detach())
    top = top.masked_fill(top == -torch.inf, 0)
    weight = (scores - top).exp_()
    total = weight.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + (sinks - top).exp()
    # The largest term is exp(0), so the total is at least 1, or 0 when there is no term at all.
    return (weight / total.clamp_min(1)).to(dtype)


def _weighted_values(pattern: Tensor, v: Tensor) -> Tensor:
    """[batch query head d_head] = pattern · v, without expanding v."""
    batch, n_heads, n_rows, n_keys = pattern.shape
    n_kv_heads = v.shape[2]
    z = torch.bmm(pattern.reshape(batch * n_kv_heads, -1, n_keys), v.transpose(1, 2).flatten(0, 1))
    return z.view(batch, n_heads, n_rows, -1).transpose(1, 2)


def _head_major(x: Tensor) -> Tensor:
    """The same [batch key kv_head d_head] tensor, laid out so that (batch, kv_head) is one strided axis."""
    return x if x.shape[0] == 1 else x.transpose(1, 2).contiguous().transpose(1, 2)


def _run(q: Tensor, block_z: Callable[[RowBlock], Tensor], blocks: Iterator[RowBlock], *, recompute: bool) -> Tensor:
    """Put the rows of all blocks together, each block recomputed in the backward pass if asked."""
    if torch.is_grad_enabled():
        if recompute:
            parts = [checkpoint(block_z, b, use_reentrant=False, preserve_rng_state=False) for b in blocks]
        else:
            parts = [block_z(b) for b in blocks]
        return torch.cat(parts, dim=1)
    z = torch.empty_like(q)
    for block in blocks:
        z[:, block.rows] = block_z(block)
    return z


def _tracks_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd will want gradients through any of the tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _check_fits(q: Tensor, k: Tensor, *, tracks_grad: bool) -> None:
    """Raise MaterializationError when full scores and pattern would not fit in free memory."""
    shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    # Scores and pattern in the input's type and the softmax in float32, twice over for their gradients.
    cell = 2 * q.element_size() + max(q.element_size(), 4)
    needed = cell * shape[0] * shape[1] * shape[2] * shape[3] * (2 if tracks_grad else 1)
    free = free_bytes(q.device)
    if needed > free:
        raise MaterializationError(
            f"scores and pattern of shape {shape} need {needed:,} bytes and {free:,} are free: use "
            "hook_attn_scores_rows or hook_pattern_rows, which see the same values one block of rows at a time"
        )
