"""Figures of counts of keys: how many hold a head's attention."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp.plots.given import drawn
from interp.plots.highlight import Highlight
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
