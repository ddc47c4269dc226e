"""One description of how queries and keys become a pattern, and three ways to attend that agree.

``attend_fused`` hands everything it can to torch's fused kernel, ``attend_rows`` goes through blocks of query rows and
shows each one to hooks, ``attend_full`` builds the whole matrix. In all of them k and v keep their kv heads.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import psutil
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hooks.errors import InputError, MaterializationError

RowsHook = Callable[[Tensor, Tensor, Tensor], Tensor]
FullHook = Callable[[Tensor], Tensor]

MEMORY_BUDGET = 256 * 2**20
_ROWS_HEIGHT = 64
_SLIDING_HEIGHT = 128
_MASKED_HEIGHT = 256


@dataclass(frozen=True, eq=False)
class AttentionSpec:
    """How q and k become a pattern: ``softmax(mask(alibi(softcap(scale · q·k))))``, sinks folded into the softmax.

    Query index i sees key index j when ``j ≤ i`` (causal) and ``|i − j| < window``. Masks go by index, as in
    transformers; ALiBi goes by position.

    Args:
        scale: Multiplies q·k; 1/sqrt(d_head) in most models.
        causal: Hide the keys after the query.
        window: Number of keys that a sliding-window query sees, itself included; None for all.
        softcap: Squash scores into ±softcap with ``softcap · tanh(s / softcap)``, before the mask.
        sinks: One learned logit per head that takes part in the softmax and carries no value.
        alibi_slopes: One slope per head; ``slope · |distance|`` is subtracted from the score.
    """

    scale: float
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    sinks: Float[Tensor, "head"] | None = None
    alibi_slopes: tuple[float, ...] | None = None

    def _plain(self) -> tuple[object, ...]:
        """Every field that compares as an ordinary value."""
        return (self.scale, self.causal, self.window, self.softcap, self.alibi_slopes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AttentionSpec) or self._plain() != other._plain():
            return False
        if self.sinks is None or other.sinks is None:
            return self.sinks is other.sinks
        return torch.equal(self.sinks, other.sinks)

    def __hash__(self) -> int:
        return hash(self._plain())


class RowBlock(NamedTuple):
    """A run of query rows and the run of keys that at least one of them may see."""

    rows: slice
    keys: slice


def visible_keys(
    spec: AttentionSpec,
    query_index: Int[Tensor, "query"],
    key_index: Int[Tensor, "key"],
    key_mask: Bool[Tensor, "batch key"] | None = None,
) -> Bool[Tensor, "*batch query key"]:
    """Which keys each query may see: ``j ≤ i`` when causal, ``|i − j| < window``, and not padding.

    Args:
        spec: The attention; only ``causal`` and ``window`` matter here.
        query_index: Indices of the queries in the sequence.
        key_index: Indices of the keys.
        key_mask: True where a key is real, for the same keys as ``key_index``.

    Returns:
        True where visible, with a leading batch axis only when ``key_mask`` has one.
    """
    ahead = query_index[:, None] - key_index[None, :]
    visible = ahead >= 0 if spec.causal else torch.ones_like(ahead, dtype=torch.bool)
    if spec.window is not None:
        visible = visible & (ahead < spec.window)
        if not spec.causal:
            visible = visible & (ahead > -spec.window)
    return visible if key_mask is None else visible & key_mask[..., None, :]


def row_blocks(
    spec: AttentionSpec, n_queries: int, n_keys: int, height: int, query_start: int = 0
) -> Iterator[RowBlock]:
    """Cut the queries into runs of ``height`` rows, each with the keys it may see (never fewer than one)."""
    for start in range(0, n_queries, height):
        stop = min(start + height, n_queries)
        first, last = query_start + start, query_start + stop - 1
        low, high = 0, n_keys
        if spec.window is not None:
            low, high = max(first - spec.window + 1, 0), min(last + spec.window, n_keys)
        if spec.causal:
            high = min(last + 1, n_keys)
        low = min(low, n_keys - 1)
        yield RowBlock(slice(start, stop), slice(low, max(high, low + 1)))


def attend_fused(
    q: Float[Tensor, "batch query head d_head"],
    k: Float[Tensor, "batch key kv_head d_head"],
    v: Float[Tensor, "batch key kv_head d_head"],
    spec: AttentionSpec,
    *,
    query_start: int = 0,
    key_mask: Bool[Tensor, "batch key"] | None = None,
    query_positions: Int[Tensor, "*batch query"] | None = None,
    key_positions: Int[Tensor, "*batch key"] | None = None,
) -> Float[Tensor, "batch query head d_head"]:
    """Attend with torch's fused kernel: O(n) memory, a sliding window costs O(n · window).

    A spec that the kernel cannot express (soft-cap, ALiBi, sinks) runs through ``attend_rows`` without hooks.

    Args:
        q: Queries as they enter the score.
        k: Keys, one per kv head.
        v: Values, one per kv head.
        spec: How scores become a pattern.
        query_start: Index of the first query among the keys (chunked runs).
        key_mask: True where a key is real; None when all are.
        query_positions: Positions of the queries; by default ``query_start + row``. Only ALiBi reads them.
        key_positions: Positions of the keys; by default their indices.

    Returns:
        Per-head output z. A query that sees nothing gets zeros.

    Raises:
        InputError: Shapes that do not fit together.
    """
    if spec.softcap is not None or spec.sinks is not None or spec.alibi_slopes is not None:
        return attend_rows(
            q,
            k,
            v,
            spec,
            query_start=query_start,
            key_mask=key_mask,
            query_positions=query_positions,
            key_positions=key_positions,
        )
    _check(q, k, v, spec)
    n_queries, n_keys = q.shape[1], k.shape[1]
    key_mask = _padding(key_mask)
    sliding = spec.window is not None and spec.window < max(query_start + n_queries, n_keys)
    if key_mask is None and not sliding and (query_start == 0 or not spec.causal):
        return _sdpa(q, k, v, spec.scale, causal=spec.causal)
    height = _SLIDING_HEIGHT if sliding else _MASKED_HEIGHT
    masks: dict[tuple[int, int, int], Tensor | None] = {}

    def block_z(block: RowBlock) -> Tensor:
        """The fused kernel on one block; interior blocks of a window share one mask."""
        shape = (
            block.rows.stop - block.rows.start,
            block.keys.stop - block.keys.start,
            query_start + block.rows.start - block.keys.start,
        )
        if key_mask is not None or shape not in masks:
            masks.clear()
            masks[shape] = _mask(spec, block, query_start, key_mask, q)
        rows, keys = block
        return _sdpa(q[:, rows], k[:, keys], v[:, keys], spec.scale, mask=masks[shape])

    blocks = row_blocks(spec, n_queries, n_keys, height, query_start)
    return _run(q, block_z, blocks, recompute=not sliding and _tracks_grad(q, k, v))


def attend_rows(
    q: Float[Tensor, "batch query head d_head"],
    k: Float[Tensor, "batch key kv_head d_head"],
    v: Float[Tensor, "batch key kv_head d_head"],
    spec: AttentionSpec,
    *,
    query_start: int = 0,
    key_mask: Bool[Tensor, "batch key"] | None = None,
    query_positions: Int[Tensor, "*batch query"] | None = None,
    key_positions: Int[Tensor, "*batch key"] | None = None,
    on_scores: RowsHook | None = None,
    on_pattern: RowsHook | None = None,
    memory_budget: int = MEMORY_BUDGET,
) -> Float[Tensor, "batch query head d_head"]:
    """Attend one block of query rows at a time, showing each block's scores and pattern to hooks: O(n) memory.

    In bfloat16 and float16 the scores are a product in that precision and the softmax runs in float32 and is cast
    back, as in transformers' eager attention. With gradients every block is recomputed in the backward pass and its
    hooks run again, so they must be pure.

    Args:
        q: Queries as they enter the score.
        k: Keys, one per kv head.
        v: Values, one per kv head.
        spec: How scores become a pattern.
        query_start: Index of the first query among the keys (chunked runs).
        key_mask: True where a key is real; None when all are.
        query_positions: Positions of the queries; by default ``query_start + row``.
        key_positions: Positions of the keys; by default their indices.
        on_scores: Called with a fresh [batch head row key] block of scores (masked −inf), the positions of its rows
            and of its keys ([query] and [key], with a batch axis where batch rows differ); returns the block to use.
        on_pattern: The same after softmax.
        memory_budget: Bytes that the tensors of one block may take; a block has at least one row.

    Returns:
        Per-head output z. A query that sees nothing gets zeros.

    Raises:
        InputError: Shapes that do not fit together, or a hook that returns another shape.
    """
    _check(q, k, v, spec)
    key_mask = _padding(key_mask)
    query_positions = _positions(query_positions, query_start, q.shape[1], q.device)
    key_positions = _positions(key_positions, 0, k.shape[1], k.device)
    k, v = _head_major(k), _head_major(v)

    def block_z(block: RowBlock) -> Tensor:
        """Scores, hook, softmax, hook, product with v for one block."""
        rows, keys = block
        at = (query_positions[..., rows], key_positions[..., keys])
        mask = _mask(spec, block, query_start, key_mask, q)
        scores = _scores(q[:, rows], k[:, keys], spec, mask, *at)
        if on_scores is not None:
            scores = _edited("on_scores", on_scores(scores, *at), scores)
        pattern = _softmax(scores, spec.sinks, q.dtype)
        if on_pattern is not None:
            pattern = _edited("on_pattern", on_pattern(_own(pattern), *at), pattern)
        return _weighted_values(pattern, v[:, keys])

    height = _height(spec, q, k, memory_budget)
    blocks = row_blocks(spec, q.shape[1], k.shape[1], height, query_start)
    return _run(q, block_z, blocks, recompute=_tracks_grad(q, k, v, spec.sinks))


def attend_full(
    q: Float[Tensor, "batch query head d_head"],
    k: Float[Tensor, "batch key kv_head d_head"],
    v: Float[Tensor, "batch key kv_head d_head"],
    spec: AttentionSpec,
    *,
    query_start: int = 0,
    key_mask: Bool[Tensor, "batch key"] | None = None,
    query_positions: Int[Tensor, "*batch query"] | None = None,
    key_positions: Int[Tensor, "*batch key"] | None = None,
    on_scores: FullHook | None = None,
    on_pattern: FullHook | None = None,
) -> Float[Tensor, "batch query head d_head"]:
    """Attend through whole [batch head query key] scores and pattern, as TransformerLens does: O(n²) memory.

    Precision is that of ``attend_rows``.

    Args:
        q: Queries as they enter the score.
        k: Keys, one per kv head.
        v: Values, one per kv head.
        spec: How scores become a pattern.
        query_start: Index of the first query among the keys (chunked runs).
        key_mask: True where a key is real; None when all are.
        query_positions: Positions of the queries; by default ``query_start + row``. Only ALiBi reads them.
        key_positions: Positions of the keys; by default their indices.
        on_scores: Called with the scaled, soft-capped, masked (−inf) scores; returns those to use.
        on_pattern: Called with the pattern; returns the one to use.

    Returns:
        Per-head output z. A query that sees nothing gets zeros.

    Raises:
        MaterializationError: The two tensors would not fit in free memory.
        InputError: Shapes that do not fit together, or a hook that returns another shape.
    """
    _check(q, k, v, spec)
    _check_fits(q, k, tracks_grad=_tracks_grad(q, k, v, spec.sinks))
    query_positions = _positions(query_positions, query_start, q.shape[1], q.device)
    key_positions = _positions(key_positions, 0, k.shape[1], k.device)
    everything = RowBlock(slice(0, q.shape[1]), slice(0, k.shape[1]))
    mask = _mask(spec, everything, query_start, _padding(key_mask), q)
    scores = _scores(q, k, spec, mask, query_positions, key_positions)
    if on_scores is not None:
        scores = _edited("on_scores", on_scores(scores), scores)
    pattern = _softmax(scores, spec.sinks, q.dtype)
    if on_pattern is not None:
        pattern = _edited("on_pattern", on_pattern(_own(pattern)), pattern)
    return _weighted_values(pattern, v)


def _scores(
    q: Tensor, k: Tensor, spec: AttentionSpec, mask: Tensor | None, query_positions: Tensor, key_positions: Tensor
) -> Tensor:
    """A fresh [batch head query key] tensor of the scores that enter softmax."""
    batch, n_queries, n_heads, d_head = q.shape
    n_kv_heads = k.shape[2]
    grouped = q.unflatten(2, (n_kv_heads, -1)).permute(0, 2, 3, 1, 4).reshape(batch * n_kv_heads, -1, d_head)
    scores = torch.bmm(grouped, k.permute(0, 2, 3, 1).flatten(0, 1)).mul_(spec.scale)
    scores = scores.view(batch, n_heads, n_queries, -1)
    if spec.softcap is not None:
        scores = scores.div_(spec.softcap).tanh_() * spec.softcap
    if spec.alibi_slopes is not None:
        dtype = torch.promote_types(q.dtype, torch.float32)
        distance = (query_positions[..., :, None] - key_positions[..., None, :]).abs().to(dtype)
        slopes = torch.tensor(spec.alibi_slopes, dtype=dtype, device=q.device)
        scores.sub_(slopes[:, None, None] * distance.unsqueeze(-3))
    return scores if mask is None else scores.add_(mask)


def _softmax(scores: Tensor, sinks: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Softmax over keys and the head's sink; a row without a key is zeros, in the gradient too."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    top = scores.detach().amax(-1, keepdim=True)
    if sinks is None and not bool((top == -torch.inf).any()):
        return torch.softmax(scores, -1).to(dtype)
    if sinks is not None:
        sinks = sinks.to(scores.dtype)[:, None, None]
        top = torch.maximum(top, sinks.detach())
    top = top.masked_fill(top == -torch.inf, 0)
    weight = (scores - top).exp()
    total = weight.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + (sinks - top).exp()
    # The largest term is exp(0), so the sum is at least 1, or 0 when there is no term at all.
    return (weight / total.clamp_min(1)).to(dtype)


def _weighted_values(pattern: Tensor, v: Tensor) -> Tensor:
    """Z [batch query head d_head] = pattern · v without expanding v."""
    batch, n_heads, n_queries, n_keys = pattern.shape
    n_kv_heads = v.shape[2]
    z = torch.bmm(pattern.reshape(batch * n_kv_heads, -1, n_keys), v.transpose(1, 2).flatten(0, 1))
    return z.view(batch, n_heads, n_queries, -1).transpose(1, 2)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float, *, mask: Tensor | None = None, causal: bool = False):
    """Torch's scaled_dot_product_attention in our axes."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    z = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
    )
    return z.transpose(1, 2)


