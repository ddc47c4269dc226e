"""The band around a curve: how far its numbers spread, where a Dataset holds that beside them."""

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp.plots.base import traces_of

# More bands than this hide one another; then only highlighted heads have theirs.
MOST_BANDS = 24
# How the names of variables end that say how sure another one is.
EDGES = ("_low", "_high", "_stderr", "_sem")


class Band(NamedTuple):
    """The edges of a band, and what lies between them in words."""

    low: xr.DataArray
    high: xr.DataArray
    words: str


def band_of(data: xr.Dataset, name: str) -> Band | None:
    """From ``<name>_low`` to ``<name>_high``, or ``<name>`` ± ``<name>_stderr``; None where neither is there."""
    if f"{name}_low" in data and f"{name}_high" in data:
        return Band(data[f"{name}_low"], data[f"{name}_high"], str(data.attrs.get("band", "low to high")))
    if f"{name}_stderr" in data:
        error = data[f"{name}_stderr"]
        return Band(data[name] - error, data[name] + error, "± standard error")
    return None


def add_band(
    figure: go.Figure,
    x: np.ndarray,
    edges: tuple[np.ndarray, np.ndarray],
    words: str,
    colour: str,
    name: str,
    **where: int,
) -> None:
    """A filled band; where an edge is missing there is a gap. Edges that meet everywhere draw nothing.

    Args:
        figure: what to draw on.
        x: where each value stands.
        edges: the lower and the upper edge.
        words: what lies between them.
        colour: that of the curve.
        name: what the curve is called.
        **where: row and col of a panel.
    """
    low, high = edges
    there = np.isfinite(low) & np.isfinite(high)
    if not (there & (high > low)).any():
        return
    xs, ys = [], []
    for run in np.split(np.arange(len(x)), np.flatnonzero(np.diff(there)) + 1):
        if there[run[0]]:
            xs += [*x[run], *x[run][::-1], np.nan]
            ys += [*high[run], *low[run][::-1], np.nan]
    figure.add_scatter(
        x=np.asarray(xs),
        y=np.asarray(ys, dtype=np.float32),
        mode="lines",
        fill="toself",
        fillcolor=colour,
        line={"color": colour, "width": 1},
        opacity=0.18,
        hoverinfo="skip",
        showlegend=False,
        meta=f"band: {words}",
        name=f"band of {name}",
        **where,
    )


def caption(figure: go.Figure, data: xr.Dataset) -> str:
    """What stands under the title: what was averaged, and what the bands are."""
    words = [str(data.attrs["averaged"])] if "averaged" in data.attrs else []
    bands = [trace.meta for trace in traces_of(figure) if trace.meta]
    return "; ".join([*words, *dict.fromkeys(bands)])
