"""Many texts as one: sums and extremes merged, and what another choice of texts would have given (the bootstrap)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt16

N_RESAMPLES = 2000
SEED = 0
LEVEL = 0.95
# Resamples that are drawn, or multiplied, at a time: memory is that many rows of texts.
_BLOCK = 100


class Estimate(NamedTuple):
    """A statistic of all texts, and what resamples of them say of it; NaN where there are fewer than two texts."""

    value: np.ndarray
    sem: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Resamples:
    """Texts drawn with replacement, as many as there are, many times; the same texts for the same seed.

    Args:
        n_texts: how many texts there are.
        n_resamples: how many times they are drawn.
        seed: of the draws.

    Source:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile intervals).
    """

    def __init__(self, n_texts: int, n_resamples: int = N_RESAMPLES, seed: int = SEED):
        if n_texts >= 2**32:
            raise AssertionError("more texts than one draw of 32 bits tells apart")
        rng = np.random.default_rng(seed)
        self.counts: UInt16[np.ndarray, "resample text"] = np.empty((n_resamples, n_texts), dtype=np.uint16)
        for start in range(0, n_resamples, _BLOCK):
            rows = min(_BLOCK, n_resamples - start)
            drawn = rng.integers(0, n_texts, size=(rows, n_texts))
            places = drawn + n_texts * np.arange(rows)[:, None]
            self.counts[start : start + rows] = np.bincount(places.ravel(), minlength=rows * n_texts).reshape(rows, -1)

    def sums(self, values: Float[np.ndarray, "text ..."]) -> Float[np.ndarray, "resample ..."]:
        """The sum of the drawn texts' numbers, for each resample."""
        flat = values.reshape(len(values), -1)
        out = np.empty((len(self.counts), flat.shape[1]))
        for start in range(0, len(out), _BLOCK):
            block = slice(start, start + _BLOCK)
            np.matmul(self.counts[block].astype(np.float64), flat, out=out[block])
        return out.reshape(len(out), *values.shape[1:])


def interval(value: np.ndarray, resampled: Float[np.ndarray, "resample ..."], level: float = LEVEL) -> Estimate:
    """Standard error and percentile interval from the statistic of each resample.

    Resamples in which the statistic is NaN (none of their texts has anything to weigh) are left out.
    """
    tail = 50 * (1 - level)
    levels = [tail, 100 - tail]
    if not np.isnan(resampled).any():
        low, high = np.percentile(resampled, levels, axis=0)
        return Estimate(value, resampled.std(axis=0, ddof=1), low, high)
    there = np.isfinite(resampled)
    enough = there.sum(axis=0) > 1
    filled = np.where(enough, resampled, 0.0)
    low, high = np.nanpercentile(filled, levels, axis=0)
    sem = np.nanstd(filled, axis=0, ddof=1)
    return Estimate(value, *(np.where(enough, x, np.nan) for x in (sem, low, high)))


def simultaneous(
    difference: np.ndarray, resampled: Float[np.ndarray, "resample ..."], level: float = LEVEL
) -> tuple[np.ndarray, np.ndarray]:
    """Intervals that all hold at once with this probability: low and high, by the max-t bootstrap.

    ``difference ± c · sem`` with c the quantile of ``max |resampled − difference| / sem`` over all of them. NaN where
    the difference is.

    Source:
        Westfall and Young, Resampling-Based Multiple Testing, 1993; Romano and Wolf, Econometrica 73, 2005.
    """
    estimate = interval(difference, resampled)
    sem = estimate.sem
    moved = np.abs(resampled - difference)
    spread = np.isfinite(sem) & (sem > 0)
    t = np.divide(moved, sem, out=np.zeros_like(moved), where=np.broadcast_to(spread, moved.shape))
    largest = np.nan_to_num(t).reshape(len(t), -1).max(axis=1)
    reach = np.percentile(largest, 100 * level) * np.where(np.isfinite(sem), sem, np.nan)
    return difference - reach, difference + reach


def chunks(n_layers: int, numbers_per_layer: int, n_texts: int, budget: int = 2**24) -> Sequence[slice]:
    """Runs of layers whose numbers of all texts are at most about `budget`."""
    step = max(1, budget // max(numbers_per_layer * n_texts, 1))
    return [slice(start, min(start + step, n_layers)) for start in range(0, n_layers, step)]
