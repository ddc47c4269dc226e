"""The loops of the fused pass over one tile: a block of rows × TILE keys, whose scores stay in the cache.

A tile lies in flat float32 cells: key c of row r at ``r · width + edge + c``, with room for `edge` keys on both sides.
What the last tile held at its end is kept to the left of key 0. Row r sees the keys ``first[r] ≤ c < stop[r]``, counted
from the tile's first, so that either may lie outside the tile. Stepping a row and a key at once (``width + 1``) keeps
the distance: column u of the sheared tile holds key ``u + r − (rows − 1)`` of row r.
"""

# pyright: reportCallIssue=false

import math

import numpy as np
from numba import njit

from interp.measure.fused.compiled import inner
from interp.measure.fused.simd import (
    LANES,
    hmax,
    hmin,
    hsum,
    store_bits,
    vadd,
    vequal,
    vexp2,
    vfill,
    vfma,
    vlanes,
    vload,
    vmax,
    vmin,
    vmul,
    vpick,
    vstore,
    vsub,
    vtanh,
    wadd,
    wdiv,
    wfill,
    wfma,
    widen,
    wload,
    wmax,
    wmul,
    wstore,
    wsub,
)

_LOG2E = np.float32(math.log2(math.e))
_ZERO, _ONE = np.float32(0), np.float32(1)
_HUGE = np.float32(np.inf)
_PAIR = 2 * LANES
_TOTAL, _FIRST, _SECOND, _FAR = range(4)


@inner
def keep_end(cells, width, edge, rows, tile):
    """Move the last `edge` keys of a whole tile to the left of its first."""
    for r in range(rows):
        at = r * width
        for c in range(0, edge, LANES):
            vstore(cells, at + c, vload(cells, at + tile + c))


@inner
def cap(cells, width, edge, rows, keys, softcap):
    """Soft-cap: ``softcap · tanh(s / softcap)``."""
    for r in range(rows):
        at = r * width + edge
        for c in range(0, keys, LANES):
            x = vtanh(vmul(vload(cells, at + c), vfill(np.float32(1 / softcap))))
            vstore(cells, at + c, vmul(x, vfill(np.float32(softcap))))


@inner
def add_slopes(cells, width, edge, rows, keys, slope, position):
    """Subtract slope · |distance|; position[r] is row r's distance from the tile's first key."""
    for r in range(rows):
        at = r * width + edge
        for c in range(0, keys, LANES):
            far = vsub(vfill(np.float32(position[r] - c)), vlanes())
            far = vmax(far, vsub(vfill(_ZERO), far))
            vstore(cells, at + c, vsub(vload(cells, at + c), vmul(vfill(slope), far)))


@inner
def extremes(cells, width, edge, keys, first, stop, low, top, bottom, where):
    """Take a tile into each row's largest score, its place (counted from `low` keys before), and the smallest score."""
    for r in range(first.size):
        start, end = max(first[r], 0), min(stop[r], keys)
        if start >= end:
            continue
        at = r * width + edge
        largest, smallest = vfill(-_HUGE), vfill(_HUGE)
        largest2, smallest2 = largest, smallest
        c = start
        while c + _PAIR <= end:
            x, y = vload(cells, at + c), vload(cells, at + c + LANES)
            largest, smallest = vmax(x, largest), vmin(x, smallest)
            largest2, smallest2 = vmax(y, largest2), vmin(y, smallest2)
            c += _PAIR
        while c < end:
            x = vload(cells, at + c)
            largest = vmax(largest, vpick(x, vfill(-_HUGE), 0, end - c))
            smallest = vmin(smallest, vpick(x, vfill(_HUGE), 0, end - c))
            c += LANES
        bottom[r] = min(bottom[r], hmin(vmin(smallest, smallest2)))
        peak = hmax(vmax(largest, largest2))
        if peak > top[r]:
            top[r] = peak
            c = start
            while vequal(vload(cells, at + c), vfill(peak)) == 0:
                c += LANES
            while cells[at + c] != peak:
                c += 1
            where[r] = low + c


@inner
def count_bins(cells, width, edge, keys, first, stop, shift, offset, index, counts):
    """Histogram of the visible scores by their leading bits, in eight copies so that equal bins do not wait."""
    for r in range(first.size):
        start, end = max(first[r], 0), min(stop[r], keys)
        at, n = r * width + edge + start, max(end - start, 0)
        for i in range(0, n, LANES):
            store_bits(index, i, vload(cells, at + i), shift, offset)
        whole = n - n % 8
        for i in range(0, whole, 8):
            counts[0, index[i]] += 1
            counts[1, index[i + 1]] += 1
            counts[2, index[i + 2]] += 1
            counts[3, index[i + 3]] += 1
            counts[4, index[i + 4]] += 1
            counts[5, index[i + 5]] += 1
            counts[6, index[i + 6]] += 1
            counts[7, index[i + 7]] += 1
        for i in range(whole, n):
            counts[0, index[i]] += 1


