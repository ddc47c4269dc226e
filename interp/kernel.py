"""The loops of the fused pass: what one thread does to a block of scores, a head's run of rows × the keys they see.

A block lies in one flat float32 buffer. Key c of row r is at ``r · width + pad + c``, and row r sees the keys
``first[r] ≤ c < stop[r]``. Stepping a row and a key at once (``width + 1``) keeps the distance: column u of the
sheared block holds key ``u + r − (rows − 1)`` of row r.
"""

# pyright: reportCallIssue=false

import math

import numpy as np
from numba import njit

from interp.simd import (
    LANES,
    hmax,
    hmin,
    hsum,
    store_bits,
    vadd,
    vequal,
    vexp,
    vfill,
    vfma,
    vload,
    vmax,
    vmin,
    vmul,
    vpick,
    vstore,
    vsub,
)

_ZERO = np.float32(0)
_HUGE = np.float32(np.inf)
_TOTAL, _FIRST, _SECOND, _FAR = range(4)


@njit(nogil=True, cache=True)
def add_slopes(block, width, pad, rows, low, high, slope, position):
    """Subtract slope · |distance| from keys low … high − 1; position[r] is row r's distance from key 0."""
    for r in range(rows):
        at = r * width + pad
        for c in range(low, high):
            block[at + c] -= slope * np.float32(abs(position[r] - c))


@njit(nogil=True, cache=True)
def extremes(block, width, pad, rows, low, high, first, stop, top, bottom, where):
    """Take the keys low … high − 1 into each row's largest score, its place, and the smallest score."""
    for r in range(rows):
        start, end = max(first[r], low), min(stop[r], high)
        if start >= end:
            continue
        at = r * width + pad
        largest, smallest = vfill(-_HUGE), vfill(_HUGE)
        largest2, smallest2 = largest, smallest
        c = start
        while c + 2 * LANES <= end:
            x, y = vload(block, at + c), vload(block, at + c + LANES)
            largest, smallest = vmax(largest, x), vmin(smallest, x)
            largest2, smallest2 = vmax(largest2, y), vmin(smallest2, y)
            c += 2 * LANES
        while c < end:
            x = vload(block, at + c)
            largest = vmax(largest, vpick(x, vfill(-_HUGE), 0, end - c))
            smallest = vmin(smallest, vpick(x, vfill(_HUGE), 0, end - c))
            c += LANES
        bottom[r] = min(bottom[r], hmin(vmin(smallest, smallest2)))
        peak = hmax(vmax(largest, largest2))
        if peak > top[r]:
            top[r] = peak
            c = start
            while vequal(vload(block, at + c), vfill(peak)) == 0:
                c += LANES
            while block[at + c] != peak:
                c += 1
            where[r] = c


@njit(nogil=True, cache=True)
def count_bins(block, width, pad, rows, first, stop, shift, offset, index, counts):
    """Histogram of the visible scores by their leading bits, in four copies so that equal bins do not wait."""
    for r in range(rows):
        at = r * width + pad
        for low in range(first[r], stop[r], index.size):
            n = min(index.size, stop[r] - low)
            for i in range(0, n, LANES):
                store_bits(index, i, vload(block, at + low + i), shift, offset)
            whole = n - n % 4
            for i in range(0, whole, 4):
                counts[0, index[i]] += 1
                counts[1, index[i + 1]] += 1
                counts[2, index[i + 2]] += 1
                counts[3, index[i + 3]] += 1
            for i in range(whole, n):
                counts[0, index[i]] += 1