def _run(
    q: Tensor, block_z: Callable[[RowBlock], Tensor], blocks: Iterator[RowBlock], *, recompute: bool
) -> Tensor:
    """Run every block and put the rows together, recomputing blocks in the backward pass if asked."""
    if recompute:
        return torch.cat(
            [checkpoint(block_z, b, use_reentrant=False, preserve_rng_state=False) for b in blocks], dim=1
        )
    if torch.is_grad_enabled():
        return torch.cat([block_z(b) for b in blocks], dim=1)
    z = torch.empty_like(q)
    for block in blocks:
        z[:, block.rows] = block_z(block)
    return z


def _mask(
    spec: AttentionSpec, block: RowBlock, query_start: int, key_mask: Tensor | None, q: Tensor
) -> Tensor | None:
    """0 where visible and −inf elsewhere, to be added to [batch head row key]; None when everything is visible."""
    rows, keys = block
    visible = visible_keys(
        spec,
        torch.arange(query_start + rows.start, query_start + rows.stop, device=q.device),
        torch.arange(keys.start, keys.stop, device=q.device),
        None if key_mask is None else key_mask[:, keys],
    )
    if bool(visible.all()):
        return None
    mask = torch.zeros(visible.shape, dtype=q.dtype, device=q.device).masked_fill_(~visible, -torch.inf)
    return mask if key_mask is None else mask[:, None]


