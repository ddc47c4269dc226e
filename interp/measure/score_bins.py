"""The fixed bins of the score histogram: 32 per power of two, found from a float's bits without a search."""

import functools

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_BITS = 5  # leading mantissa bits that tell bins of one power of two apart
_LOWEST, _HIGHEST = -6, 16  # |score| below 2^-6 shares one bin; from 2^16 on (float16's 65504 and up) another
_INNER = (_HIGHEST - _LOWEST) << _BITS

N_BINS = 2 * _INNER + 3

_LAYOUT = {  # dtype: (integer of the same width, its bits, mantissa bits below the bin number, exponent bias)
    torch.float32: (torch.int32, 32, 23 - _BITS, 127),
    torch.float64: (torch.int64, 64, 52 - _BITS, 1023),
}


@functools.cache
def score_edges() -> np.ndarray:
    """Edges of the bins, [N_BINS + 1] float64; the first is −∞ and the last +∞, the rest exact in float32."""
    octave, step = np.divmod(np.arange(_INNER + 1), 1 << _BITS)
    positive = np.ldexp(1 + step / (1 << _BITS), octave + _LOWEST)
    edges = np.concatenate([[-np.inf], -positive[::-1], positive, [np.inf]])
    edges.flags.writeable = False
    return edges


def count_scores(scores: Float[Tensor, "head row key"]) -> Int[Tensor, "head score_bin"]:
    """How many scores of each head fall into each bin, ``left ≤ s < right``; −∞ falls into the first.

    Args:
        scores: float32 or float64.

    Returns:
        Counts over the N_BINS bins between `score_edges`.
    """
    integer, width, shift, _ = _LAYOUT[scores.dtype]
    bits = (scores + 0.0).contiguous().view(integer)  # + 0.0 turns −0 into 0
    # One less in magnitude puts a negative score that lies on an edge into the bin to the edge's right.
    bits.add_(bits >> (width - 1)).bitwise_right_shift_(shift)
    half = 1 << (width - 1 - shift)
    return collapse_counts(_counts(bits.add_(half).flatten(1), 2 * half), scores.dtype)


def _counts(index: Int[Tensor, "head cell"], size: int) -> Int[Tensor, "head size"]:
    """How often each number below size occurs."""
    if index.is_cpu:
        return torch.stack([torch.bincount(head, minlength=size) for head in index])
    # bincount asks the device for the largest number, and the host waits.
    counts = torch.zeros(len(index), size, dtype=torch.int64, device=index.device)
    return counts.scatter_add_(1, index.long(), torch.ones_like(index, dtype=torch.int64))


def index_layout(dtype: torch.dtype) -> tuple[int, int]:
    """Bits to drop from a score of this dtype to get its leading bits, and how many values those have."""
    _, width, shift, _ = _LAYOUT[dtype]
    return shift, 1 << (width - shift)


def collapse_counts(
    counts: Int[Tensor, "head leading_bits"], dtype: torch.dtype = torch.float32
) -> Int[Tensor, "head score_bin"]:
    """From counts by leading bits, the most negative first, to the N_BINS bins."""
    half = counts.shape[1] // 2
    low = (_LAYOUT[dtype][3] + _LOWEST) << _BITS
    sides = [_collapse(side, low) for side in counts.split(half, dim=1)]
    (near_negative, negative), (near_positive, positive) = sides
    return torch.cat([negative.flip(1), near_negative + near_positive, positive], dim=1)


def _collapse(counts: Int[Tensor, "head magnitude"], low: int) -> tuple[Tensor, Tensor]:
    """Counts of one sign: below the lowest edge, and per bin from there out, the last of them open."""
    high = low + _INNER
    outer = counts[:, high:].sum(1, keepdim=True)
    return counts[:, :low].sum(1, keepdim=True), torch.cat([counts[:, low:high], outer], dim=1)