@njit(nogil=True, cache=True)
def distance_moments(block, width, pad, rows, first, stop, low, high, totals, shift):
    """Merge the block's scores into count, mean, centred second moment and extremes of each distance.

    Within the block scores are taken relative to one of them, so that squares lose nothing; sums of blocks are merged
    as Chan, Golub and LeVeque do. Columns low … high − 1 of the sheared block go to column u + shift of `totals`.
    """
    left, right = first[0], stop[0]
    for r in range(rows):
        left, right = max(left, first[r] - r), min(right, stop[r] - r)
    left, right = left + rows - 1, right + rows - 1
    for u in range(low, high, LANES):
        at = pad + u - (rows - 1)
        n = min(LANES, high - u)
        reference = total = square = vfill(_ZERO)
        smallest, largest = vfill(_HUGE), vfill(-_HUGE)
        if u >= left and u + LANES <= right:
            count = vfill(np.float32(rows))
            reference = vload(block, at)
            for r in range(rows):
                x = vload(block, at + r * (width + 1))
                smallest, largest = vmin(smallest, x), vmax(largest, x)
                x = vsub(x, reference)
                total, square = vadd(total, x), vfma(x, x, square)
        else:
            count = vfill(_ZERO)
            for r in range(rows):
                c = u + r - (rows - 1)
                begin, end = max(first[r] - c, 0), min(stop[r] - c, LANES)
                if begin < end:  # the last row wins: every lane's reference is a score that the lane holds
                    reference = vpick(vload(block, at + r * (width + 1)), reference, begin, end)
            for r in range(rows):
                c = u + r - (rows - 1)
                begin, end = max(first[r] - c, 0), min(stop[r] - c, LANES)
                if begin < end:
                    x = vpick(vload(block, at + r * (width + 1)), reference, begin, end)
                    count = vadd(count, vpick(vfill(np.float32(1)), vfill(_ZERO), begin, end))
                    smallest = vmin(smallest, vpick(x, vfill(_HUGE), begin, end))
                    largest = vmax(largest, vpick(x, vfill(-_HUGE), begin, end))
                    x = vsub(x, reference)
                    total, square = vadd(total, x), vfma(x, x, square)
        sums = np.empty(6 * LANES, np.float32)
        for i, x in enumerate((count, reference, total, square, smallest, largest)):
            vstore(sums, i * LANES, x)
        for lane in range(n):
            size = np.float64(sums[lane])
            if size == 0:
                continue
            t = u + lane + shift
            if not 0 <= t < totals.shape[1]:
                continue
            off = sums[2 * LANES + lane] / size
            mean = sums[LANES + lane] + off
            m2 = max(sums[3 * LANES + lane] - size * off * off, 0.0)
            before = totals[0, t]
            delta = mean - totals[1, t]
            totals[0, t] = before + size
            totals[1, t] += delta * size / (before + size)
            totals[2, t] += m2 + delta * delta * before * size / (before + size)
            totals[3, t] = min(totals[3, t], np.float64(sums[4 * LANES + lane]))
            totals[4, t] = max(totals[4, t], np.float64(sums[5 * LANES + lane]))


@njit(nogil=True, cache=True)
def exponentials(block, width, pad, rows, keys, first, stop, top, position, steps, sums):
    """Turn each row's scores s into exp(s − top), zero where hidden, and sum what a row needs.

    ``sums[r]`` becomes Σ e, Σ e x, Σ e x² and Σ e Δ with x = s − top; steps is 0, −1, −2, … as float32.
    """
    for r in range(rows):
        row = r * width
        at = row + pad
        for c in range(at - rows, at + first[r]):
            block[c] = _ZERO
        peak, here = vfill(top[r]), position[r]
        total = first_moment = second_moment = distance = vfill(_ZERO)
        lane = vload(steps, 0)
        c, end = first[r], stop[r]
        while c + LANES <= end:
            x = vsub(vload(block, at + c), peak)
            e = vexp(x)
            vstore(block, at + c, e)
            weighted = vmul(e, x)
            total = vadd(total, e)
            first_moment = vadd(first_moment, weighted)
            second_moment = vfma(weighted, x, second_moment)
            distance = vfma(e, vadd(vfill(np.float32(here - c)), lane), distance)
            c += LANES
        if c < end:
            x = vpick(vsub(vload(block, at + c), peak), vfill(_ZERO), 0, end - c)
            e = vpick(vexp(x), vfill(_ZERO), 0, end - c)
            vstore(block, at + c, e)
            weighted = vmul(e, x)
            total = vadd(total, e)
            first_moment = vadd(first_moment, weighted)
            second_moment = vfma(weighted, x, second_moment)
            distance = vfma(e, vadd(vfill(np.float32(here - c)), lane), distance)
        sums[r, _TOTAL], sums[r, _FIRST] = hsum(total), hsum(first_moment)
        sums[r, _SECOND], sums[r, _FAR] = hsum(second_moment), hsum(distance)
        # Sheared columns and whole vectors reach this far beyond the last key.
        for c in range(at + stop[r], min(at + keys + rows + LANES, row + width)):
            block[c] = _ZERO


