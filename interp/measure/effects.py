"""Where a head's effect comes from, in one pass over q, k, v and ∂m/∂z: by key, query, distance, map, block by block.

The effect of a cell is ``a_ij = p_ij (g_i · v_j)`` with g = ∂m/∂z: to first order, how much less the metric would be
were the query to get nothing from this key. Only rows whose gradient is not zero are computed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooks import AttentionSpec
from hooks.errors import InputError
from hooks.functional.float64 import float64_device
from interp.common.finite import check_finite
from interp.measure.block import Block, Buffers
from interp.measure.block_height import block_height
from interp.measure.families import by_distance
from interp.measure.portable import BUFFERS, score_dtype
from interp.measure.totals import Totals, bin_of
from interp.measure.visibility import Visibility
from interp.measure.work import OVERFLOW, Pass

SIGNS = ("positive", "negative")
_BUDGET = 256 * 2**20


@dataclass
class Effects:
    """Sums of the positive and of the negative cells of each head, [head sign …], in float64.

    Attributes:
        query: over the keys of each query.
        key: over the queries of each key.
        distance: over the cells of each distance, from `low` on.
        map: over cells of the pooled map.
        score: ``Σ ∂m/∂x · x`` with x = scale · q·k, [head].
        low: the smallest distance.
    """

    query: Float[Tensor, "head sign query"]
    key: Float[Tensor, "head sign key"]
    distance: Float[Tensor, "head sign distance"]
    map: Float[Tensor, "head sign map_query map_key"]
    score: Float[Tensor, " head"]
    low: int


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What the effects of one layer are made of.

    Attributes:
        q: queries that enter the score.
        k: keys, one per kv head.
        v: values, one per kv head.
        g: gradient of the metric to z.
        spec: how q and k become a pattern.
        positions: position of each token.
        documents: where documents begin that are packed into the row.
    """

    q: Float[Tensor, "pos head d_head"]
    k: Float[Tensor, "pos kv_head d_head"]
    v: Float[Tensor, "pos kv_head d_value"]
    g: Float[Tensor, "pos head d_value"]
    spec: AttentionSpec
    positions: Int[Tensor, " pos"]
    documents: Int[Tensor, " document"] | None = None
    see: Visibility = field(init=False)

    def __post_init__(self) -> None:
        check_finite(q=self.q, k=self.k, v=self.v, gradient=self.g)
        device = float64_device(self.q.device)
        for name in ("q", "k", "v", "g", "positions"):
            object.__setattr__(self, name, getattr(self, name).to(device))
        if self.documents is not None:
            object.__setattr__(self, "documents", self.documents.to(device))
        see = Visibility.of(self.spec, self.positions, self.positions, documents=self.documents)
        object.__setattr__(self, "see", see)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the blocks."""
        return torch.float64 if torch.float64 in (self.q.dtype, self.k.dtype, self.v.dtype) else torch.float32

    @property
    def distances(self) -> tuple[int, int]:
        """Smallest and largest distance within any document."""
        lows, highs = zip(*(own.distance_range for _, own in self.see.apart(self.documents)), strict=True)
        return min(lows), max(highs)


@dataclass(frozen=True)
class EffectBlock:
    """The effects of a block of query rows, of the heads that share one kv head.

    Attributes:
        block: its pattern, its masked scores less their row's largest, and where it lies.
        cells: p_ij (g_i · v_j), which whoever gets the block may overwrite; hidden cells are 0.
        keys: where the block's keys lie among all.
        keys_scored: keys of its kv head in the type of the score.
    """

    block: Block
    cells: Float[Tensor, "group row key"]
    keys: slice
    keys_scored: Float[Tensor, "kept d_head"]


def effect_blocks(layer: Layer, low: int = 0, map_shape: tuple[int, int] = (1, 1)) -> Iterator[EffectBlock]:
    """Every block of a layer in which some query has a gradient, in O(n · block) memory.

    Raises:
        InputError: a score overflows.
    """
    rows = layer.g.flatten(1).any(-1).nonzero()[:, 0]
    group = layer.q.shape[1] // layer.k.shape[1]
    for kept, own in layer.see.apart(layer.documents):
        see = own.select(rows)
        if not see.row.numel():
            continue
        height = block_height(_BUDGET, BUFFERS * group, see, layer.spec, layer.dtype)
        work = Pass(
            q=layer.q, k=layer.k, spec=layer.spec, visibility=see, totals=Totals(), groups=frozenset(), low=low,
            map_shape=map_shape, value_norm=None, dtype=layer.dtype, height=height,
        )  # fmt: skip
        buffers = Buffers(work, group)
        for kv_head in range(layer.k.shape[1]):
            heads = slice(kv_head * group, (kv_head + 1) * group)
            keys = layer.k[see.key, kv_head]
            keys = keys.to(score_dtype(work, heads, keys)).contiguous()
            values = layer.v[see.key, kv_head].to(layer.dtype).contiguous()
            for part in see.blocks(height):
                block = Block(work, buffers, heads, part, 0)
                cells = _effects(block, keys, values, layer.g)
                start = kept.start + block.keys.start
                yield EffectBlock(block, cells, slice(start, start + cells.shape[2]), keys)


def _effects(block: Block, keys: Tensor, values: Tensor, g: Tensor) -> Float[Tensor, "group row key"]:
    """p_ij (g_i · v_j) of a block, whose pattern and scores are filled."""
    block.score(keys)
    block.fill(-torch.inf)
    block.exponentiate()
    if not bool(torch.isfinite(block.top).all()):
        raise InputError(OVERFLOW)
    block.normalise()
    gradient = g[block.work.visibility.row[block.rows], block.heads].to(values.dtype)
    cells = block.buffers.plain(*block.shape)
    for head in range(block.shape[0]):
        torch.mm(gradient[:, head], values[block.keys].T, out=cells[head])
    return cells.mul_(block.pattern)


@torch.no_grad()
def attention_effects(layer: Layer, map_size: int) -> Effects:
    """Add up the effects of every cell of a layer.

    Args:
        layer: the layer's tensors.
        map_size: side of the pooled map; at most the number of tokens.

    Raises:
        InputError: NaN or infinity in the tensors, or a score that overflows.
    """
    n, n_heads = layer.q.shape[:2]
    side = min(map_size, n)
    low, high = layer.distances

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(n_heads, *shape, dtype=torch.float64, device=layer.q.device)

    found = Effects(zeros(2, n), zeros(2, n), zeros(2, high - low + 1), zeros(2, side, side), zeros(), low)
    for each in effect_blocks(layer, low, (side, side)):
        block, cells = each.block, each.cells
        found.score[block.heads] += _score_effect(each)
        # The paddings of both buffers let diagonals be read as columns.
        torch.clamp(cells, min=0, out=block.pattern)
        torch.clamp(cells, max=0, out=block.scores)
        for sign, (flat, part) in enumerate(
            ((block.buffers.pattern, block.pattern), (block.buffers.scores, block.scores))
        ):
            _add(found, each, sign, flat, part)
    return found


def _add(found: Effects, each: EffectBlock, sign: int, flat: Tensor, cells: Tensor) -> None:
    """Add the cells of one sign to every sum."""
    block, heads = each.block, each.block.heads
    see, (map_rows, map_keys) = block.work.visibility, block.work.map_shape
    found.query[heads, sign, see.row[block.rows]] += cells.sum(-1).double()
    at, sums = by_distance(block, flat, cells)
    found.distance[heads, sign, at] += sums
    bins = bin_of(see.host.row[block.rows], see.n_queries, map_rows)
    filled, counts = torch.unique_consecutive(bins, return_counts=True)
    by_run = torch.stack([run.sum(1) for run in cells.split(counts.tolist(), dim=1)], dim=1).double()
    found.key[heads, sign, each.keys] += by_run.sum(1)
    column = bin_of(see.key[block.keys], see.n_keys, map_keys)
    pooled = by_run.new_zeros(*by_run.shape[:2], map_keys).index_add_(2, column, by_run)
    found.map[heads, sign].index_add_(1, filled.to(pooled.device), pooled)


def _score_effect(each: EffectBlock) -> Float[Tensor, " group"]:
    """``Σ ∂m/∂x · x`` of a block, x = scale · q·k; overwrites its pattern and scores.

    ``∂m/∂s_ij = p_ij (g_i·v_j − g_i·z_i)``; a soft-cap passes on ``1 − (s/c)²`` of it.
    """
    block, cells, spec = each.block, each.cells, each.block.work.spec
    whole = cells.sum(-1, keepdim=True)
    slope = torch.sub(cells, block.pattern.mul_(whole), out=block.pattern)
    if spec.softcap is None and spec.alibi_slopes is None:
        block.fill(0.0)  # of s − top, −∞ where hidden
        top = (slope.sum(-1).double() * block.top).sum(-1)
        return block.scores.mul_(slope).sum(-1).double().sum(-1) + top
    plain = replace(block.work, spec=replace(spec, softcap=None, alibi_slopes=None))
    block.work = plain
    block.score(each.keys_scored)
    block.work = replace(plain, spec=spec)
    if spec.softcap is not None:
        capped = (block.scores / spec.softcap).tanh_()
        slope.mul_(1 - capped.square_())
    block.fill(0.0)
    return block.scores.mul_(slope).sum(-1).double().sum(-1)
