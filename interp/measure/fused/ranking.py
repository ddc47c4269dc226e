"""What one thread does to count keys: whole rows of scores, then how many of the largest hold a share of the row.

No row is sorted. Keys so small that together they hold less than the largest level leaves are put aside, the others
counted and added up in bins of equal width, and only the bin in which a level is reached is looked into, in finer bins
until a few keys are left.
"""

# pyright: reportCallIssue=false

import math
from typing import NamedTuple

import numpy as np

from interp.measure.fused.compiled import entry, inner
from interp.measure.fused.dot_products import PANEL, ROWS, pack_queries, scores
from interp.measure.fused.simd import (
    LANES,
    hmax,
    hmin,
    store_from,
    vadd,
    vexp2,
    vfill,
    vless,
    vload,
    vmax,
    vmin,
    vmore,
    vmul,
    vpick,
    vstore,
    vsub,
    wadd,
    wfill,
    wfma,
    widen,
    wstore,
)

BINS, FINE = 512, 64
COARSE = -2  # where a row's scores are too large for float32: it is counted elsewhere
NEVER = -1  # where the keys do not hold so much: a learned sink has the rest
_LARGEST = 256.0  # |score| of a row's top from which float32's own steps could move 10⁻⁶ of its mass
_SHARP = math.log(64)  # keys that hold more than 1/64 get their score anew, in float64
_FEW = 32
_LOWEST = -80.0  # e⁻⁸⁰ of the largest is nothing, for any number of keys
_LOG2E = np.float32(math.log2(math.e))
_ZERO, _ONE, _HUGE, _NOTHING = np.float32(0), np.float32(1), np.float32(np.inf), np.float32(-1e30)


class Ranked(NamedTuple):
    """One query head: queries scaled and as they are, [row d_head], keys packed and as they are, and their norms."""

    queries: np.ndarray
    precise: np.ndarray
    query_norm: np.ndarray
    packed: np.ndarray
    key_norm: np.ndarray
    plain_queries: np.ndarray
    plain_keys: np.ndarray
    scale: float
    sink: float


class Desk(NamedTuple):
    """A thread's buffers for one block of rows."""

    packed: np.ndarray
    precise: np.ndarray
    norm: np.ndarray
    group_first: np.ndarray
    group_stop: np.ndarray
    cells: np.ndarray
    kept: np.ndarray
    bin_of: np.ndarray
    inside: np.ndarray
    counts: np.ndarray
    masses: np.ndarray
    fine_counts: np.ndarray
    fine_masses: np.ndarray
    lanes: np.ndarray
    wide: np.ndarray


