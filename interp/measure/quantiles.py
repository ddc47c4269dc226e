"""Quantiles of a score, read from its histogram."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from hooks import checks
from hooks.errors import InputError
from interp.measure.schema import SCORE_QUANTILE

_QUANTILE = SCORE_QUANTILE["score_quantile"]


def score_quantile(ds: xr.Dataset, q: float | Sequence[float]) -> xr.DataArray:
    """Quantiles of the score, read from the histogram: off by at most the bin that the quantile lies in.

    Args:
        ds: Statistics with ``score_count``; further dimensions (layer) stay.
        q: One or several levels from 0 to 1.

    Returns:
        The dimensions of ``score_count`` with ``quantile`` in place of ``score_bin``; linear inside a bin, the finite
        edge in an open one, NaN where nothing was counted.

    Raises:
        InputError: a level outside 0 … 1, or a Dataset without the histogram.
    """
    levels = np.array(checks.numbers("q", q, at_least=0, at_most=1))
    if not isinstance(ds, xr.Dataset) or "score_count" not in ds:
        raise InputError('there is no score_count to read quantiles from: measure with "scores" among the groups.')
    left, right = ds["score_bin_left"].values, ds["score_bin_right"].values
    left, right = np.where(np.isinf(left), right, left), np.where(np.isinf(right), left, right)
    counts = ds["score_count"].transpose(..., "score_bin")

    def read(count: np.ndarray) -> np.ndarray:
        below = np.concatenate([[0], np.cumsum(count)])
        if below[-1] == 0:
            return np.full(levels.shape, np.nan)
        target = levels * below[-1]
        at = np.clip(np.searchsorted(below, target, side="left") - 1, np.flatnonzero(count)[0], None)
        share = (target - below[at]) / count[at]
        return left[at] + share * (right[at] - left[at])

    values = np.apply_along_axis(read, -1, counts.values)
    dims = (*counts.dims[:-1], "quantile")
    coords = {name: c for name, c in counts.coords.items() if "score_bin" not in c.dims}
    return xr.DataArray(values, {**coords, "quantile": levels}, dims, "score_quantile", _QUANTILE.attrs)
