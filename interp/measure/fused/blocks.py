"""What one thread of the fused pass does to a block of rows: tile after tile of scores, then of the pattern.

The pattern needs each row's log-sum-exp, known only after the last tile. So the first round leaves weights exp(s − c)
behind, c being the row's largest score so far, and the second turns them into the pattern.
"""

import math
from typing import NamedTuple

import numpy as np

from interp.measure.fused import loops, spreading
from interp.measure.fused.compiled import entry, inner
from interp.measure.fused.dot_products import PANEL, ROWS, pack_queries, scores
from interp.measure.fused.simd import LANES

TILE = 480  # keys, a multiple of PANEL: 64 rows of them, their keys and their weights stay in a core's L2 cache
_FIRST_KEYS = 4


class Rows(NamedTuple):
    """The rows of a pass: the keys that each sees, its position counted from key 0's, its row of the pooled map."""

    first: np.ndarray
    stop: np.ndarray
    position: np.ndarray
    label: np.ndarray


class Head(NamedTuple):
    """One query head: scaled queries [row d_head], packed keys, their norms, and what enters the score."""

    queries: np.ndarray
    precise: np.ndarray
    query_norm: np.ndarray
    keys: np.ndarray
    key_norm: np.ndarray
    value: np.ndarray
    softcap: float
    slope: float
    sink: float


class Results(NamedTuple):
    """What each row of one head gets; `out` is lse, entropy, varentropy, mean_distance, local_mass, max_prob, sinks."""

    top: np.ndarray
    bottom: np.ndarray
    where: np.ndarray
    out: np.ndarray


class Sums(NamedTuple):
    """What a thread adds up over the rows of one head; empty where a group was not asked for."""

    seen: np.ndarray
    mean: np.ndarray
    m2: np.ndarray
    smallest: np.ndarray
    largest: np.ndarray
    attention: np.ndarray
    attention_value: np.ndarray
    received: np.ndarray
    received_max: np.ndarray
    map_sum: np.ndarray
    map_max: np.ndarray
    bins: np.ndarray


class Layout(NamedTuple):
    """Numbers that stay the same: rows of a block, the size of a tile with its edges, and where totals start."""

    height: int
    edge: int
    width: int
    stride: int
    last: int
    shift: int
    local: int
    weigh: bool


class Scratch(NamedTuple):
    """A thread's buffers for one block."""

    packed: np.ndarray
    precise: np.ndarray
    norm: np.ndarray
    first: np.ndarray
    stop: np.ndarray
    position: np.ndarray
    group_first: np.ndarray
    group_stop: np.ndarray
    cells: np.ndarray
    weights: np.ndarray
    reference: np.ndarray
    now: np.ndarray
    sums: np.ndarray
    scale: np.ndarray
    factor: np.ndarray
    key_sums: np.ndarray
    key_tops: np.ndarray
    map_edges: np.ndarray
    step_edges: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    bin_of: np.ndarray


@entry
def measure_blocks(begin, end, step, rows, column, head, layout, scratch, sums, results):
    """Measure blocks begin, begin + step, … before end; False as soon as a score overflows."""
    for block in range(begin, end, step):
        start = block * layout.height
        stop = min(start + layout.height, rows.first.size)
        low = rows.first[start:stop].min() // PANEL * PANEL
        keys = rows.stop[start:stop].max() - low
        _score_tiles(start, stop, low, keys, rows, head, layout, scratch, sums, results)
        if not (np.isfinite(results.top[start:stop]).all() and np.isfinite(results.bottom[start:stop]).all()):
            return False
        if layout.weigh:
            _finish_rows(start, stop, low, rows, head, layout, scratch, results)
        if sums.received.size or sums.map_sum.size or sums.attention.size:
            _spread_tiles(start, stop, low, keys, rows, column, head, layout, scratch, sums)
    return True


@inner
def _see(start, stop, low, rows, scratch):
    """First and last key of each row, and of each group of rows, counted from key `low`."""
    scratch.group_first[:], scratch.group_stop[:] = np.iinfo(np.int64).max, np.iinfo(np.int64).min
    for r in range(stop - start):
        first, last, group = rows.first[start + r] - low, rows.stop[start + r] - low, r // ROWS
        scratch.first[r], scratch.stop[r] = first, last
        scratch.position[r] = rows.position[start + r] - low
        scratch.group_first[group] = min(scratch.group_first[group], first)
        scratch.group_stop[group] = max(scratch.group_stop[group], last)


