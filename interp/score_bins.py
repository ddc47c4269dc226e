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

_LAYOUT = {  # dtype: (integer of the same width, bits below the bin number, exponent bias)
    torch.float32: (torch.int32, 23 - _BITS, 127),
    torch.float64: (torch.int64, 52 - _BITS, 1023),
}


@functools.cache
def score_edges() -> np.ndarray:
    """Edges of the bins, [N_BINS + 1] float64; the first is −∞ and the last +∞, the rest exact in float32."""
    octave, step = np.divmod(np.arange(_INNER + 1), 1 << _BITS)
    positive = np.ldexp(1 + step / (1 << _BITS), octave + _LOWEST)
    edges = np.concatenate([[-np.inf], -positive[::-1], positive, [np.inf]])
    edges.flags.writeable = False
    return edges


def count_scores(scores: Float[Tensor, "head *cell"]) -> Int[Tensor, "head score_bin"]:
    """How many scores of each head fall into each bin, ``left ≤ s < right``; −∞ falls into the first.

    Args:
        scores: float32 or float64.

    Returns:
        Counts over the N_BINS bins between `score_edges`.
    """
    integer, shift, bias = _LAYOUT[scores.dtype]
    bits = scores.contiguous().view(integer)
    # Sign and magnitude become one ordered integer, so that an arithmetic shift rounds down on both sides of 0.
    ordered = torch.where(bits < 0, torch.iinfo(integer).min - bits, bits) >> shift
    middle = (bias + _LOWEST) << _BITS
    reach = middle + _INNER
    ordered = ordered.clamp_(-reach - 1, reach).add_(reach + 1).flatten(1).long()
    fine = torch.stack([torch.bincount(head, minlength=2 * reach + 2) for head in ordered])
    low, high = reach + 1 - middle, reach + 1 + middle
    return torch.cat([fine[:, :low], fine[:, low:high].sum(1, keepdim=True), fine[:, high:]], dim=1)
