"""Figures of how many keys hold a head's attention, and of how that grows with the keys there are."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp.plots.given import drawn
from interp.plots.highlight import Highlight
from interp.plots.maps import head_scores
from interp.plots.points import points_by_head


@drawn
def coverage(
    counted: xr.Dataset,
    *,
    title: str = "Fewest keys that hold a share of a query's attention",
    highlight: Highlight = None,
) -> go.Figure:
    """One point per head and share: how many keys hold it, on average over the queries.

    Args:
        counted: a `coverage` Dataset.
        title: heading of the figure.
        highlight: heads to pick out, as (layer, head), or {(layer, head): name}.
    """
    levels = np.atleast_1d(counted["level"].values)
    names = [f"{100 * level:.6g} %" for level in levels]
    seen = float(counted["seen"].max()) if "seen" in counted else np.nan
    note = f"mean over queries, which see up to {seen:,.0f} keys" if np.isfinite(seen) else "mean over queries"
    return points_by_head(counted, "coverage_mean", "level", names=names, title=title, highlight=highlight, note=note)


@drawn
def entropy_scaling(
    scaling: xr.Dataset,
    *,
    title: str = "Growth of attention's spread with the keys seen (uniform: 1)",
    highlight: Highlight = None,
) -> go.Figure:
    """Two layer × head maps: the slope of the entropy, and of the keys needed, against the logarithm of the keys seen.

    Args:
        scaling: an `entropy_scaling` Dataset.
        title: heading of the figure.
        highlight: heads to frame, as (layer, head), or {(layer, head): name}.
    """
    slopes = scaling[["entropy_slope", "coverage_slope"]]
    for name in slopes:
        slopes[name].attrs["units"] = ""  # a slope of 0.7 is no 70 %
    return head_scores(slopes, title=title, highlight=highlight)
