"""What a block adds to the totals, a class for each family of statistics; none of them knows another.

A family sees the block at four moments: its scores, the same with hidden cells at −∞, the weights exp(s − top), and the
pattern. A new one is a class here and its totals in `totals`, named in `FAMILIES`.
"""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.measure.block import Block
from interp.measure.schema import LOCAL_DISTANCE, SINK_SIZES
from interp.measure.score_bins import count_scores
from interp.measure.totals import bin_of


class Family:
    """A family of statistics: what it does at each moment, nothing unless it says so.

    Attributes:
        groups: the names by which it is asked for.
        weighs: whether it needs a pattern.
    """

    groups: ClassVar[frozenset[str]]
    weighs: ClassVar[bool] = True

    def scores(self, block: Block) -> None:
        """Scores as they enter softmax; hidden cells hold what they would be."""

    def masked(self, block: Block) -> None:
        """The same, hidden cells at −∞."""

    def weights(self, block: Block) -> None:
        """`pattern` holds exp(s − top) and `scores` s − top, which this may overwrite."""

    def pattern(self, block: Block) -> None:
        """The pattern, which stays as it is; `scores` is free."""


class Rows(Family):
    """Everything that has one value per query."""

    groups = frozenset({"rows"})

    def scores(self, block: Block) -> None:
        """The smallest score, for which hidden cells count as +∞."""
        block.fill(torch.inf)
        block.work.totals.rows["min_score"][block.heads, block.out] = block.scores.amin(-1)

    def masked(self, block: Block) -> None:
        """The key of the largest score."""
        argmax = block.scores.argmax(-1) + block.keys.start
        block.work.totals.rows["argmax_key"][block.heads, block.out] = block.work.visibility.key[argmax]

    def weights(self, block: Block) -> None:
        """Entropy and varentropy, from weights that no sink far above every score has made too small."""
        work, at, weights, x = block.work, (block.heads, block.out), block.pattern, block.scores
        block.fill(0.0)
        scratch = block.buffers.plain(*block.shape)
        mean = torch.mul(weights, x, out=scratch).sum(-1).double() / block.total
        torch.sub(x, mean.to(x.dtype)[..., None], out=scratch).square_().mul_(weights)
        above = block.lse - block.top
        real = block.total * (-above).exp()
        work.totals.rows["entropy"][at] = (real * (above - mean)).to(work.dtype)
        work.totals.rows["varentropy"][at] = (scratch.sum(-1).double() / block.total).to(work.dtype)

    def pattern(self, block: Block) -> None:
        """Log-sum-exp, largest score and weight, mean distance, attention nearby and to the first keys."""
        work, rows, at, p = block.work, block.work.totals.rows, (block.heads, block.out), block.pattern
        scratch = block.buffers.plain(*block.shape)
        rows["lse"][at] = block.lse.to(work.dtype)
        rows["max_score"][at] = block.top.to(work.dtype)
        rows["max_prob"][at] = (block.top - block.lse).exp().to(work.dtype)
        far = work.visibility.distances(block.rows, block.keys).to(p.dtype)
        rows["mean_distance"][at] = torch.mul(p, far, out=scratch).sum(-1)
        rows["local_mass"][at] = self._local_mass(block)
        for i, size in enumerate(SINK_SIZES):
            first = max(min(size - block.keys.start, block.shape[2]), 0)
            rows["sink_mass"][(*at, i)] = p[:, :, :first].sum(-1)

    def _local_mass(self, block: Block) -> Float[Tensor, "group row"]:
        """Attention to keys nearer than LOCAL_DISTANCE."""
        if not block.in_step:
            near = block.work.visibility.distances(block.rows, block.keys).abs() < LOCAL_DISTANCE
            return (block.pattern * near).sum(-1)
        last, width = block.last_distance(), block.shape[1] + block.shape[2] - 1
        columns = slice(max(last - LOCAL_DISTANCE + 1, 0), max(min(last + LOCAL_DISTANCE, width), 0))
        return block.diagonals(block.buffers.pattern, columns).sum(-1)


class Scores(Family):
    """The histogram of the scores."""

    groups = frozenset({"scores"})
    weighs = False

    def masked(self, block: Block) -> None:
        """The masked cells fall into the first bin and are taken out of it."""
        counts = count_scores(block.scores)
        see = block.work.visibility.host
        visible = int((see.stop[block.rows] - see.first[block.rows]).sum())
        counts[:, 0] -= block.shape[1] * block.shape[2] - visible
        block.work.totals.scores["score_count"][block.heads] += counts


