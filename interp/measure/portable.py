"""The one pass over q and k in portable torch: a block of query rows × the keys they see, then the next.

A block holds all the keys of its rows, so its softmax is exact and nothing is rescaled later.
"""

from collections.abc import Callable, Set
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooks.config.attention_spec import AttentionSpec
from hooks.errors import InputError
from hooks.functional.scores import finish_scores
from interp.measure.schema import LOCAL_DISTANCE, SINK_SIZES
from interp.measure.score_bins import count_scores
from interp.measure.totals import Totals, bin_of
from interp.measure.visibility import Visibility

BUFFERS = 4
LARGE_SCORE = 32.0
OVERFLOW = "a score overflows: q, k or the scale is too large. Give q and k as float64."


@dataclass(kw_only=True)
class Pass:
    """Everything that stays the same from block to block.

    Attributes:
        q: queries, [query head d_head].
        k: keys, [key kv_head d_head].
        spec: how scores become a pattern.
        visibility: the rows to measure and the keys that each sees.
        totals: where results are added.
        groups: what to measure.
        low: distance of the first entry of the distance totals.
        map_shape: bins of the pooled map.
        value_norm: ‖v_j W_O‖ of each query head, [head kept], or None.
        dtype: float32 or float64.
        height: query rows of a block.
        overflow: whether a score was not finite.
    """

    q: Float[Tensor, "query head d_head"]
    k: Float[Tensor, "key kv_head d_head"]
    spec: AttentionSpec
    visibility: Visibility
    totals: Totals
    groups: Set[str]
    low: int
    map_shape: tuple[int, int]
    value_norm: Float[Tensor, "head kept"] | None
    dtype: torch.dtype
    height: int
    overflow: Bool[Tensor, ""] = field(init=False)

    def run(self, row_offset: int = 0, done: Callable[[int], None] | None = None) -> None:
        """Measure every row; results of row i go to entry `row_offset + i` of the row totals.

        Args:
            row_offset: where this pass's rows start in the row totals.
            done: called with the number of score rows (rows × heads) after each block.
        """
        group = self.q.shape[1] // self.k.shape[1]
        everything = self.visibility.key.numel() == self.k.shape[0]
        blocks = Buffers(self, group)
        # Looked at once a kv head: at every block the host would wait for the device.
        self.overflow = torch.zeros((), dtype=torch.bool, device=self.q.device)
        for kv_head in range(self.k.shape[1]):
            heads = slice(kv_head * group, (kv_head + 1) * group)
            keys = self.k[:, kv_head] if everything else self.k[self.visibility.key, kv_head]
            keys = keys.to(self._score_dtype(heads, keys)).contiguous()
            for rows in self.visibility.blocks(self.height):
                block = Block(self, blocks, heads, rows, row_offset)
                block.score(keys)
                block.measure()
                if done is not None:
                    done(group * (rows.stop - rows.start))
            if bool(self.overflow):
                raise InputError(OVERFLOW)

    def _score_dtype(self, heads: slice, keys: Float[Tensor, "kept d_head"]) -> torch.dtype:
        """Precision of q·k: float64 where scores may be so large that float32 sums would show in the pattern."""
        if not keys.numel():
            return self.dtype
        norms = (torch.linalg.vector_norm(x, dim=-1, dtype=self.dtype).max() for x in (self.q[:, heads], keys))
        q_norm, k_norm = torch.stack([*norms]).tolist()
        return torch.float64 if abs(self.spec.scale) * q_norm * k_norm > LARGE_SCORE else self.dtype


