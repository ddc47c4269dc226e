"""Range, moments, kurtosis and quantiles of one layer's scores over all visible pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from hooks import AttentionSpec
from interp.measure.quantiles import score_quantile
from interp.measure.statistics import attention_statistics

PerHead = Float[np.ndarray, " head"]

_ROUGH_QUERIES = 64


@dataclass(frozen=True)
class ScoreMoments:
    """Extremes, mean and standard deviation of the scores of each head, exact over all visible pairs."""

    low: PerHead
    high: PerHead
    mean: PerHead
    std: PerHead

    @classmethod
    def of(cls, by_distance: xr.Dataset) -> "ScoreMoments":
        """Moments over all distances from those at each distance.

        Args:
            by_distance: statistics of one layer with the group "distances".
        """
        ds = by_distance.transpose("head", "distance", ...)
        count = ds["count"].values.astype(np.float64)
        seen = count > 0
        count = count[seen]
        mean_at, m2_at = (ds[name].values[:, seen].astype(np.float64) for name in ("score_mean", "score_m2"))
        mean = mean_at @ count / count.sum()
        m2 = m2_at.sum(-1) + (mean_at - mean[:, None]) ** 2 @ count
        low, high = ds["score_min"].min("distance").values, ds["score_max"].max("distance").values
        return cls(low.astype(np.float64), high.astype(np.float64), mean, np.sqrt(m2 / count.sum()))

    @property
    def largest(self) -> PerHead:
        """The largest |score|."""
        return np.maximum(np.abs(self.low), np.abs(self.high))


@dataclass(frozen=True)
class ScoreShape(ScoreMoments):
    """The moments with the kurtosis (3 for a normal distribution) and the quantiles, [head quantile]."""

    kurtosis: PerHead
    quantiles: Float[np.ndarray, "head quantile"]


def score_shape(
    q: Float[Tensor, "pos head d_head"],
    k: Float[Tensor, "pos kv_head d_head"],
    spec: AttentionSpec,
    quantiles: Sequence[float],
    known: ScoreMoments | None = None,
    standing: Mapping[str, Any] | None = None,
) -> ScoreShape:
    """Everything about the distribution of scores, from a pass over ``z = (s − centre) / spread``.

    The histogram's bins are 1/32 as wide as the value that they lie at, so around a mean far from 0 they would be too
    coarse for the spread. An additional feature, constant in k, shifts the scores to their middle first: quantiles are
    then off by at most 1/32 of their distance from a value near the mean (or of a standard deviation, close to it), and
    the kurtosis is that of scores spread evenly inside each bin. A soft-cap does not commute with the shift, and its
    scores are binned as they are.

    Args:
        q: queries as they enter the score.
        k: keys as they enter the score.
        spec: how they become scores; the sink logit does not matter.
        quantiles: levels from 0 to 1.
        known: exact moments if there are any already; they save the larger half of the pass.
        standing: where queries and keys stand, as `attention_statistics` takes it; by default they are one text.
    """
    spec = replace(spec, sinks=None)
    heads, measure = q.shape[1], partial(attention_statistics, **(standing or {}))
    centre, spread = np.zeros(heads), np.ones(heads)
    if spec.softcap is None:
        rough = known
        if rough is None:
            some = torch.linspace(0, len(q) - 1, min(_ROUGH_QUERIES, len(q))).long()
            rough = ScoreMoments.of(measure(q, k, spec, groups=("distances",), queries=some))
        centre, spread = rough.mean, np.where(rough.std > 1e-6 * rough.largest, rough.std, 1.0)
        q, k, spec = _standardised(q, k, spec, centre, spread)
    groups = ("distances", "scores") if known is None else ("scores",)
    ds = measure(q, k, spec, groups=groups)
    exact = known
    if exact is None:
        z = ScoreMoments.of(ds)
        low, high, mean = (spread * x + centre for x in (z.low, z.high, z.mean))
        exact = ScoreMoments(low, high, mean, spread * z.std)
    at = score_quantile(ds, quantiles).transpose("head", "quantile").values * spread[:, None] + centre[:, None]
    kurtosis = np.where(exact.std > 1e-6 * exact.largest, binned_kurtosis(ds), np.nan)
    inside = np.clip(at, exact.low[:, None], exact.high[:, None])
    return ScoreShape(exact.low, exact.high, exact.mean, exact.std, kurtosis, inside)


def binned_kurtosis(ds: xr.Dataset) -> PerHead:
    """E[(s − μ)⁴] / E[(s − μ)²]² of a histogram whose counts lie evenly inside their bins; 3 for a normal distribution.

    Args:
        ds: statistics of one layer with the group "scores".
    """
    count = ds["score_count"].transpose("head", "score_bin").values.astype(np.float64)
    left, right = (ds[name].values for name in ("score_bin_left", "score_bin_right"))
    # The two open bins count as their finite edge.
    left, right = np.where(np.isinf(left), right, left), np.where(np.isinf(right), left, right)
    middle, half = (left + right) / 2, (right - left) / 2
    share = count / count.sum(-1, keepdims=True)
    off = middle - (share @ middle)[:, None]
    square = off**2 + half**2 / 3
    fourth = off**4 + 2 * (off * half) ** 2 + half**4 / 5
    with np.errstate(invalid="ignore"):
        return (share * fourth).sum(-1) / (share * square).sum(-1) ** 2


def _standardised(
    q: Tensor, k: Tensor, spec: AttentionSpec, centre: PerHead, spread: PerHead
) -> tuple[Tensor, Tensor, AttentionSpec]:
    """q, k and spec whose scores are (s − centre) / spread: q grows by a feature that meets a 1 in every key."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    factor, shift = (torch.from_numpy(x).to(q.device, dtype) for x in (spec.scale / spread, -centre / spread))
    scaled = q.to(dtype) * factor[:, None]
    shifted = torch.cat([scaled, shift[:, None].expand(len(q), -1, 1)], dim=-1)
    ones = torch.ones(*k.shape[:2], 1, dtype=dtype, device=k.device)
    slopes = None if spec.alibi_slopes is None else tuple((np.asarray(spec.alibi_slopes) / spread).tolist())
    return shifted, torch.cat([k.to(dtype), ones], dim=-1), replace(spec, scale=1.0, alibi_slopes=slopes)