class Columns(Family):
    """Column sums and maxima, and from them the pooled map: rows first, one run of rows per map bin."""

    groups = frozenset({"keys", "map"})

    def pattern(self, block: Block) -> None:
        """Sums and largest by key, then by map bin."""
        work, totals = block.work, block.work.totals
        see, (map_rows, map_keys) = work.visibility, work.map_shape
        bins = bin_of(see.host.row[block.rows], see.n_queries, map_rows if "map" in work.groups else 1)
        filled, counts = torch.unique_consecutive(bins, return_counts=True)
        sizes, (first, last) = counts.tolist(), filled[[0, -1]].tolist()
        # A run of bins needs no index on the device, for whose copy the host would wait.
        labels = slice(first, last + 1) if last - first < len(sizes) else filled.to(see.row.device)
        runs = block.pattern.split(sizes, dim=1)
        sums = torch.stack([run.sum(1) for run in runs], dim=1).double()
        tops = torch.stack([run.amax(1) for run in runs], dim=1).double()
        if "keys" in work.groups:
            received, top = (totals.keys[n][block.heads, block.keys] for n in ("received", "received_max"))
            received += sums.sum(1)
            torch.maximum(top, tops.amax(1), out=top)
        if "map" in work.groups:
            column = bin_of(see.key[block.keys], see.n_keys, map_keys)
            pooled = sums.new_zeros(*sums.shape[:2], map_keys)
            totals.map["map_sum"][block.heads][:, labels] += pooled.index_add_(2, column, sums)
            peaks = torch.zeros_like(pooled).scatter_reduce_(2, column.expand_as(tops), tops, "amax")
            best = totals.map["map_max"][block.heads]
            best[:, labels] = torch.maximum(best[:, labels], peaks)
            if block.heads.start == 0:
                totals.map["map_count"][labels] += self._cells(block, column, sizes)

    def _cells(self, block: Block, column: Int[Tensor, " band"], sizes: list[int]) -> Int[Tensor, "run map_key"]:
        """Visible cells of each run of rows in each map column."""
        see, n_columns = block.work.visibility, block.work.map_shape[1]
        edges = torch.searchsorted(column, torch.arange(n_columns + 1, device=column.device)) + block.keys.start
        first, stop = see.first[block.rows, None], see.stop[block.rows, None]
        cells = (torch.minimum(stop, edges[1:]) - torch.maximum(first, edges[:-1])).clamp_min(0)
        return torch.stack([run.sum(0) for run in cells.split(sizes)])


class Distances(Family):
    """Moments of the scores at each distance, and the attention that goes there."""

    groups = frozenset({"distances"})

    def scores(self, block: Block) -> None:
        """Count, mean, centred second moment and extremes of the scores at each distance."""
        if not block.in_step:
            self._scores_by_index(block)
            return
        columns, buffer = block.visible_diagonals(), block.buffers.scores
        count, at = block.diagonal_count(columns), block.distances_of(columns)
        smallest = block.diagonals(buffer, columns, torch.inf).amin(1)
        largest = block.diagonals(buffer, columns, -torch.inf).amax(1)
        cells = block.diagonals(buffer, columns)
        mean = cells.sum(1).double() / count
        off = torch.sub(cells, mean.to(cells.dtype)[:, None], out=block.buffers.plain(*cells.shape))
        block.clear_outside(off, columns)
        # The mean was rounded to the scores' precision: what is left of it comes off again.
        left = off.sum(1).double() / count
        m2 = off.square_().sum(1).double() - count * left.square()
        flipped = (x.flip(-1) for x in (count, mean, m2.clamp_min_(0), smallest, largest))
        block.work.totals.merge_scores(block.heads, at, *flipped)
        if block.heads.start == 0:
            block.work.totals.distances["count"][at] += count.flip(-1).long()

    def _scores_by_index(self, block: Block) -> None:
        """The same where diagonals are not distances: each visible cell goes to its distance by index."""
        visible = block.visible()
        index, at, size = _distance_index(block, visible)
        count = torch.bincount(index, minlength=size).double()
        cells = block.scores[:, visible].double()
        shape = (cells.shape[0], size)
        mean = _sum_by(index, cells, size) / count.clamp_min(1)
        m2 = _sum_by(index, (cells - mean[:, index]).square_(), size)
        where = index.expand_as(cells)
        smallest = cells.new_full(shape, torch.inf).scatter_reduce_(1, where, cells, "amin")
        largest = cells.new_full(shape, -torch.inf).scatter_reduce_(1, where, cells, "amax")
        block.work.totals.merge_scores(block.heads, at, count, mean, m2, smallest, largest)
        if block.heads.start == 0:
            block.work.totals.distances["count"][at] += count.long()

    def pattern(self, block: Block) -> None:
        """Attention summed over each distance, and the same weighted by what it moves."""
        totals, value_norm = block.work.totals.distances, block.work.value_norm
        at, sums = by_distance(block, block.buffers.pattern, block.pattern)
        totals["attention"][block.heads, at] += sums
        if value_norm is not None:
            torch.mul(block.pattern, value_norm[block.heads, None, block.keys], out=block.scores)
            at, sums = by_distance(block, block.buffers.scores, block.scores)
            totals["attention_value"][block.heads, at] += sums


def by_distance(block: Block, flat: Tensor, cells: Tensor) -> tuple[slice, Float[Tensor, "group distance"]]:
    """Sums of a buffer's cells over distances, and where they belong."""
    if block.in_step:
        columns = block.visible_diagonals()
        return block.distances_of(columns), block.diagonals(flat, columns).sum(1).double().flip(-1)
    visible = block.visible()
    index, at, size = _distance_index(block, visible)
    return at, _sum_by(index, cells[:, visible].double(), size)


def _distance_index(block: Block, visible: Tensor) -> tuple[Int[Tensor, " cell"], slice, int]:
    """For each visible cell which distance it has, counted from the block's smallest; where those lie; how many."""
    distance = block.work.visibility.distances(block.rows, block.keys)[visible]
    start = int(distance.min())
    size = int(distance.max()) - start + 1
    return distance - start, slice(start - block.work.low, start - block.work.low + size), size


def _sum_by(index: Int[Tensor, " cell"], cells: Float[Tensor, "group cell"], size: int) -> Float[Tensor, "group size"]:
    """Sum cells that share an index."""
    return torch.stack([torch.bincount(index, weights=row, minlength=size) for row in cells])


FAMILIES: tuple[Family, ...] = (Distances(), Rows(), Scores(), Columns())
