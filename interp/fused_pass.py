"""The one pass over q and k on the CPU, compiled: each thread takes every n-th block of rows and adds up on its own.

Scores come from BLAS, a tile of keys at a time, and stay in the cache for the loops of `kernel`. The threads are ours,
torch's are held at one each, so that the two never compete; what a thread added up is merged in a fixed order.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hooks.errors import InputError
from interp import kernel
from interp.score_bins import collapse_counts, index_layout
from interp.statistics_pass import LARGE_SCORE, OVERFLOW, Pass
from interp.statistics_schema import LOCAL_DISTANCE
from interp.totals import bin_of
from interp.visibility import Visibility

Place = tuple[np.ndarray, int, int, int]  # buffer, width of its rows, padding before the first key, rows

_LANES = 16
_HEIGHT = {False: 64, True: 128}  # by whether heads are wide: then the product gains more than the cache loses
_WIDE = 128
_TILE = 4096  # keys: 64 rows of them are 1 MiB and stay in a core's L2 cache


@dataclass(frozen=True)
class Run:
    """Some of a block's rows, counted from its first."""

    start: int
    stop: int


class Block:
    """A run of rows and the keys they see, the same for every head: counted from the block's first key."""

    def __init__(self, see: Visibility, label: np.ndarray, rows: slice) -> None:
        band = see.band(rows)
        self.rows, self.low, self.keys = rows, band.start, band.stop - band.start
        self.height = rows.stop - rows.start
        self.first = see.first[rows].numpy() - band.start
        self.stop = see.stop[rows].numpy() - band.start
        self.position = see.query_position[rows].numpy() - int(see.key_position[band.start])
        self.label = label[rows]
        self.in_step = _runs(np.diff(self.position) != 1)
        self.map_runs = _runs(np.diff(self.label) != 0)


class Head:
    """One query head: its scaled queries, its keys, lengths that bound their scores, and the results of its rows."""

    def __init__(self, work: Pass, head: int) -> None:
        see, kv_head = work.visibility, head // (work.q.shape[1] // work.k.shape[1])
        self.index = head
        self.q, self.k = work.q[see.row, head], work.k[see.key, kv_head].T
        self.single_q = self.q.float() * work.spec.scale
        self.single_k = self.k.float().contiguous()  # BLAS packs rows of keys faster than columns
        self.q_norm = torch.linalg.vector_norm(self.single_q, dim=1)
        self.k_norm = torch.linalg.vector_norm(self.single_k, dim=0)
        # Written so that an overflow of the norms counts as large.
        self.large = bool(see.row.numel()) and not float(self.q_norm.max() * self.k_norm.max()) <= LARGE_SCORE
        if self.large:
            self.q, self.k = self.q.double() * work.spec.scale, self.k.double().contiguous()
        rows = see.row.numel()
        self.out = np.empty((rows, 8))
        self.top, self.bottom = np.full(rows, -np.inf, np.float32), np.full(rows, np.inf, np.float32)
        self.where = np.zeros(rows, np.int64)

    def product(self, rows: slice, keys: slice, out: Float[Tensor, "row key"]) -> None:
        """Scaled q·k in float32, through float64 where float32 sums would show in the pattern."""
        if self.large and not float(self.q_norm[rows].max() * self.k_norm[keys].max()) <= LARGE_SCORE:
            out.copy_(self.q[rows] @ self.k[:, keys])
        else:
            torch.mm(self.single_q[rows], self.single_k[:, keys], out=out)


