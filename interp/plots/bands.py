"""The band around a curve: how far its numbers spread, where a Dataset holds that beside them."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp.plots.base import traces_of

_BAND = "band"
# More bands than this hide one another; then only highlighted heads have theirs.
MOST_BANDS = 24


def band_of(data: xr.Dataset, name: str) -> tuple[xr.DataArray, xr.DataArray] | None:
    """Lower and upper edge: ``<name>_low`` and ``<name>_high``, or ``<name>`` ± ``<name>_stderr``; None without."""
    if f"{name}_low" in data and f"{name}_high" in data:
        return data[f"{name}_low"], data[f"{name}_high"]
    if f"{name}_stderr" in data:
        return data[name] - data[f"{name}_stderr"], data[name] + data[f"{name}_stderr"]
    return None


def add_band(
    figure: go.Figure, x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str, name: str, **where: int
) -> None:
    """A filled band; where an edge is missing there is a gap. Edges that meet everywhere draw nothing."""
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
        meta=_BAND,
        name=f"band of {name}",
        **where,
    )


def caption(figure: go.Figure, data: xr.Dataset) -> str:
    """What stands under the title: what was averaged, and what the bands are."""
    words = [str(data.attrs["averaged"])] if "averaged" in data.attrs else []
    if any(trace.meta == _BAND for trace in traces_of(figure)):
        words.append(f"band: {data.attrs.get('band', '± standard error')}")
    return "; ".join(words)