@njit(inline="always")
def _merge(size, reference, total, square, smallest, largest, t, sums):
    """Merge sixteen distances' sums over `size` scores, squares relative to `reference`, into the totals from t on.

    ``δ = mean_b − mean_a``; ``mean = mean_a + δ n_b/n``; ``M2 = M2_a + M2_b + δ² n_a n_b / n``.

    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm", 1979, eq. 2.1.
    """
    mean_here = wmul(total, wfill(1.0 / size))
    off = wsub(mean_here, widen(reference))
    m2 = wmax(wsub(widen(square), wmul(wmul(off, off), wfill(size))), wfill(0.0))
    before, mean = wload(sums.seen, t), wload(sums.mean, t)
    after = wadd(before, wfill(size))
    share = wdiv(wfill(size), after)
    delta = wsub(mean_here, mean)
    m2 = wfma(wmul(delta, delta), wmul(before, share), m2)
    wstore(sums.seen, t, after)
    wstore(sums.mean, t, wfma(delta, share, mean))
    wstore(sums.m2, t, wadd(wload(sums.m2, t), m2))
    vstore(sums.smallest, t, vmin(smallest, vload(sums.smallest, t)))
    vstore(sums.largest, t, vmax(largest, vload(sums.largest, t)))


@inner
def visible_columns(first, stop):
    """Sheared columns (first, stop) in which some row sees its key, and those (first, stop) in which every row does."""
    rows = first.size
    begin, end, left, right = first[0], stop[0], first[0], stop[0]
    for r in range(1, rows):
        a, b = first[r] - r, stop[r] - r
        begin, end, left, right = min(begin, a), max(end, b), max(left, a), min(right, b)
    return begin + rows - 1, end + rows - 1, left + rows - 1, right + rows - 1


@inner
def distance_moments(cells, at, width, first, stop, high, shift, sums):
    """Merge a tile's scores into count, mean, centred second moment and extremes of each distance.

    Within a tile scores are squared relative to one of them, so that squares lose nothing; their sum is float64, since
    scores of both signs may leave little of it. ``cells[at]`` is key 0 of row 0. Columns 0 … high − 1 of the sheared
    tile go to column u + shift of the totals.
    """
    rows = first.size
    begin, end, left, right = visible_columns(first, stop)
    begin, end = max(begin, 0) // LANES * LANES, min(end, high)
    u = begin
    while u < end:
        here = at + u - (rows - 1)
        if u >= left and u + _PAIR <= min(right, end):
            reference, reference2 = vload(cells, here), vload(cells, here + LANES)
            total, total2 = wfill(0.0), wfill(0.0)
            square = square2 = vfill(_ZERO)
            smallest, largest, smallest2, largest2 = reference, reference, reference2, reference2
            for r in range(rows):
                x, y = vload(cells, here + r * (width + 1)), vload(cells, here + r * (width + 1) + LANES)
                smallest, largest = vmin(x, smallest), vmax(x, largest)
                smallest2, largest2 = vmin(y, smallest2), vmax(y, largest2)
                total, total2 = wadd(total, widen(x)), wadd(total2, widen(y))
                x, y = vsub(x, reference), vsub(y, reference2)
                square, square2 = vfma(x, x, square), vfma(y, y, square2)
            _merge(float(rows), reference, total, square, smallest, largest, u + shift, sums)
            _merge(float(rows), reference2, total2, square2, smallest2, largest2, u + LANES + shift, sums)
            u += _PAIR
        else:
            _masked_moments(cells, here, width, first, stop, u - (rows - 1), u + shift, sums)
            u += LANES