def _height(spec: AttentionSpec, q: Tensor, k: Tensor, memory_budget: int) -> int:
    """Rows of a block: few enough to stay near the cache, fewer where the budget asks for it."""
    cell = 3 * q.shape[0] * q.shape[2] * max(q.element_size(), 4)
    n_keys = k.shape[1] if spec.window is None else min(k.shape[1], 2 * spec.window + _ROWS_HEIGHT)
    return max(min(memory_budget // (cell * n_keys), _ROWS_HEIGHT), 1)


def _own(pattern: Tensor) -> Tensor:
    """A pattern that a hook may edit in place although softmax keeps it for the gradient."""
    return pattern.clone() if pattern.requires_grad else pattern


def _edited(name: str, edited: Tensor, block: Tensor) -> Tensor:
    """What a hook returned, once its shape is known to be right."""
    if not isinstance(edited, Tensor) or edited.shape != block.shape:
        got = tuple(edited.shape) if isinstance(edited, Tensor) else type(edited).__name__
        raise InputError(f"{name} returned {got}; return a tensor of shape {tuple(block.shape)}")
    return edited


def _head_major(x: Tensor) -> Tensor:
    """The same [batch key kv_head d_head] tensor, laid out so that (batch, kv_head) is one strided axis."""
    return x if x.shape[0] == 1 else x.transpose(1, 2).contiguous().transpose(1, 2)


def _positions(positions: Tensor | None, start: int, n: int, device: torch.device) -> Tensor:
    """Positions as [n] when every batch row has the same ones, else [batch n]."""
    if positions is None:
        return torch.arange(start, start + n, device=device)
    if positions.ndim == 2 and bool((positions == positions[:1]).all()):
        return positions[0]
    return positions


def _padding(key_mask: Tensor | None) -> Tensor | None:
    """The key mask as booleans, or None when it hides nothing."""
    if key_mask is None or bool(key_mask.all()):
        return None
    return key_mask.bool()


def _tracks_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd will want gradients through any of the tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _check(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> None:
    """Raise InputError for shapes that do not fit together."""
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or k.shape[1] == 0:
        raise InputError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit: expected "
            "[batch query head d_head] and twice [batch key kv_head d_head] with at least one key"
        )
    n_heads, n_kv_heads = q.shape[2], k.shape[2]
    if n_heads % n_kv_heads:
        raise InputError(f"{n_heads} heads cannot share {n_kv_heads} kv heads: use a divisor of {n_heads}")
    for name, values in (("sinks", spec.sinks), ("alibi_slopes", spec.alibi_slopes)):
        if values is not None and len(values) != n_heads:
            raise InputError(f"{name} has {len(values)} values for {n_heads} heads: give one per head")


def _free_bytes(device: torch.device) -> int:
    """Memory that can still be taken on a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _check_fits(q: Tensor, k: Tensor, *, tracks_grad: bool) -> None:
    """Raise MaterializationError when full scores and pattern would not fit in free memory."""
    cells = q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1]
    needed = cells * (2 * q.element_size() + 2 * max(q.element_size(), 4)) * (2 if tracks_grad else 1)
    free = _free_bytes(q.device)
    if needed > free:
        raise MaterializationError(
            f"scores and pattern of shape {(q.shape[0], q.shape[2], q.shape[1], k.shape[1])} need {needed:,} bytes "
            f"and {free:,} are free: hook hook_attn_scores_rows or hook_pattern_rows instead, which see the same "
            "values one block of query rows at a time"
        )