@entry
def count_blocks(begin, end, step, height, width, first, stop, head, levels, gaps, desk, needed, within):
    """Count the keys of blocks begin, begin + step, … before end: rows of `needed` by level, of `within` by gap."""
    d = head.queries.shape[1]
    precise = desk.precise if head.precise.size else desk.precise[:0]
    for block in range(begin, end, step):
        start = block * height
        rows = min(height, first.size - start)
        low = first[start : start + rows].min() // PANEL * PANEL
        keys, groups = stop[start : start + rows].max() - low, -(-rows // ROWS)
        pack_queries(head.queries, start, rows, desk.packed)
        if head.precise.size:
            pack_queries(head.precise, start, rows, precise)
        for group in range(groups):
            here, there = start + group * ROWS, start + min(group * ROWS + ROWS, rows)
            desk.norm[group] = head.query_norm[here:there].max()
            desk.group_first[group] = first[here:there].min() - low
            desk.group_stop[group] = stop[here:there].max() - low
        scores(
            desk.packed, precise, desk.norm, head.packed, head.key_norm, d, desk.group_first[:groups],
            desk.group_stop[:groups], low // PANEL, -(-keys // PANEL), desk.cells, 0, width,
        )  # fmt: skip
        for r in range(rows):
            row = start + r
            _count_row(row, r * width - low, first[row], stop[row], head, levels, gaps, desk, needed, within)


@inner
def _count_row(row, at, first, stop, head, levels, gaps, desk, needed, within):
    """One row: key j of it lies at cells[at + j]."""
    cells, n = desk.cells, stop - first
    top = _largest(cells, at + first, n)
    if abs(top) > _LARGEST:
        needed[row, :] = within[row, :] = COARSE
        return
    total = _from_top(cells, at + first, n, top)
    total = _sharpen(row, at, first, n, top, total, head, desk)
    peak = _largest(cells, at + first, n) if gaps.size else _ZERO
    for g in range(gaps.size):
        within[row, g] = _at_least(cells, at + first, n, np.float32(peak - gaps[g]))
    whole = total + math.exp(min(head.sink - top, 700.0))
    reached = 0
    while reached < levels.size and levels[reached] * whole <= total:
        reached += 1
    needed[row, reached:] = NEVER
    if reached:
        # Keys below the cut hold together no more than the largest level leaves over.
        spare = (total - levels[reached - 1] * whole) / n
        cut = max(math.log(spare) - 1e-3 if spare > 0 else _LOWEST, _LOWEST)
        size = 0
        for c in range(0, n, LANES):
            size += store_from(desk.kept, size, vload(cells, at + first + c), vfill(np.float32(cut)))
        _rank(row, size, levels[:reached] * whole, desk, needed)


@inner
def _largest(cells, at, n):
    """The largest of a row."""
    largest = vfill(-_HUGE)
    whole = n // LANES * LANES
    for c in range(0, whole, LANES):
        largest = vmax(vload(cells, at + c), largest)
    return hmax(vmax(vpick(vload(cells, at + whole), vfill(-_HUGE), 0, n - whole), largest))


@inner
def _smallest(cells, n):
    """The smallest of the first n."""
    smallest = vfill(_HUGE)
    whole = n // LANES * LANES
    for c in range(0, whole, LANES):
        smallest = vmin(vload(cells, c), smallest)
    return hmin(vmin(vpick(vload(cells, whole), vfill(_HUGE), 0, n - whole), smallest))


@inner
def _from_top(cells, at, n, top):
    """A row becomes s − top, with nothing in the lanes behind it; gives Σ exp(s − top)."""
    total, whole, peak = wfill(0.0), n // LANES * LANES, vfill(np.float32(top))
    for c in range(0, whole, LANES):
        y = vsub(vload(cells, at + c), peak)
        vstore(cells, at + c, y)
        total = wadd(total, widen(vexp2(vmul(y, vfill(_LOG2E)))))
    last = vpick(vsub(vload(cells, at + whole), peak), vfill(_NOTHING), 0, n - whole)
    vstore(cells, at + whole, last)
    last = vpick(vexp2(vmul(last, vfill(_LOG2E))), vfill(_ZERO), 0, n - whole)
    return _sum(wadd(total, widen(last)))


@inner
def _sum(x):
    """Sum of sixteen float64."""
    lanes = np.empty(LANES, np.float64)
    wstore(lanes, 0, x)
    total = 0.0
    for i in range(LANES):
        total += lanes[i]
    return total


@inner
def _sharpen(row, at, first, n, top, total, head, desk):
    """Give the keys that hold much of a row their score anew, in float64; gives the sum that is then right.

    There are at most 64 of them. What float32 did to the scores of the others averages out: of their share of the
    row, which is Σ p over many small p, no more than about 1/8 of one score's error is left.
    """
    cells = desk.cells
    cut = np.float32(math.log(total) - _SHARP)
    for c in range(0, n, LANES):
        bits = vmore(vload(cells, at + first + c), vfill(cut))
        lane = 0
        while bits:
            if bits & 1:
                key = first + c + lane
                before = np.float64(cells[at + key])
                after = np.float32(_product(row, key, head, desk) - np.float64(top))
                cells[at + key] = after
                total += math.exp(np.float64(after)) - math.exp(before)
            bits >>= 1
            lane += 1
    return total


@inner
def _product(row, key, head, desk):
    """One score in float64."""
    d = head.plain_keys.shape[1]
    whole, q, k = d // LANES * LANES, row * d, key * d
    total = wfill(0.0)
    for i in range(0, whole, LANES):
        total = wfma(widen(vload(head.plain_queries, q + i)), widen(vload(head.plain_keys, k + i)), total)
    wstore(desk.wide, 0, total)
    product = 0.0
    for i in range(LANES):
        product += desk.wide[i]
    for i in range(whole, d):
        product += np.float64(head.plain_queries[row, i]) * np.float64(head.plain_keys[key, i])
    return product * head.scale


@inner
def _at_least(cells, at, n, lowest):
    """How many of a row are at least so large."""
    total = vfill(_ZERO)
    for c in range(0, n, LANES):
        total = vadd(total, vless(vload(cells, at + c), vfill(lowest), vfill(_ZERO), vfill(_ONE)))
    count = 0
    parts = np.empty(LANES, np.float32)
    vstore(parts, 0, total)
    for i in range(LANES):
        count += np.int64(parts[i])
    return count


@inner
def _rank(row, size, targets, desk, needed):
    """Of the first `size` of desk.kept, how many of the largest hold each target, ascending."""
    kept = desk.kept
    high, low = np.float64(_largest(kept, 0, size)), np.float64(_smallest(kept, size))
    scale = BINS / (high - low) if high > low else 0.0
    desk.counts[:], desk.masses[:] = 0, 0.0
    _bin(kept, size, high, scale, BINS, desk.bin_of, desk.counts, desk.masses, desk.lanes)
    seen, mass, b = 0, 0.0, 0
    for level in range(targets.size):
        while b < BINS and mass + desk.masses[b] < targets[level]:
            seen += desk.counts[b]
            mass += desk.masses[b]
            b += 1
        needed[row, level] = seen
        if b < BINS:
            inside = 0
            for i in range(size):
                if desk.bin_of[i] == b:
                    desk.inside[inside] = kept[i]
                    inside += 1
            needed[row, level] += _inside(inside, targets[level] - mass, desk)


@inner
def _bin(values, size, high, scale, bins, bin_of, counts, masses, lanes):
    """Count values, and add up their exp, in bins of equal width downwards from `high`."""
    for c in range(0, size, LANES):
        vstore(lanes, 0, vexp2(vmul(vload(values, c), vfill(_LOG2E))))
        for i in range(min(LANES, size - c)):
            b = min(np.int64((high - np.float64(values[c + i])) * scale), bins - 1)
            bin_of[c + i] = b
            counts[b] += 1
            masses[b] += np.float64(lanes[i])


@inner
def _inside(size, target, desk):
    """How many of the largest of desk.inside hold a target that all of them hold."""
    values, seen = desk.inside, 0
    while True:
        high, low = np.float64(_largest(values, 0, size)), np.float64(_smallest(values, size))
        if high == low:
            vstore(desk.lanes, 0, vexp2(vmul(vfill(np.float32(high)), vfill(_LOG2E))))
            return seen + min(max(np.int64(math.ceil(target / desk.lanes[0])), 1), size)
        if size <= _FEW:
            break
        desk.fine_counts[:], desk.fine_masses[:] = 0, 0.0
        # The places of the first bins are still wanted for the levels that follow: those here lie behind them.
        bin_of = desk.bin_of[desk.kept.size :]
        _bin(values, size, high, FINE / (high - low), FINE, bin_of, desk.fine_counts, desk.fine_masses, desk.lanes)
        b = 0
        while b < FINE - 1 and desk.fine_masses[b] < target:
            seen += desk.fine_counts[b]
            target -= desk.fine_masses[b]
            b += 1
        inside = 0
        for i in range(size):
            if bin_of[i] == b:
                values[inside] = values[i]
                inside += 1
        if inside == 0:
            return seen
        size = inside
    for i in range(1, size):
        x, j = values[i], i
        while j and values[j - 1] < x:
            values[j] = values[j - 1]
            j -= 1
        values[j] = x
    for c in range(0, size, LANES):
        vstore(desk.lanes, 0, vexp2(vmul(vload(values, c), vfill(_LOG2E))))
        for i in range(min(LANES, size - c)):
            seen += 1
            target -= np.float64(desk.lanes[i])
            if target <= 0:
                return seen
    return seen
