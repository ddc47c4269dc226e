"""The largest product of two features over all visible pairs, compiled: one look at the keys for each query."""

# pyright: reportCallIssue=false

import numpy as np

from interp.measure.fused.compiled import entry
from interp.measure.fused.simd import LANES, hmax, vfill, vfma, vload, vmax, vmul, vpick

_HUGE = np.float32(np.inf)


@entry
def largest_product(q, k, first, stop):
    """Largest ``q[r, 0] k[0, j] + q[r, 1] k[1, j]`` over rows r and keys first[r] ≤ j < stop[r].

    k holds both features flat, each with a whole vector of room behind it.
    """
    width = k.size // 2
    largest = vfill(-_HUGE)
    for r in range(first.size):
        a, b = vfill(q[r, 0]), vfill(q[r, 1])
        c, end = first[r], stop[r]
        while c + LANES <= end:
            largest = vmax(vfma(a, vload(k, c), vmul(b, vload(k, width + c))), largest)
            c += LANES
        if c < end:
            last = vfma(a, vload(k, c), vmul(b, vload(k, width + c)))
            largest = vmax(vpick(last, vfill(-_HUGE), 0, end - c), largest)
    return hmax(largest)