@inner
def _masked_moments(cells, here, width, first, stop, key, t, sums):
    """Sixteen columns of `distance_moments` in which some rows are hidden; they start with key `key` of row 0."""
    rows = first.size
    count = reference = square = vfill(_ZERO)
    total = wfill(0.0)
    smallest, largest = vfill(_HUGE), vfill(-_HUGE)
    for r in range(rows):
        begin, end = max(first[r] - r - key, 0), min(stop[r] - r - key, LANES)
        if begin < end:  # the last row wins: every lane's reference is a score that the lane holds
            reference = vpick(vload(cells, here + r * (width + 1)), reference, begin, end)
    for r in range(rows):
        begin, end = max(first[r] - r - key, 0), min(stop[r] - r - key, LANES)
        if begin < end:
            x = vpick(vload(cells, here + r * (width + 1)), reference, begin, end)
            count = vadd(count, vpick(vfill(_ONE), vfill(_ZERO), begin, end))
            smallest = vmin(smallest, vpick(x, vfill(_HUGE), begin, end))
            largest = vmax(largest, vpick(x, vfill(-_HUGE), begin, end))
            total = wadd(total, widen(vpick(x, vfill(_ZERO), begin, end)))
            x = vsub(x, reference)
            square = vfma(x, x, square)
    parts, totals = np.empty(3 * LANES, np.float32), np.empty(LANES, np.float64)
    for i, x in enumerate((count, reference, square)):
        vstore(parts, i * LANES, x)
    wstore(totals, 0, total)
    for lane in range(LANES):
        size, i = np.float64(parts[lane]), t + lane
        if size > 0:
            off = totals[lane] / size - parts[LANES + lane]
            delta = totals[lane] / size - sums.mean[i]
            before = sums.seen[i]
            sums.seen[i] = before + size
            sums.mean[i] += delta * size / (before + size)
            sums.m2[i] += max(parts[2 * LANES + lane] - size * off * off, 0.0)
            sums.m2[i] += delta * delta * before * size / (before + size)
    vstore(sums.smallest, t, vmin(smallest, vload(sums.smallest, t)))
    vstore(sums.largest, t, vmax(largest, vload(sums.largest, t)))


@inner
def exponentials(
    cells, width, edge, keys, first, stop, top, position, weights, at, stride, reach, reference, now, sums
):
    """A tile's weights ``w = 2^y``, ``y = (s − c) log2 e``, zero where hidden, and each row's sums over them.

    c is the row's largest score so far: `now` before the tile, kept in `reference` for it. ``sums[r]`` are Σ w, Σ w y,
    Σ w y² and Σ w Δ relative to `now`. `reach` keys after the tile are zero too, for whoever reads it sheared.
    """
    for r in range(first.size):
        row, cell = at + r * stride, r * width + edge
        c, end = max(first[r], 0), min(stop[r], keys)
        if c >= end:
            weights[row : row + keys + reach] = _ZERO
            reference[r] = now[r]
            continue
        weights[row : row + c] = _ZERO
        if top[r] != now[r]:
            _move_reference(sums[r], (np.float64(now[r]) - np.float64(top[r])) * np.float64(_LOG2E))
            now[r] = top[r]
        reference[r] = now[r]
        peak = vfill(now[r])
        total = first_moment = second_moment = far = vfill(_ZERO)
        distance = vsub(vfill(np.float32(position[r] - c)), vlanes())
        while c + LANES <= end:
            y = vmul(vsub(vload(cells, cell + c), peak), vfill(_LOG2E))
            w = vexp2(y)
            vstore(weights, row + c, w)
            weighted = vmul(w, y)
            total = vadd(total, w)
            far = vfma(w, distance, far)
            distance = vsub(distance, vfill(np.float32(LANES)))
            first_moment = vadd(first_moment, weighted)
            second_moment = vfma(weighted, y, second_moment)
            c += LANES
        if c < end:
            y = vmul(vsub(vload(cells, cell + c), peak), vfill(_LOG2E))
            y = vpick(y, vfill(_ZERO), 0, end - c)
            w = vpick(vexp2(y), vfill(_ZERO), 0, end - c)
            vstore(weights, row + c, w)
            weighted = vmul(w, y)
            total = vadd(total, w)
            far = vfma(w, distance, far)
            first_moment = vadd(first_moment, weighted)
            second_moment = vfma(weighted, y, second_moment)
            c += LANES
        weights[row + c : row + keys + reach] = _ZERO
        sums[r, _TOTAL] += hsum(total)
        sums[r, _FIRST] += hsum(first_moment)
        sums[r, _SECOND] += hsum(second_moment)
        sums[r, _FAR] += hsum(far)


@inner
def _move_reference(sums, by):
    """Every y grows by `by`, and with it every weight."""
    if sums[_TOTAL] == 0:
        return
    scale = 2.0**by
    sums[_SECOND] = scale * (sums[_SECOND] + by * (2 * sums[_FIRST] + by * sums[_TOTAL]))
    sums[_FIRST] = scale * (sums[_FIRST] + by * sums[_TOTAL])
    sums[_TOTAL] *= scale
    sums[_FAR] *= scale
