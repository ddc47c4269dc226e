"""Sums of q·k over all pairs at each distance, as cross-correlations: exact to float64 rounding, in O(n log n)."""

from collections.abc import Iterator

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from hooks.functional.float64 import to_float64

_FFT_BYTES = 64 * 2**20


def correlations(
    q: Float[Tensor, "head d_head pos"],
    k: Float[Tensor, "d_head pos"],
    features: Int[Tensor, "group feature"],
    low: int,
    high: int,
) -> Iterator[tuple[slice, int, Float[Tensor, "group lag"]]]:
    """Σ_{i−j=Δ} Σ_{c in group} q_ic k_jc for each group of features and every Δ from low to high.

    The sum over i − j = Δ is a correlation, and a Fourier transform turns it into a product. Rounding spreads over
    all Δ alike, in proportion to ‖q_c‖‖k_c‖ over the whole sequence, while few pairs are summed where Δ is large: in
    float32 the far distances would drown, in float64 they keep 8 digits at a million positions.

    Args:
        q: Queries of the heads that share a kv head, positions last: each feature is read as one run.
        k: The keys of that kv head, likewise.
        features: The features to sum over, one row for each result.
        low: Smallest distance, ≤ 0.
        high: Largest distance.

    Yields:
        Some of the groups, the head, and their sums, a few groups at a time so that memory stays O(n).

    Source:
        The cross-correlation theorem.
    """
    n = q.shape[2]
    size = _fast_length(n + max(high, -low))
    step = max(_FFT_BYTES // (16 * size * max(features.shape[1], 1)), 1)
    for start in range(0, len(features), step):
        part = slice(start, min(start + step, len(features)))
        keys = _spectra(k, features[part], size)
        for head in range(q.shape[0]):
            product = torch.zeros_like(keys[0])
            for one_q, one_k in zip(_spectra(q[head], features[part], size), keys, strict=True):
                product.addcmul_(one_q, one_k.conj())
            sums = torch.fft.irfft(product, n=size)
            after = sums[:, : high + 1]
            yield part, head, torch.cat((sums[:, low:], after), dim=1) if low else after


def _spectra(
    x: Float[Tensor, "d_head pos"], features: Int[Tensor, "group feature"], size: int
) -> Complex[Tensor, "feature group frequency"]:
    """Fourier transforms over positions, padded with zeros so that the ends do not meet."""
    chosen = to_float64(x[features.T.flatten().to(x.device)])
    return torch.fft.rfft(chosen, n=size).unflatten(0, (features.shape[1], -1))


def _fast_length(least: int) -> int:
    """The smallest product of 2s, 3s and 5s that is at least this: a length whose transform is fast."""
    best = 1 << max(least - 1, 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            two = three << max(-(-least // three) - 1, 0).bit_length()
            best = min(best, two)
            three *= 3
        five *= 5
    return best
