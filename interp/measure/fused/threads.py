"""The one pass over q and k on the CPU, compiled: each thread takes every n-th block of rows and adds up on its own.

What a thread does to a block is in `blocks`. The threads are ours and call nothing that starts threads; what each
of them added up is merged in a fixed order, so that the same call gives the same bits.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from hooks.errors import InputError
from interp.measure.fused import spreading
from interp.measure.fused.blocks import TILE, Head, Layout, Results, Rows, Scratch, Sums, measure_blocks
from interp.measure.fused.buffers import Allocate, Workspace
from interp.measure.fused.dot_products import LARGE_SCORE, PANEL, ROWS, pack_keys
from interp.measure.fused.simd import LANES
from interp.measure.schema import LOCAL_DISTANCE
from interp.measure.score_bins import collapse_counts, index_layout
from interp.measure.totals import bin_of
from interp.measure.work import OVERFLOW, Pass

_HEIGHT = {False: 64, True: 128}  # by whether heads are wide: then keys are read less often, and rows fit all the same
_WIDE = 128
_MARGIN = LANES  # entries before and after the distances: whole vectors may reach over the ends, with nothing in them
_CELLS_PER_CALL = 2**25  # a compiled call takes about 0.1 s: progress is shown and Ctrl-C heard in between
_WORKSPACE = Workspace(2**26)


class FusedPass:
    """Measures what a Pass describes, and adds it to the same totals."""

    def __init__(self, work: Pass) -> None:
        see, self.work = work.visibility, work
        height = min(work.height, _HEIGHT[work.q.shape[2] > _WIDE], max(see.row.numel(), 1))
        edge = LANES * -(-height // LANES)
        # An odd number of cache lines per row: a power of two would put all rows into the same few cache sets.
        width, stride = (LANES * ((x // LANES + 1) | 1) for x in (edge + TILE + max(edge, PANEL) + LANES, TILE + edge))
        origin = int(see.key_position[0]) if see.key.numel() else 0
        label = bin_of(see.row, see.n_queries, work.map_shape[0])
        arrays = (see.first, see.stop, see.query_position - origin, label)
        self.rows = Rows(*(np.ascontiguousarray(x.numpy()) for x in arrays))
        self.column = bin_of(see.key, see.n_keys, work.map_shape[1]).numpy()
        self.distances = len(work.totals.distances["count"]) if "distances" in work.groups else 0
        self.layout = Layout(
            height=height,
            edge=edge,
            width=width,
            stride=stride,
            last=work.low + self.distances - 1 + _MARGIN,
            shift=index_layout(torch.float32)[0],
            local=LOCAL_DISTANCE,
            weigh=bool(work.groups & {"rows", "keys", "distances", "map"}),
        )
        self.n_blocks = -(-see.row.numel() // height)
        self.band = see.band_width(height)
        self.stopped = False

    def run(self, row_offset: int = 0, done: Callable[[int], None] | None = None) -> None:
        """Measure every row; results of row i go to entry `row_offset + i` of the row totals.

        Args:
            row_offset: where this pass's rows start in the row totals.
            done: called with the number of score rows that were measured since the last call.

        Raises:
            InputError: a score overflows.
        """
        threads = max(min(torch.get_num_threads(), self.n_blocks), 1)
        with _WORKSPACE.lend() as allocate, ThreadPoolExecutor(max(threads - 1, 1)) as pool:
            workers = [_Worker(self, allocate) for _ in range(threads)]
            for index, head in enumerate(self._heads()):
                results = self._measure(head, workers, pool, done)
                for worker in workers:
                    worker.merge(index)
                if index == 0 and "map" in self.work.groups:
                    self._count_map()
                if "rows" in self.work.groups:
                    self._store_rows(index, results, slice(row_offset, row_offset + results.top.size))

    def _heads(self) -> Iterator[Head]:
        """Every query head, with the keys of its kv head packed once."""
        work, see, spec, edge = self.work, self.work.visibility, self.work.spec, self.layout.edge
        group, keys, key_norm = work.q.shape[1] // work.k.shape[1], np.empty(0), np.empty(0)
        for head in range(work.q.shape[1]):
            if head % group == 0:
                keys, key_norm = pack_keys(work.k[see.key, head // group])
            queries = work.q[see.row, head].float().contiguous()
            precise = torch.empty(0, queries.shape[1], dtype=torch.float64)
            scaled = queries * spec.scale
            query_norm = torch.linalg.vector_norm(scaled, dim=1)
            # Written so that an overflow of the norms counts as large.
            if self.n_blocks and not float(query_norm.max() * key_norm.max()) <= LARGE_SCORE:
                precise = queries.double() * spec.scale
            value = np.zeros(0, np.float32)
            if work.value_norm is not None:
                norms = work.value_norm[head].float()
                value = torch.nn.functional.pad(norms, (edge, TILE + 2 * edge)).numpy()
            yield Head(
                queries=scaled.numpy(),
                precise=precise.numpy(),
                query_norm=query_norm.numpy(),
                keys=keys,
                key_norm=key_norm,
                value=value,
                softcap=float(spec.softcap or 0.0),
                slope=0.0 if spec.alibi_slopes is None else float(spec.alibi_slopes[head]),
                sink=-np.inf if spec.sinks is None else float(spec.sinks[head]),
            )

    def _measure(
        self, head: Head, workers: list["_Worker"], pool: ThreadPoolExecutor, done: Callable[[int], None] | None
    ) -> Results:
        """Measure one head on all threads; this thread is one of them, and the one that reports."""
        n, step = self.rows.first.size, len(workers)
        results = Results(
            top=np.full(n, -np.inf, np.float32),
            bottom=np.full(n, np.inf, np.float32),
            where=np.zeros(n, np.int64),
            out=np.empty((n, 8)),
        )
        try:
            others = [pool.submit(w.measure, head, results, i, step) for i, w in enumerate(workers[1:], 1)]
            reported = workers[0].measure(head, results, 0, step, done)
            for other in others:
                other.result()
        except BaseException:
            self.stopped = True  # the other threads end after the call that they are in
            raise
        if done is not None:
            done(n - reported)
        return results

    def _count_map(self) -> None:
        """Visible cells of the pooled map, the same for every head."""
        rows, count = self.rows, self.work.totals.map["map_count"]
        edges = np.searchsorted(self.column, np.arange(self.work.map_shape[1] + 1))
        breaks = np.flatnonzero(np.diff(rows.label)) + 1
        for part in np.split(np.arange(rows.label.size), breaks):
            if part.size:
                spreading.count_cells(rows.first[part], rows.stop[part], edges, count[rows.label[part[0]]].numpy())

    def _store_rows(self, head: int, results: Results, at: slice) -> None:
        """Write the statistics of each row where they belong."""
        rows = self.work.totals.rows
        names = ("lse", "entropy", "varentropy", "mean_distance", "local_mass", "max_prob")
        for i, name in enumerate(names):
            rows[name][head, at] = torch.from_numpy(results.out[:, i]).float()
        rows["sink_mass"][head, at] = torch.from_numpy(results.out[:, len(names) :]).float()
        rows["max_score"][head, at] = torch.from_numpy(results.top)
        rows["min_score"][head, at] = torch.from_numpy(results.bottom)
        rows["argmax_key"][head, at] = self.work.visibility.key[torch.from_numpy(results.where)]


class _Worker:
    """One thread's buffers, borrowed, and what it adds up for the head at hand."""

    def __init__(self, parent: FusedPass, allocate: Allocate) -> None:
        self.parent, work, layout = parent, parent.work, parent.layout
        kept, d, height = parent.column.size, work.q.shape[2], layout.height
        groups = -(-height // ROWS)
        tiles = -(-(parent.band + PANEL) // TILE)
        self.scratch = Scratch(
            packed=allocate(groups * ROWS * d, np.float32),
            precise=allocate(groups * ROWS * d),
            norm=allocate(groups, np.float32),
            first=allocate(height, np.int64),
            stop=allocate(height, np.int64),
            position=allocate(height, np.int64),
            group_first=allocate(groups, np.int64),
            group_stop=allocate(groups, np.int64),
            cells=allocate(groups * ROWS * layout.width + 2 * LANES, np.float32),
            weights=allocate((tiles * height + 1) * layout.stride if layout.weigh else 0, np.float32),
            reference=allocate((tiles, height), np.float32),
            now=allocate(height, np.float32),
            sums=allocate((height, 4)),
            scale=allocate(height),
            factor=allocate(height, np.float32),
            key_sums=allocate((height, TILE + LANES), np.float32),
            key_tops=allocate((height, TILE + LANES), np.float32),
            map_edges=allocate(height + 1, np.int64),
            step_edges=allocate(height + 1, np.int64),
            begin=allocate(height, np.int64),
            end=allocate(height, np.int64),
            bin_of=allocate(TILE + LANES, np.uint32),
        )
        for padded in (self.scratch.cells, self.scratch.weights):
            padded.fill(0)
        groups = work.groups
        distances = parent.distances + 2 * _MARGIN if parent.distances else 0
        keys = kept + TILE + PANEL if "keys" in groups else 0
        map_shape = work.map_shape if "map" in groups else (0, 0)
        self.sums = Sums(
            seen=allocate(distances),
            mean=allocate(distances),
            m2=allocate(distances),
            smallest=allocate(distances, np.float32),
            largest=allocate(distances, np.float32),
            attention=allocate(distances),
            attention_value=allocate(distances if work.value_norm is not None else 0),
            received=allocate(keys),
            received_max=allocate(keys, np.float32),
            map_sum=allocate(map_shape),
            map_max=allocate(map_shape),
            bins=allocate((8, index_layout(torch.float32)[1] if "scores" in groups else 0), np.int64),
        )
        self._clear()

    def _clear(self) -> None:
        """Nothing measured yet."""
        for sums in self.sums:
            sums.fill(0)
        self.sums.smallest.fill(np.inf)
        self.sums.largest.fill(-np.inf)

    def measure(
        self, head: Head, results: Results, first: int, step: int, done: Callable[[int], None] | None = None
    ) -> int:
        """Add blocks first, first + step, … of one head; returns the rows reported to `done`."""
        parent, height, reported = self.parent, self.parent.layout.height, 0
        blocks = max(_CELLS_PER_CALL // (height * parent.band), 1)
        for begin in range(first, parent.n_blocks, blocks * step):
            if parent.stopped:
                break
            end = min(begin + blocks * step, parent.n_blocks)
            if not measure_blocks(
                begin, end, step, parent.rows, parent.column, head, parent.layout, self.scratch, self.sums, results
            ):
                raise InputError(OVERFLOW)
            if done is not None:
                rows = range(parent.rows.first.size)
                measured = sum(len(rows[b * height : (b + 1) * height]) for b in range(begin, end, step))
                done(measured)
                reported += measured
        return reported

    def merge(self, head: int) -> None:
        """Add what this thread measured of one head to the totals of all."""
        totals, heads, sums = self.parent.work.totals, slice(head, head + 1), self.sums
        if sums.received.size:
            kept = self.parent.column.size
            totals.keys["received"][head] += torch.from_numpy(sums.received[:kept])
            _raise_to(totals.keys["received_max"][head], sums.received_max[:kept])
        if sums.seen.size:
            moments = [_by_distance(x) for x in (sums.seen, sums.mean, sums.m2, sums.smallest, sums.largest)]
            totals.merge_scores(heads, slice(0, self.parent.distances), moments[0], *(x[None] for x in moments[1:]))
            totals.distances["attention"][head] += _by_distance(sums.attention)
            if sums.attention_value.size:
                totals.distances["attention_value"][head] += _by_distance(sums.attention_value)
            if head == 0:
                totals.distances["count"] += moments[0].long()
        if sums.map_sum.size:
            totals.map["map_sum"][head] += torch.from_numpy(sums.map_sum)
            _raise_to(totals.map["map_max"][head], sums.map_max)
        if sums.bins.size:
            totals.scores["score_count"][heads] += collapse_counts(torch.from_numpy(sums.bins.sum(0))[None])
        self._clear()


def _by_distance(sums: np.ndarray) -> Tensor:
    """Sums in ascending distance, as float64."""
    return torch.from_numpy(sums[_MARGIN:-_MARGIN][::-1].astype(np.float64))


def _raise_to(best: Tensor, other: np.ndarray) -> None:
    """The larger of both, in place."""
    torch.maximum(best, torch.from_numpy(other).double(), out=best)
