"""What a corpus keeps of how far attention spreads: the keys that hold it, how they grow, the sinks that take it."""

import numpy as np

from interp.analyses.patterns.covering import coverage
from interp.analyses.patterns.scaling import entropy_scaling
from interp.analyses.patterns.schema import COVERAGE, ENTROPY_SCALING
from interp.analyses.position.schema import FIND_SINKS
from interp.analyses.position.sink_tokens import find_sinks
from interp.analyses.position.sinks import SINK_THRESHOLD
from interp.common.schema import Variable
from interp.corpus.kept import Grid, Kept, Measured, as_weighted, weighted
from interp.tensors.capture_data import CaptureData


def _means(about: str, said: dict[str, Variable], measure) -> Kept:
    """An analysis of means alone."""
    kept = {name: weighted(name, variable) for name, variable in said.items()}
    fields = {name: field for more, _ in kept.values() for name, field in more.items()}
    return Kept(fields, {name: statistic for name, (_, statistic) in kept.items()}, measure, about)


def _measure_coverage(cap: CaptureData, grid: Grid) -> Measured:
    """Mean number of keys, times the queries that reach the level."""
    found = coverage(cap, gaps=())
    return as_weighted("coverage_mean", found["coverage_mean"].values, found["coverage_queries"].values)


def _measure_scaling(cap: CaptureData, grid: Grid) -> Measured:
    """Both slopes; a text is one observation of each."""
    found = entropy_scaling(cap)
    slopes = {name: found[name].values for name in ("entropy_slope", "coverage_slope")}
    return {k: x for name, slope in slopes.items() for k, x in as_weighted(name, slope, np.ones(slope.shape)).items()}


def _measure_sinks(cap: CaptureData, grid: Grid) -> Measured:
    """Sinks of a head and whether it has one, each text once; the attention that they take, by queries."""
    found = find_sinks(cap)
    sinks = found["sinks"].values.astype(np.float64)
    return {
        **as_weighted("sinks", sinks, np.ones(sinks.shape)),
        **as_weighted("sink_mass", found["sink_mass"].values, np.full(sinks.shape, float(len(cap.positions)))),
        "sink_rate_total": np.asarray(float((sinks > 0).sum())),
        "sink_rate_weight": np.asarray(float(sinks.size)),
    }


def _of_texts(variable: Variable) -> Variable:
    return variable._replace(description=f"{variable.description}; mean over texts")


COVERED = _means(
    "keys that hold a share of a query's attention", {"coverage_mean": COVERAGE["coverage_mean"]}, _measure_coverage
)
SCALING = _means(
    "slope of entropy and coverage against ln of the keys seen",
    {
        name: _of_texts(ENTROPY_SCALING[name].at(level="0.9") if name == "coverage_slope" else ENTROPY_SCALING[name])
        for name in ("entropy_slope", "coverage_slope")
    },
    _measure_scaling,
)
ANY_SINKS = _means(
    "how many tokens are attention sinks of each head, wherever they stand",
    {
        "sinks": _of_texts(FIND_SINKS["sinks"].at(epsilon=f"{SINK_THRESHOLD:g}")),
        "sink_mass": FIND_SINKS["sink_mass"],
        "sink_rate": FIND_SINKS["sink_rate"],
    },
    _measure_sinks,
)