@njit(nogil=True, cache=True)
def finish_rows(block, width, pad, rows, skipped, first, stop, top, position, sink, local, sums, factor, out):
    """From a row's sums to its statistics, and to the factor that makes its exponentials a pattern.

    Columns of `out`: lse, entropy, varentropy, mean_distance, local_mass, max_prob, and the masses of the first key
    and the first four; `skipped` keys lie before the block.
    """
    for r in range(rows):
        at = r * width + pad
        peak = np.float64(top[r])
        reference = max(peak, sink)
        total = sums[r, _TOTAL] * math.exp(peak - reference) + math.exp(sink - reference)
        lse = reference + math.log(total)
        scale = math.exp(peak - lse)
        factor[r] = scale
        real = sums[r, _TOTAL] * scale
        mean = sums[r, _FIRST] / sums[r, _TOTAL]
        out[r, 0] = lse
        out[r, 1] = (lse - peak - mean) * real
        out[r, 2] = max(sums[r, _SECOND] / sums[r, _TOTAL] - mean * mean, 0.0)
        out[r, 3] = sums[r, _FAR] * scale
        near = 0.0
        for c in range(max(first[r], position[r] - local + 1), min(stop[r], position[r] + local)):
            near += block[at + c]
        out[r, 4] = near * scale
        out[r, 5] = scale
        one = 0.0
        for c in range(max(1 - skipped, 0)):
            one += block[at + c]
        four = 0.0
        for c in range(min(max(4 - skipped, 0), stop[r])):
            four += block[at + c]
        out[r, 6], out[r, 7] = one * scale, four * scale


@njit(nogil=True, cache=True)
def add_keys(block, width, pad, rows, keys, factor, sums, tops):
    """Σ and largest p of each key of the block: float32 over the rows."""
    for c in range(0, keys, LANES):
        total, largest = vfill(_ZERO), vfill(_ZERO)
        for r in range(rows):
            p = vmul(vload(block, r * width + pad + c), vfill(factor[r]))
            total, largest = vadd(total, p), vmax(largest, p)
        vstore(sums, c, total)
        vstore(tops, c, largest)


@njit(nogil=True, cache=True)
def merge_keys(sums, tops, keys, start, received, received_max):
    """Add a block's keys to the totals."""
    for c in range(keys):
        received[start + c] += sums[c]
        received_max[start + c] = max(received_max[start + c], tops[c])


@njit(nogil=True, cache=True)
def merge_map(sums, tops, keys, column, map_sum, map_max):
    """Add a block's keys to one row of the pooled map."""
    for c in range(keys):
        at = column[c]
        map_sum[at] += sums[c]
        map_max[at] = max(map_max[at], np.float64(tops[c]))


@njit(nogil=True, cache=True)
def add_distances(block, width, pad, rows, keys, factor, shift, attention, value, attention_value):
    """Add the pattern, and with `value` (padded as a row is) what it moves, to each distance."""
    weighted = attention_value.size > 0
    sums = np.empty(2 * LANES, np.float32)
    for u in range(0, keys + rows - 1, LANES):
        at = pad + u - (rows - 1)
        total = moved = vfill(_ZERO)
        for r in range(rows):
            p = vmul(vload(block, at + r * (width + 1)), vfill(factor[r]))
            total = vadd(total, p)
            if weighted:
                moved = vfma(p, vload(value, at + r), moved)
        vstore(sums, 0, total)
        vstore(sums, LANES, moved)
        for lane in range(min(LANES, keys + rows - 1 - u)):
            t = u + lane + shift  # may lie outside the totals where nothing is visible
            if 0 <= t < attention.size:
                attention[t] += sums[lane]
                if weighted:
                    attention_value[t] += sums[LANES + lane]


@njit(nogil=True, cache=True)
def count_cells(rows, first, stop, column_edges, cells):
    """Visible cells of a run of rows in each map column."""
    for r in range(rows):
        for c in range(cells.size):
            cells[c] += max(min(stop[r], column_edges[c + 1]) - max(first[r], column_edges[c]), 0)
