"""What a corpus keeps of the head table, of sinks and of score ranges: every number as a sum and its weight."""

import numpy as np
import torch
import xarray as xr

from interp.analyses.heads.schema import SCORES
from interp.analyses.heads.summary import head_summary
from interp.analyses.position.received import queries_seeing
from interp.analyses.position.schema import SINK_RATE
from interp.analyses.position.sinks import SINK_THRESHOLD, sink_rate
from interp.analyses.scores.schema import SCORE_RANGES
from interp.common.schema import Variable
from interp.corpus.kept import Field, Grid, Kept, Measured, Statistic, as_weighted, extreme, weighted
from interp.measure.schema import LOCAL_DISTANCE
from interp.tensors.capture_data import CaptureData

_HEAD = ("layer", "head")
# A needle stands in one text, so its scores are none of a corpus.
_MEANS = [name for name in SCORES if name not in ("utilisation", "retrieval", "needle_mass")]
# Each text counts once: these are no ratios of sums over its queries.
_OF_TEXTS = {"positional_r2": "mean over texts of the share in each"}


def _summary() -> Kept:
    fields: dict[str, Field] = {"utilisation": Field(_HEAD, "max")}
    statistics: dict[str, Statistic] = {}
    for name in _MEANS:
        variable = SCORES[name]
        if name in _OF_TEXTS:
            variable = variable._replace(description=f"{variable.description}; {_OF_TEXTS[name]}")
        more, statistics[name] = weighted(name, variable)
        fields |= more
    statistics["utilisation"] = extreme(SCORES["utilisation"], "utilisation")
    return Kept(fields, statistics, _measure_summary, "named scores of every head")


def _measure_summary(cap: CaptureData, grid: Grid) -> Measured:
    """Every score times the queries that it is the mean of."""
    found = head_summary(cap)
    weights = _weights(cap)
    fields: dict[str, np.ndarray] = {}
    for name in _MEANS:
        fields |= as_weighted(name, found[name].values, np.asarray(weights[name], dtype=np.float64)[..., None])
    fields["utilisation"] = np.nan_to_num(found["utilisation"].values, nan=-np.inf)
    return fields


def _weights(cap: CaptureData) -> dict[str, list[float]]:
    """How many queries of each layer a mean is taken over."""
    n = len(cap.positions)
    index = torch.arange(n)
    found: dict[str, list[float]] = {name: [] for name in _MEANS}
    previous = _previous_copy(cap)
    for layer in cap.layers:
        first, stop = cap.spec(layer).seen(index, n)
        to_first = int((first == 0).sum()) - 1
        there = previous >= 0
        counts = {
            "first_token_mass": max(to_first, 1),
            "previous_token": int(((stop - first) > 1).sum()),
            "local_mass": max(n - LOCAL_DISTANCE, 0),
            "normalised_entropy": int(((stop - first) > 1).sum()),
            "duplicate_token": int((there & (previous >= first)).sum()),
            "induction": int((there & (previous + 1 >= first)).sum()),
            "positional_r2": 1,
        }
        for name in _MEANS:
            found[name].append(counts.get(name, n))
    return found


def _previous_copy(cap: CaptureData) -> torch.Tensor:
    """Where the token of each query stood last before it, −1 where it had not occurred."""
    last: dict[int, int] = {}
    found = []
    for at, token in enumerate(cap.tokens.tolist()):
        found.append(last.get(token, -1))
        last[token] = at
    return torch.tensor(found)


def _sinks() -> Kept:
    score, is_sink, rate = (
        SINK_RATE[name].at(k=1, epsilon=f"{SINK_THRESHOLD:g}") for name in ("sink_score", "is_sink", "sink_rate")
    )
    is_sink = is_sink._replace(
        units="1", description=f"whether {is_sink.description.removeprefix('whether ')}; over texts, the share of them"
    )
    kept = {name: weighted(name, what) for name, what in (("sink_score", score), ("is_sink", is_sink))}
    kept["sink_rate"] = weighted("sink_rate", rate)
    fields = {name: field for more, _ in kept.values() for name, field in more.items()}
    statistics = {name: statistic for name, (_, statistic) in kept.items()}
    return Kept(fields, statistics, _measure_sinks, "attention sinks by head, and their share")


def _measure_sinks(cap: CaptureData, grid: Grid) -> Measured:
    """Attention that the first token gets, summed over the queries that see it; which heads rest on it."""
    found = sink_rate(cap)
    seen = np.asarray([queries_seeing(cap.spec(layer), len(cap.positions))[0] for layer in cap.layers], dtype=float)
    heads = found["is_sink"].values
    return {
        **as_weighted("sink_score", found["sink_score"].values, seen[:, None]),
        **as_weighted("is_sink", heads.astype(float), np.ones(heads.shape)),
        "sink_rate_total": np.asarray(float(heads.sum())),
        "sink_rate_weight": np.asarray(float(heads.size)),
    }


def _ranges() -> Kept:
    fields = {
        "pairs": Field(("layer",)),
        "score": Field(_HEAD),
        "score_square": Field(_HEAD),
        "min": Field(_HEAD, "min"),
        "max": Field(_HEAD, "max"),
    }

    def said(name: str) -> Variable:
        return SCORE_RANGES[name]._replace(dims=_HEAD)

    statistics = {
        "min": extreme(said("min"), "min"),
        "max": extreme(said("max"), "max"),
        "mean": Statistic(said("mean"), ("score", "pairs"), lambda score, pairs: score / pairs),
        "std": Statistic(said("std"), ("score", "score_square", "pairs"), deviation),
    }
    return Kept(fields, statistics, _measure_ranges, "range and moments of each head's scores, as the model ran")


def _measure_ranges(cap: CaptureData, grid: Grid) -> Measured:
    """Moments and extremes of all scores, merged over distances."""
    stats = cap.statistics()
    count = stats["count"].transpose("layer", "distance").values.astype(np.float64)
    mean, m2, low, high = (_by_distance(stats, name) for name in ("score_mean", "score_m2", "score_min", "score_max"))
    weight, seen = count[:, None], count[:, None] > 0
    mean = np.where(seen, mean, 0.0)
    return {
        "pairs": count.sum(-1),
        "score": (mean * weight).sum(-1),
        "score_square": (np.where(seen, m2, 0.0) + mean**2 * weight).sum(-1),
        "min": np.where(seen, low, np.inf).min(-1),
        "max": np.where(seen, high, -np.inf).max(-1),
    }


def deviation(total: np.ndarray, square: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Standard deviation from the sums of numbers and of their squares; NaN of nothing."""
    n = np.where(count > 0, count, np.nan)
    # Sums of float64 of float32 scores: what rounding leaves of no spread at all may lie below zero.
    return np.sqrt(np.maximum(square / n - (total / n) ** 2, 0.0))


def _by_distance(stats: xr.Dataset, name: str) -> np.ndarray:
    return stats[name].transpose("layer", "head", "distance").values.astype(np.float64)


HEAD_SUMMARY, SINKS, RANGES = _summary(), _sinks(), _ranges()
