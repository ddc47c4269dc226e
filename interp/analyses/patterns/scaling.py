"""entropy_scaling: how a head's attention spreads as its queries see more keys."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from hooks import checks
from interp.analyses.patterns.covering import coverage
from interp.analyses.patterns.schema import ENTROPY_SCALING
from interp.common.labels import labelled, result_of
from interp.tensors.capture_data import CaptureData, check_capture
from interp.tensors.selection import asked_layers

_FEWEST = 3


def entropy_scaling(
    cap: CaptureData, level: float = 0.9, *, at_least: int = 16, layers: int | Sequence[int] | None = None
) -> xr.Dataset:
    """The slope of each head's entropy, and of its coverage, against the logarithm of the keys that a query sees.

    A head that attends alike to all keys has slope 1 in both, one that keeps its attention on a fixed number of keys 0.
    Least squares over the queries, one point each; standard errors allow for neighbours that are alike. In a sliding
    layer only the queries before the window is full see more and more, and beyond it they add to the same point.

    Args:
        cap: the capture.
        level: the share of attention whose coverage is taken.
        at_least: only queries that see so many keys.
        layers: which of its layers; None is all of them.

    Returns:
        Dataset over (layer, head): entropy_slope and coverage_slope with entropy_slope_stderr and
        coverage_slope_stderr; NaN where fewer than three queries see so many keys, or all see equally many. queries
        (layer), the points.

    Raises:
        InputError: a level that is none, or q or k that are not finite.
        StageError: no layer, or one that the capture does not hold.

    Source:
        Entropy against length: arXiv 2202.12172 (scaled softmax in ln n). Errors: Newey and West, Econometrica 55,
        1987.
    """
    chosen = asked_layers(check_capture(cap).layers, layers)
    level, at_least = checks.number("level", level, above=0, below=1), checks.whole("at_least", at_least, at_least=1)
    entropy = cap.statistics(chosen)["entropy"].transpose("layer", "head", "query").values.astype(np.float64)
    needed = coverage(cap, level, gaps=(), layers=chosen)["coverage"].isel(level=0).values.astype(np.float64)
    n, values = len(cap.positions), {name: np.full(entropy.shape[:2], np.nan) for name in list(ENTROPY_SCALING)[:4]}
    counted = np.zeros(len(chosen), dtype=np.int64)
    for at, layer in enumerate(chosen):
        first, stop = cap.spec(layer).seen(torch.arange(n), n, cap.documents)
        seen = (stop - first).numpy()
        there = seen >= at_least
        counted[at] = there.sum()
        x = np.log(seen[there])
        for head in range(entropy.shape[1]):
            for name, y in (("entropy", entropy[at, head]), ("coverage", np.log(needed[at, head]))):
                found = slope(x, y[there])
                values[f"{name}_slope"][at, head], values[f"{name}_slope_stderr"][at, head] = found
    out = xr.Dataset(
        {name: (ENTROPY_SCALING[name].dims, numbers) for name, numbers in (values | {"queries": counted}).items()},
        {"layer": list(chosen), "head": np.arange(entropy.shape[1])},
    )
    said = labelled(out, ENTROPY_SCALING, level=f"{level:g}")
    return result_of("entropy_scaling", said, "slope of entropy and coverage against ln of the keys seen")


def slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope of least squares and its standard error, autocorrelation allowed for; NaN where x does not vary.

    ``b = Σ (x − x̄) y / Σ (x − x̄)²``; variance ``Σ_l w_l Σ_t u_t u_{t−l} / (Σ (x − x̄)²)²`` with ``u = (x − x̄) e``,
    Bartlett weights w and ``4 (n / 100)^{2/9}`` lags.
    """
    kept = np.isfinite(y)
    x, y = x[kept], y[kept]
    centred = x - x.mean() if x.size else x
    square = centred @ centred
    if x.size < _FEWEST or square <= 1e-12 * x.size:
        return np.nan, np.nan
    b = float(centred @ y / square)
    u = centred * (y - y.mean() - b * centred)
    lags = min(int(4 * (x.size / 100) ** (2 / 9)), x.size - 1)
    variance = u @ u + 2 * sum((1 - lag / (lags + 1)) * (u[lag:] @ u[:-lag]) for lag in range(1, lags + 1))
    return b, float(np.sqrt(max(variance, 0.0)) / square)