class FusedPass:
    """Measures what a Pass describes, and adds it to the same totals."""

    def __init__(self, work: Pass) -> None:
        see = work.visibility
        self.work, self.see = work, see
        self.height = min(work.height, _HEIGHT[work.q.shape[2] > _WIDE])
        label = bin_of(see.row, see.n_queries, work.map_shape[0]).numpy()
        self.blocks = [Block(see, label, rows) for rows in see.blocks(self.height)]
        widest = max((block.keys for block in self.blocks), default=1)
        self.pad = _LANES * -(-self.height // _LANES)
        # An odd number of cache lines per row: a power of two would put all rows into the same few cache sets.
        self.width = _LANES * ((-(-(self.pad + widest + self.height + 2 * _LANES) // _LANES)) | 1)

    def run(self, row_offset: int = 0, done: Callable[[int], None] | None = None) -> None:
        """Measure every row; results of row i go to entry `row_offset + i` of the row totals.

        Args:
            row_offset: where this pass's rows start in the row totals.
            done: called with the number of score rows that were measured since the last call.

        Raises:
            InputError: a score overflows.
        """
        threads = torch.get_num_threads()
        workers = [_Worker(self) for _ in range(max(min(threads, len(self.blocks)), 1))]
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(max(len(workers) - 1, 1), initializer=torch.set_num_threads, initargs=(1,)) as pool:
                for index in range(self.work.q.shape[1]):
                    self._measure(Head(self.work, index), workers, pool, row_offset, done)
        finally:
            torch.set_num_threads(threads)

    def _measure(
        self,
        head: Head,
        workers: list["_Worker"],
        pool: ThreadPoolExecutor,
        row_offset: int,
        done: Callable[[int], None] | None,
    ) -> None:
        """Measure one head on all threads; this thread is one of them, and the one that reports."""
        share = [self.blocks[i :: len(workers)] for i in range(len(workers))]
        others = [pool.submit(w.measure, head, b) for w, b in zip(workers[1:], share[1:], strict=True)]
        workers[0].measure(head, share[0], done)
        for other in others:
            other.result()
        if done is not None:
            done(sum(block.height for blocks in share[1:] for block in blocks))
        for worker in workers:
            worker.merge(head.index)
        if "rows" in self.work.groups:
            self._store_rows(head, slice(row_offset, row_offset + head.top.size))

    def _store_rows(self, head: Head, at: slice) -> None:
        """Write the statistics of each row where they belong."""
        rows = self.work.totals.rows
        names = ("lse", "entropy", "varentropy", "mean_distance", "local_mass", "max_prob")
        for i, name in enumerate(names):
            rows[name][head.index, at] = torch.from_numpy(head.out[:, i]).float()
        rows["sink_mass"][head.index, at] = torch.from_numpy(head.out[:, len(names) :]).float()
        rows["max_score"][head.index, at] = torch.from_numpy(head.top)
        rows["min_score"][head.index, at] = torch.from_numpy(head.bottom)
        rows["argmax_key"][head.index, at] = self.see.key[torch.from_numpy(head.where)]


class _Worker:
    """One thread's buffers and what it adds up for the head at hand."""

    def __init__(self, parent: FusedPass) -> None:
        self.parent, self.work, self.groups = parent, parent.work, parent.work.groups
        see, height, width = parent.see, parent.height, parent.width
        self.buffer = torch.empty(height * width + 2 * _LANES)
        self.cells = self.buffer.numpy()
        self.sums, self.factor = np.empty((height, 4), np.float32), np.empty(height, np.float32)
        self.steps = -np.arange(_LANES, dtype=np.float32)
        self.key_sums, self.key_tops = np.empty((2, width), np.float32)
        self.index = np.empty(1024, np.uint32)
        self.value = np.zeros(width if self.work.value_norm is not None else 0, np.float32)
        self.distances = len(self.work.totals.distances["count"]) if "distances" in self.groups else 0
        self.column = bin_of(see.key, see.n_keys, self.work.map_shape[1]).numpy()
        self.edges = np.searchsorted(self.column, np.arange(self.work.map_shape[1] + 1))
        self._clear()

    def _clear(self) -> None:
        """Nothing measured yet."""
        map_rows, map_keys = self.work.map_shape
        self.received, self.received_max = np.zeros((2, self.column.size if "keys" in self.groups else 0))
        self.moments = np.zeros((5, self.distances))
        self.moments[3:] = np.array([np.inf, -np.inf])[:, None]
        self.attention = np.zeros(self.distances)
        self.attention_value = np.zeros(self.distances if self.value.size else 0)
        self.map_sum, self.map_max = np.zeros((2, map_rows if "map" in self.groups else 0, map_keys))
        self.map_count = np.zeros(self.map_sum.shape, np.int64)
        self.shift, self.bins = index_layout(torch.float32)
        self.counts = np.zeros((4, self.bins if "scores" in self.groups else 0), np.int64)

    def measure(self, head: Head, blocks: list[Block], done: Callable[[int], None] | None = None) -> None:
        """Add these blocks of one head: scores, what they need alone, exponentials, and what the pattern adds to."""
        for block in blocks:
            place: Place = (self.cells, self.parent.width, self.parent.pad, block.height)
            self._score(head, block, place)
            if not np.isfinite(head.top[block.rows]).all():
                raise InputError(OVERFLOW)
            if "scores" in self.groups:
                kernel.count_bins(
                    *place, block.first, block.stop, self.shift, self.bins // 2, self.index, self.counts
                )  # fmt: skip
            if self.groups & {"rows", "keys", "distances", "map"}:
                self._normalise(head, block, place)
            if self.groups & {"keys", "map"}:
                self._add_keys(head, block)
            if self.distances:
                self._add_distances(head, block)
            if done is not None:
                done(block.height)

    def _score(self, head: Head, block: Block, place: Place) -> None:
        """Fill the block with scores, a tile of keys at a time, and measure each tile while it is in the cache."""
        parent, spec, rows = self.parent, self.work.spec, block.rows
        scores = self.buffer.as_strided((block.height, block.keys), (parent.width, 1), parent.pad)
        top, bottom, where = head.top[rows], head.bottom[rows], head.where[rows]
        far = 0  # columns of the sheared block that are measured
        for tile in range(0, block.keys, _TILE):
            end = min(tile + _TILE, block.keys)
            cells = scores[:, tile:end]
            head.product(rows, slice(block.low + tile, block.low + end), cells)
            if spec.softcap is not None:
                cells.div_(spec.softcap).tanh_().mul_(spec.softcap)
            if spec.alibi_slopes is not None:
                slope = np.float32(spec.alibi_slopes[head.index])
                kernel.add_slopes(*place, tile, end, slope, block.position)
            kernel.extremes(*place, tile, end, block.first, block.stop, top, bottom, where)
            if self.distances and len(block.in_step) == 1:
                until = end if end < block.keys else block.keys + block.height - 1
                self._add_moments(block, block.in_step[0], far, until)
                far = until
        where += block.low
        if self.distances and len(block.in_step) > 1:
            for run in block.in_step:
                self._add_moments(block, run, 0, block.keys + run.stop - run.start - 1)

    def _add_moments(self, block: Block, run: Run, low: int, high: int) -> None:
        """Add the scores of one run of rows to their distances, columns low … high − 1 of the sheared run."""
        part, parent = slice(run.start, run.stop), self.parent
        cells = self.cells[run.start * parent.width :]
        kernel.distance_moments(
            cells, parent.width, parent.pad, run.stop - run.start, block.first[part], block.stop[part], low, high,
            self.moments, self._shift(block.position[part]),
        )  # fmt: skip

    def _shift(self, position: np.ndarray) -> int:
        """From a column of the sheared block to its entry in the totals, which start at the largest distance."""
        return self.work.low + self.distances - 1 - int(position[0]) - position.size + 1

    def _normalise(self, head: Head, block: Block, place: Place) -> None:
        """Scores become exponentials relative to the row's largest; what makes them a pattern goes to `factor`."""
        rows, sinks = block.rows, self.work.spec.sinks
        sink = -np.inf if sinks is None else float(sinks[head.index])
        top, edges = head.top[rows], (block.first, block.stop)
        kernel.exponentials(*place, block.keys, *edges, top, block.position, self.steps, self.sums)
        kernel.finish_rows(
            *place, block.low, *edges, top, block.position, sink, LOCAL_DISTANCE, self.sums, self.factor, head.out[rows]
        )

    def _add_keys(self, head: Head, block: Block) -> None:
        """Add the block to its keys, and to the map one row of it at a time."""
        parent, n, low = self.parent, block.keys, block.low
        runs = block.map_runs if "map" in self.groups else [Run(0, block.height)]
        for run in runs:
            part, rows = slice(run.start, run.stop), run.stop - run.start
            cells = self.cells[run.start * parent.width :]
            kernel.add_keys(cells, parent.width, parent.pad, rows, n, self.factor[part], self.key_sums, self.key_tops)
            if "keys" in self.groups:
                kernel.merge_keys(self.key_sums, self.key_tops, n, low, self.received, self.received_max)
            if "map" in self.groups:
                at, column = block.label[run.start], self.column[low : low + n]
                kernel.merge_map(self.key_sums, self.key_tops, n, column, self.map_sum[at], self.map_max[at])
                if head.index == 0:
                    first, stop = block.first[part] + low, block.stop[part] + low
                    kernel.count_cells(rows, first, stop, self.edges, self.map_count[at])

    def _add_distances(self, head: Head, block: Block) -> None:
        """Add the pattern to its distances."""
        parent, n = self.parent, block.keys
        if self.work.value_norm is not None:
            norms = self.work.value_norm[head.index, block.low : block.low + n]
            self.value[parent.pad : parent.pad + n] = norms.numpy()
            self.value[parent.pad + n :] = 0.0
        for run in block.in_step:
            part, rows = slice(run.start, run.stop), run.stop - run.start
            kernel.add_distances(
                self.cells[run.start * parent.width :], parent.width, parent.pad, rows, n, self.factor[part],
                self._shift(block.position[part]), self.attention, self.value, self.attention_value,
            )  # fmt: skip

    def merge(self, head: int) -> None:
        """Add what this thread measured of one head to the totals of all."""
        totals, heads = self.work.totals, slice(head, head + 1)
        if self.received.size:
            totals.keys["received"][head] += torch.from_numpy(self.received)
            best = totals.keys["received_max"][head]
            torch.maximum(best, torch.from_numpy(self.received_max), out=best)
        if self.distances:
            moments = torch.from_numpy(self.moments[:, ::-1].copy())
            count = moments[0]
            totals.merge_scores(heads, slice(0, self.distances), count, *moments[1:, None])
            totals.distances["attention"][head] += torch.from_numpy(self.attention[::-1].copy())
            if self.attention_value.size:
                totals.distances["attention_value"][head] += torch.from_numpy(self.attention_value[::-1].copy())
            if head == 0:
                totals.distances["count"] += count.long()
        if self.map_sum.size:
            totals.map["map_sum"][head] += torch.from_numpy(self.map_sum)
            best = totals.map["map_max"][head]
            torch.maximum(best, torch.from_numpy(self.map_max), out=best)
            totals.map["map_count"] += torch.from_numpy(self.map_count)
        if self.counts.size:
            totals.scores["score_count"][heads] += collapse_counts(torch.from_numpy(self.counts.sum(0))[None])
        self._clear()


def _runs(breaks: np.ndarray) -> list[Run]:
    """Runs of rows; a break between rows i and i + 1 is at i."""
    edges = (np.flatnonzero(breaks) + 1).tolist()
    return [Run(a, b) for a, b in zip([0, *edges], [*edges, breaks.size + 1], strict=True)]