class Buffers:
    """Two padded blocks, for scores and pattern, and plain scratch, reused by every block of a pass.

    A block sits between paddings one row narrower than it is high, so that stepping a row and a column at once
    walks a diagonal: seen with that stride each distance is a column.
    """

    def __init__(self, work: Pass, group: int) -> None:
        height = min(work.height, max(work.visibility.row.numel(), 1))
        self.pad = height - 1
        self.shape = (group, height, work.visibility.band_width(height) + 2 * self.pad)
        size = group * height * self.shape[2]
        self.scores, self.pattern, self.scratch = (
            torch.empty(size, dtype=work.dtype, device=work.q.device) for _ in range(3)
        )

    def core(self, flat: Tensor, rows: int, keys: int) -> Tensor:
        """[group row key]: the block without its paddings."""
        group, height, width = self.shape
        return flat.as_strided((group, rows, keys), (height * width, width, 1), self.pad)

    def diagonals(self, flat: Tensor, rows: int, keys: int, padding: float) -> Tensor:
        """[group row diagonal]: column c holds key c + row − (rows − 1); outside the block it reads `padding`."""
        group, height, width = self.shape
        whole = flat.view(self.shape)
        whole[:, :rows, self.pad - (rows - 1) : self.pad] = padding
        whole[:, :rows, self.pad + keys : self.pad + keys + rows - 1] = padding
        start = self.pad - (rows - 1)
        return flat.as_strided((group, rows, keys + rows - 1), (height * width, width + 1, 1), start)

    def plain(self, *shape: int) -> Tensor:
        """A contiguous scratch tensor; the next call reuses its memory."""
        size = 1
        for n in shape:
            size *= n
        if size > self.scratch.numel():
            self.scratch = self.scratch.new_empty(size)
        return self.scratch[:size].view(shape)


