"""The loops of the fused pass that spread a tile's pattern over keys, distances and map bins, once its rows are known.

Weights lie row by row, `stride` apart; ``pattern = factor · weight``.
"""

# pyright: reportCallIssue=false

import numpy as np

from interp.measure.fused.compiled import entry, inner
from interp.measure.fused.simd import (
    LANES,
    hmax,
    hsum,
    vadd,
    vfill,
    vfma,
    vload,
    vmax,
    vmul,
    vpick,
    vstore,
    wadd,
    widen,
    wload,
    wstore,
)

_ZERO = np.float32(0)


@inner
def add_keys(weights, at, stride, start, stop, factor, key_sums, key_tops, i):
    """Sum and largest of the pattern, factor · weight, over rows start … stop − 1 of sixteen keys; key 0 is at `at`."""
    total = total2 = largest = largest2 = vfill(_ZERO)
    for r in range(start, stop - 1, 2):
        p = vmul(vload(weights, at + r * stride), vfill(factor[r]))
        p2 = vmul(vload(weights, at + (r + 1) * stride), vfill(factor[r + 1]))
        total, total2, largest, largest2 = vadd(total, p), vadd(total2, p2), vmax(p, largest), vmax(p2, largest2)
    if (stop - start) % 2:
        p = vmul(vload(weights, at + (stop - 1) * stride), vfill(factor[stop - 1]))
        total, largest = vadd(total, p), vmax(p, largest)
    vstore(key_sums, i, vadd(total, total2))
    vstore(key_tops, i, vmax(largest, largest2))


@inner
def add_distances(weights, at, stride, start, stop, factor, attention, t, value, norm, attention_value):
    """Add the pattern of sixteen sheared columns to the distances from t on, and what it moves, value · pattern.

    ``weights[at]`` and ``value[norm]`` belong to the column's key of row `start`.
    """
    total = total2 = vfill(_ZERO)
    step = stride + 1
    for r in range(start, stop - 1, 2):
        here = at + (r - start) * step
        total = vfma(vload(weights, here), vfill(factor[r]), total)
        total2 = vfma(vload(weights, here + step), vfill(factor[r + 1]), total2)
    if (stop - start) % 2:
        total = vfma(vload(weights, at + (stop - 1 - start) * step), vfill(factor[stop - 1]), total)
    wstore(attention, t, wadd(wload(attention, t), widen(vadd(total, total2))))
    if attention_value.size:
        moved = vfill(_ZERO)
        for i in range(stop - start):
            p = vmul(vload(weights, at + i * step), vfill(factor[start + i]))
            moved = vfma(p, vload(value, norm + i), moved)
        wstore(attention_value, t, wadd(wload(attention_value, t), widen(moved)))


@inner
def merge_keys(key_sums, key_tops, keys, start, received, received_max):
    """Add a tile's keys to the totals, of which `start` is the tile's first."""
    for c in range(0, keys, LANES):
        wstore(received, start + c, wadd(wload(received, start + c), widen(vload(key_sums, c))))
        vstore(received_max, start + c, vmax(vload(received_max, start + c), vload(key_tops, c)))


@inner
def merge_map(key_sums, key_tops, keys, column, map_sum, map_max):
    """Add a tile's keys to one row of the pooled map; column[c] is where key c belongs, ascending."""
    c = 0
    while c < keys:
        here, start = column[c], c
        while c < keys and column[c] == here:
            c += 1
        total = largest = vfill(_ZERO)
        for i in range(start, c, LANES):
            total = vadd(total, vpick(vload(key_sums, i), vfill(_ZERO), 0, c - i))
            largest = vmax(largest, vpick(vload(key_tops, i), vfill(_ZERO), 0, c - i))
        map_sum[here] += hsum(total)
        map_max[here] = max(map_max[here], np.float64(hmax(largest)))


@entry
def count_cells(first, stop, column_edges, cells):
    """Visible cells of a run of rows in each map column."""
    for r in range(first.size):
        for c in range(cells.size):
            cells[c] += max(min(stop[r], column_edges[c + 1]) - max(first[r], column_edges[c]), 0)


@inner
def sum_run(x, at, n):
    """Sum of n numbers from x[at] on."""
    total = vfill(_ZERO)
    for i in range(0, n, LANES):
        total = vadd(total, vpick(vload(x, at + i), vfill(_ZERO), 0, n - i))
    return np.float64(hsum(total))