@inner
def _cut(values, step, edges):
    """Cut values into runs, each value the one before plus `step`: run i is edges[i] … edges[i + 1] − 1."""
    runs = edges[0] = 0
    for r in range(1, values.size + 1):
        if r == values.size or values[r] != values[r - 1] + step:
            runs += 1
            edges[runs] = r
    return runs


@inner
def _score_tiles(start, stop, low, keys, rows, head, layout, scratch, sums, results):
    """First round: scores, what is measured of them alone, weights, and the sums that each row needs."""
    n, d, edge, width = stop - start, head.queries.shape[1], layout.edge, layout.width
    cells, first, last = scratch.cells, scratch.first[:n], scratch.stop[:n]
    top, bottom, where = results.top[start:stop], results.bottom[start:stop], results.where[start:stop]
    groups = -(-n // ROWS)
    pack_queries(head.queries, start, n, scratch.packed)
    if head.precise.size:
        pack_queries(head.precise, start, n, scratch.precise)
    for group in range(groups):
        scratch.norm[group] = head.query_norm[start + group * ROWS : min(start + group * ROWS + ROWS, stop)].max()
    scratch.now[:], scratch.sums[:] = -np.inf, 0.0
    for at in range(0, keys, TILE):
        size = min(TILE, keys - at)
        _see(start, stop, low + at, rows, scratch)
        if at:
            loops.keep_end(cells, width, edge, n, TILE)
        scores(
            scratch.packed, scratch.precise, scratch.norm, head.keys, head.key_norm, d,
            scratch.group_first[:groups], scratch.group_stop[:groups],
            (low + at) // PANEL, -(-size // PANEL), cells, edge, width,
        )  # fmt: skip
        if head.softcap:
            loops.cap(cells, width, edge, n, size, head.softcap)
        if head.slope:
            loops.add_slopes(cells, width, edge, n, size, np.float32(head.slope), scratch.position)
        loops.extremes(cells, width, edge, size, first, last, low + at, top, bottom, where)
        if sums.seen.size:
            for i in range(_cut(scratch.position[:n], 1, scratch.step_edges)):
                begin, end = scratch.step_edges[i], scratch.step_edges[i + 1]
                high = TILE if at + size < keys else size + end - begin - 1
                shift = layout.last + low + at - rows.position[start + end - 1]
                loops.distance_moments(
                    cells, begin * width + edge, width, first[begin:end], last[begin:end], high, shift, sums
                )  # fmt: skip
        if sums.bins.size:
            offset = sums.bins.shape[1] // 2
            loops.count_bins(cells, width, edge, size, first, last, layout.shift, offset, scratch.bin_of, sums.bins)
        if layout.weigh:
            loops.exponentials(
                cells, width, edge, size, first, last, top, scratch.position, scratch.weights,
                _weights_at(at // TILE, layout), layout.stride, layout.stride - TILE, scratch.reference[at // TILE],
                scratch.now, scratch.sums,
            )  # fmt: skip


@inner
def _finish_rows(start, stop, low, rows, head, layout, scratch, results):
    """From a row's sums to its statistics, and to the scale that makes its weights a pattern."""
    for r in range(stop - start):
        total, mean = scratch.sums[r, 0], scratch.sums[r, 1] / scratch.sums[r, 0]
        peak = np.float64(scratch.now[r])
        reference = max(peak, head.sink)
        lse = reference + math.log(total * math.exp(peak - reference) + math.exp(head.sink - reference))
        scale = math.exp(peak - lse)
        scratch.scale[r] = scale
        position, first, last = rows.position[start + r] - low, rows.first[start + r] - low, rows.stop[start + r] - low
        near, far = max(first, position - layout.local + 1), min(last, position + layout.local)
        out = results.out[start + r]
        out[0] = lse
        out[1] = (lse - peak - mean * math.log(2)) * total * scale
        out[2] = max(scratch.sums[r, 2] / total - mean * mean, 0.0) * math.log(2) ** 2
        out[3] = scratch.sums[r, 3] * scale
        out[4] = _mass(r, near, far, layout, scratch) * scale
        out[5] = scale
        out[6] = _mass(r, first, min(1 - low, last), layout, scratch) * scale
        out[7] = _mass(r, first, min(_FIRST_KEYS - low, last), layout, scratch) * scale


@inner
def _mass(r, begin, end, layout, scratch):
    """Weight of keys begin … end − 1 of a row, relative to its last reference."""
    mass = 0.0
    while begin < end:
        tile = begin // TILE
        stop = min(end, (tile + 1) * TILE)
        at = _weights_at(tile, layout) + r * layout.stride + begin - tile * TILE
        scale = math.exp(np.float64(scratch.reference[tile, r]) - np.float64(scratch.now[r]))
        mass += spreading.sum_run(scratch.weights, at, stop - begin) * scale
        begin = stop
    return mass


@inner
def _weights_at(tile, layout):
    """Where the weights of a tile's first row start; every row follows on zeros."""
    return layout.edge + LANES + tile * layout.height * layout.stride


@inner
def _spread_tiles(start, stop, low, keys, rows, column, head, layout, scratch, sums):
    """Second round: the pattern, and what it adds to keys, map and distances."""
    n = stop - start
    map_runs = 1
    scratch.map_edges[0], scratch.map_edges[1] = 0, n
    if sums.map_sum.size:
        map_runs = _cut(rows.label[start:stop], 0, scratch.map_edges)
    for at in range(0, keys, TILE):
        size = min(TILE, keys - at)
        for r in range(n):
            scale = math.exp(np.float64(scratch.reference[at // TILE, r]) - np.float64(scratch.now[r]))
            scratch.factor[r] = scratch.scale[r] * scale
        _spread_tile(start, stop, low, at, size, map_runs, rows, head, layout, scratch, sums)
        for i in range(map_runs):
            tile = scratch.key_sums[i], scratch.key_tops[i], size
            if sums.received.size:
                spreading.merge_keys(*tile, low + at, sums.received, sums.received_max)
            if sums.map_sum.size:
                label = rows.label[start + scratch.map_edges[i]]
                spreading.merge_map(*tile, column[low + at :], sums.map_sum[label], sums.map_max[label])


@inner
def _spread_tile(start, stop, low, at, size, map_runs, rows, head, layout, scratch, sums):
    """One tile, sixteen columns at a time, keys beside distances: both read them while they are in the L1 cache."""
    n, weights, tile, stride = stop - start, scratch.weights, _weights_at(at // TILE, layout), layout.stride
    keys, steps, reach = size if sums.received.size or sums.map_sum.size else 0, 0, 0
    if sums.attention.size:
        _see(start, stop, low + at, rows, scratch)
        steps = _cut(scratch.position[:n], 1, scratch.step_edges)
        for i in range(steps):
            begin, end = scratch.step_edges[i], scratch.step_edges[i + 1]
            left, right, _, _ = loops.visible_columns(scratch.first[begin:end], scratch.stop[begin:end])
            scratch.begin[i], scratch.end[i] = left - LANES, min(right, size + end - begin - 1)
            reach = max(reach, scratch.end[i])
    for c in range(0, max(keys, reach), LANES):
        if c < keys:
            for i in range(map_runs):
                spreading.add_keys(
                    weights, tile + c, stride, scratch.map_edges[i], scratch.map_edges[i + 1], scratch.factor,
                    scratch.key_sums[i], scratch.key_tops[i], c,
                )  # fmt: skip
        for i in range(steps):
            if scratch.begin[i] < c < scratch.end[i]:
                begin, end = scratch.step_edges[i], scratch.step_edges[i + 1]
                key = c - (end - begin - 1)
                spreading.add_distances(
                    weights, tile + begin * stride + key, stride, begin, end, scratch.factor, sums.attention,
                    c + layout.last + low + at - rows.position[start + end - 1],
                    head.value, layout.edge + low + at + key, sums.attention_value,
                )  # fmt: skip