class Block:
    """A run of query rows of the heads that share one kv head, with the keys they see."""

    def __init__(self, work: Pass, buffers: Buffers, heads: slice, rows: slice, row_offset: int) -> None:
        see = work.visibility
        self.work, self.buffers, self.heads, self.rows = work, buffers, heads, rows
        self.keys = see.band(rows)
        self.shape = (heads.stop - heads.start, rows.stop - rows.start, self.keys.stop - self.keys.start)
        self.out = slice(row_offset + rows.start, row_offset + rows.stop)
        self.hidden = see.hidden(rows, self.keys)
        self.in_step = see.in_step(rows)
        self.scores = buffers.core(buffers.scores, *self.shape[1:])
        self.pattern = buffers.core(buffers.pattern, *self.shape[1:])

    def score(self, keys: Float[Tensor, "kept d_head"]) -> None:
        """Fill the block with the scores that enter softmax; hidden cells hold unmasked scores."""
        work, see, spec = self.work, self.work.visibility, self.work.spec
        q = work.q[see.row[self.rows], self.heads].to(keys.dtype) * spec.scale
        for head in range(self.shape[0]):
            if keys.dtype == work.dtype:
                torch.mm(q[:, head], keys[self.keys].T, out=self.scores[head])
            else:
                self.scores[head].copy_(q[:, head] @ keys[self.keys].T)
        slopes = None if spec.alibi_slopes is None else spec.alibi_slopes[self.heads]
        scaled = replace(spec, scale=1.0, alibi_slopes=slopes)
        finish_scores(self.scores, scaled, see.query_position[self.rows], see.key_position[self.keys])

    def measure(self) -> None:
        """Add the block to every total that was asked for."""
        groups, totals = self.work.groups, self.work.totals
        if "distances" in groups:
            self._score_moments()
        if "rows" in groups:
            self._fill(self.scores, torch.inf)
            totals.rows["min_score"][self.heads, self.out] = self.scores.amin(-1)
        self._fill(self.scores, -torch.inf)
        if "scores" in groups:
            self._count_scores()
        if groups & {"rows", "keys", "distances", "map"}:
            self._softmax()
        if "rows" in groups:
            self._row_statistics()
        if groups & {"keys", "map"}:
            self._pool()
        if "distances" in groups:
            self._attention_by_distance()

    def _fill(self, block: Tensor, value: float) -> None:
        """Write `value` into the cells that are not visible."""
        for columns, hidden in self.hidden:
            block[:, :, columns].masked_fill_(hidden, value)

    def _count_scores(self) -> None:
        """Histogram of the visible scores; the masked cells fall into the first bin and are taken out of it."""
        counts = count_scores(self.scores)
        see = self.work.visibility.host
        counts[:, 0] -= self.shape[1] * self.shape[2] - int((see.stop[self.rows] - see.first[self.rows]).sum())
        self.work.totals.scores["score_count"][self.heads] += counts

    def _softmax(self) -> None:
        """Pattern from masked scores, which become scores minus the row's largest; keeps the row's lse."""
        work, top = self.work, self.scores.amax(-1)
        work.overflow |= ~torch.isfinite(top).all()
        self.top = top.double()
        if "rows" in work.groups:
            argmax = self.scores.argmax(-1) + self.keys.start
            work.totals.rows["argmax_key"][self.heads, self.out] = work.visibility.key[argmax]
        torch.exp(self.scores.sub_(top[..., None]), out=self.pattern)
        self.total = self.pattern.sum(-1).double()
        self.lse = self.top + self.total.log()
        if work.spec.sinks is not None:
            self.lse = torch.logaddexp(self.lse, work.spec.sinks[self.heads].to(self.lse)[:, None])
        if "rows" in work.groups:
            self._row_moments()
        self.pattern.mul_((self.top - self.lse).exp().to(self.pattern.dtype)[..., None])

    def _row_moments(self) -> None:
        """Entropy and varentropy, from weights that no sink far above every score has made too small."""
        rows, at, weights, x = self.work.totals.rows, (self.heads, self.out), self.pattern, self.scores
        self._fill(x, 0.0)
        scratch = self.buffers.plain(*self.shape)
        mean = torch.mul(weights, x, out=scratch).sum(-1).double() / self.total
        torch.sub(x, mean.to(x.dtype)[..., None], out=scratch).square_().mul_(weights)
        above = self.lse - self.top
        real = self.total * (-above).exp()
        rows["entropy"][at] = (real * (above - mean)).to(self.work.dtype)
        rows["varentropy"][at] = (scratch.sum(-1).double() / self.total).to(self.work.dtype)

    def _row_statistics(self) -> None:
        """Everything else that has one value per query."""
        work, rows, at, p = self.work, self.work.totals.rows, (self.heads, self.out), self.pattern
        scratch = self.buffers.plain(*self.shape)
        rows["lse"][at] = self.lse.to(work.dtype)
        rows["max_score"][at] = self.top.to(work.dtype)
        rows["max_prob"][at] = (self.top - self.lse).exp().to(work.dtype)
        far = work.visibility.distances(self.rows, self.keys).to(p.dtype)
        rows["mean_distance"][at] = torch.mul(p, far, out=scratch).sum(-1)
        rows["local_mass"][at] = self._local_mass()
        for i, size in enumerate(SINK_SIZES):
            first = max(min(size - self.keys.start, self.shape[2]), 0)
            rows["sink_mass"][(*at, i)] = p[:, :, :first].sum(-1)

    def _local_mass(self) -> Float[Tensor, "group row"]:
        """Attention to keys nearer than LOCAL_DISTANCE."""
        if not self.in_step:
            near = self.work.visibility.distances(self.rows, self.keys).abs() < LOCAL_DISTANCE
            return (self.pattern * near).sum(-1)
        diagonals = self.buffers.diagonals(self.buffers.pattern, *self.shape[1:], padding=0.0)
        last = self._last_distance()
        columns = slice(max(last - LOCAL_DISTANCE + 1, 0), max(min(last + LOCAL_DISTANCE, diagonals.shape[2]), 0))
        return diagonals[:, :, columns].sum(-1)

    def _last_distance(self) -> int:
        """Distance of the block's first diagonal; each next diagonal is one nearer."""
        see = self.work.visibility.host
        return int(see.query_position[self.rows.stop - 1] - see.key_position[self.keys.start])

    def _pool(self) -> None:
        """Column sums and maxima, and from them the pooled map: rows first, one run of rows per map bin."""
        work, totals = self.work, self.work.totals
        see, (map_rows, map_keys) = work.visibility, work.map_shape
        bins = bin_of(see.host.row[self.rows], see.n_queries, map_rows if "map" in work.groups else 1)
        filled, counts = torch.unique_consecutive(bins, return_counts=True)
        sizes, (first, last) = counts.tolist(), filled[[0, -1]].tolist()
        # A run of bins needs no index on the device, for whose copy the host would wait.
        labels = slice(first, last + 1) if last - first < len(sizes) else filled.to(see.row.device)
        runs = self.pattern.split(sizes, dim=1)
        sums = torch.stack([run.sum(1) for run in runs], dim=1).double()
        tops = torch.stack([run.amax(1) for run in runs], dim=1).double()
        if "keys" in work.groups:
            received, top = (totals.keys[n][self.heads, self.keys] for n in ("received", "received_max"))
            received += sums.sum(1)
            torch.maximum(top, tops.amax(1), out=top)
        if "map" in work.groups:
            column = bin_of(see.key[self.keys], see.n_keys, map_keys)
            pooled = sums.new_zeros(*sums.shape[:2], map_keys)
            totals.map["map_sum"][self.heads][:, labels] += pooled.index_add_(2, column, sums)
            peaks = torch.zeros_like(pooled).scatter_reduce_(2, column.expand_as(tops), tops, "amax")
            best = totals.map["map_max"][self.heads]
            best[:, labels] = torch.maximum(best[:, labels], peaks)
            if self.heads.start == 0:
                totals.map["map_count"][labels] += self._cells(column, sizes)

    def _cells(self, column: Int[Tensor, " band"], sizes: list[int]) -> Int[Tensor, "run map_key"]:
        """Visible cells of each run of rows in each map column."""
        see, n_columns = self.work.visibility, self.work.map_shape[1]
        edges = torch.searchsorted(column, torch.arange(n_columns + 1, device=column.device)) + self.keys.start
        first, stop = see.first[self.rows, None], see.stop[self.rows, None]
        cells = (torch.minimum(stop, edges[1:]) - torch.maximum(first, edges[:-1])).clamp_min(0)
        return torch.stack([run.sum(0) for run in cells.split(sizes)])

    def _visible_diagonals(self) -> slice:
        """Diagonals of an in-step block that the mask rules show; the rest of the block is hidden."""
        see, rows = self.work.visibility.host, self.shape[1]
        # The diagonal of a row's key: one further left for each row below the first.
        shift = torch.arange(rows - 1, -1, -1, device="cpu") - self.keys.start
        low, high = (see.first[self.rows] + shift).min(), (see.stop[self.rows] + shift).max()
        return slice(int(low), int(high))

    def _diagonal_count(self, columns: slice) -> Float[Tensor, " diagonal"]:
        """Cells of each diagonal of the block."""
        rows, keys = self.shape[1:]
        column = torch.arange(columns.start, columns.stop, device=self.work.q.device)
        count = torch.minimum(column + 1, rows + keys - 1 - column).clamp_max(min(rows, keys))
        return count.double()

    def _at(self, columns: slice) -> slice:
        """Where the distances of these diagonals lie in the totals, in ascending order."""
        far = self._last_distance() - columns.start - self.work.low
        return slice(far - (columns.stop - columns.start) + 1, far + 1)

    def _score_moments(self) -> None:
        """Count, mean, centred second moment and extremes of the scores at each distance."""
        if not self.in_step:
            self._score_moments_by_index()
            return
        columns, buffers = self._visible_diagonals(), self.buffers
        count, at = self._diagonal_count(columns), self._at(columns)

        def diagonals(padding: float) -> Tensor:
            return buffers.diagonals(buffers.scores, *self.shape[1:], padding=padding)[:, :, columns]

        smallest, largest = diagonals(torch.inf).amin(1), diagonals(-torch.inf).amax(1)
        cells = diagonals(0.0)
        mean = cells.sum(1).double() / count
        off = torch.sub(cells, mean.to(cells.dtype)[:, None], out=buffers.plain(*cells.shape))
        self._clear_outside(off, columns)
        # The mean was rounded to the scores' precision: what is left of it comes off again.
        left = off.sum(1).double() / count
        m2 = off.square_().sum(1).double() - count * left.square()
        flipped = (x.flip(-1) for x in (count, mean, m2.clamp_min_(0), smallest, largest))
        self.work.totals.merge_scores(self.heads, at, *flipped)
        if self.heads.start == 0:
            self.work.totals.distances["count"][at] += count.flip(-1).long()

    def _clear_outside(self, diagonals: Tensor, columns: slice) -> None:
        """Zero the cells of a [group row diagonal] tensor that lie outside the block."""
        rows, keys = self.shape[1:]
        row = torch.arange(rows, device=diagonals.device)[:, None]
        column = torch.arange(columns.start, columns.stop, device=diagonals.device)
        left = slice(0, max(min(rows - 1, columns.stop) - columns.start, 0))
        right = slice(max(keys - columns.start, left.stop), columns.stop - columns.start)
        for part in (left, right):
            key = column[part] + row - (rows - 1)
            diagonals[:, :, part].masked_fill_((key < 0) | (key >= keys), 0.0)

    def _visible(self) -> Bool[Tensor, "row key"]:
        """The block's whole mask."""
        visible = torch.ones(self.shape[1:], dtype=torch.bool, device=self.work.q.device)
        for columns, hidden in self.hidden:
            visible[:, columns] = ~hidden
        return visible

    def _score_moments_by_index(self) -> None:
        """`_score_moments` where diagonals are not distances: each visible cell goes to its distance by index."""
        visible = self._visible()
        distance = self.work.visibility.distances(self.rows, self.keys)[visible]
        start = int(distance.min())
        size = int(distance.max()) - start + 1
        index = distance - start
        at = slice(start - self.work.low, start - self.work.low + size)
        count = torch.bincount(index, minlength=size).double()
        cells = self.scores[:, visible].double()
        shape = (cells.shape[0], size)
        mean = _sum_by(index, cells, size) / count.clamp_min(1)
        m2 = _sum_by(index, (cells - mean[:, index]).square_(), size)
        where = index.expand_as(cells)
        smallest = cells.new_full(shape, torch.inf).scatter_reduce_(1, where, cells, "amin")
        largest = cells.new_full(shape, -torch.inf).scatter_reduce_(1, where, cells, "amax")
        self.work.totals.merge_scores(self.heads, at, count, mean, m2, smallest, largest)
        if self.heads.start == 0:
            self.work.totals.distances["count"][at] += count.long()

    def _attention_by_distance(self) -> None:
        """Attention summed over each distance, and the same weighted by what it moves."""
        totals, value_norm = self.work.totals.distances, self.work.value_norm
        at, sums = self._pattern_by_distance()
        totals["attention"][self.heads, at] += sums
        if value_norm is not None:
            self.pattern.mul_(value_norm[self.heads, None, self.keys])
            totals["attention_value"][self.heads, at] += self._pattern_by_distance()[1]

    def _pattern_by_distance(self) -> tuple[slice, Float[Tensor, "group distance"]]:
        """Sums of the pattern buffer over distances, and where they belong."""
        if self.in_step:
            columns = self._visible_diagonals()
            cells = self.buffers.diagonals(self.buffers.pattern, *self.shape[1:], padding=0.0)[:, :, columns]
            return self._at(columns), cells.sum(1).double().flip(-1)
        visible = self._visible()
        distance = self.work.visibility.distances(self.rows, self.keys)[visible]
        start = int(distance.min())
        size = int(distance.max()) - start + 1
        at = slice(start - self.work.low, start - self.work.low + size)
        return at, _sum_by(distance - start, self.pattern[:, visible].double(), size)


def _sum_by(index: Int[Tensor, " cell"], cells: Float[Tensor, "group cell"], size: int) -> Float[Tensor, "group size"]:
    """Sum cells that share an index."""
    return torch.stack([torch.bincount(index, weights=row, minlength=size) for row in cells])
