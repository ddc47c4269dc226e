"""One line per head, coloured by its layer, with its band; heads that are picked out stand on top and are named."""

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp.plots import theme
from interp.plots.bands import MOST_BANDS, add_band, band_of
from interp.plots.base import (
    depth,
    distance_centres,
    distance_labels,
    heads_of,
    layer_colour_bar,
    names_of,
    say,
    traces_of,
)
from interp.plots.highlight import Highlight, named_heads, series_colour

_MANY_LINES = 100


class Along(NamedTuple):
    """The horizontal axis of curves: where each value stands, what it covers in words, and what that is called."""

    x: np.ndarray
    labels: np.ndarray
    called: str


def along_distance(data: xr.Dataset) -> Along:
    """Distances, one by one or in bins."""
    return Along(distance_centres(data), distance_labels(data), "Δ")


def along_positions(data: xr.Dataset) -> Along:
    """Stretches of the text, each at its middle."""
    first, last = data["first_position"].values, data["last_position"].values
    labels = [f"{a:,}–{b:,}" if b > a else f"{a:,}" for a, b in zip(first, last, strict=True)]
    return Along((first + last) / 2, np.asarray(labels), "tokens")


def add_curves(
    figure: go.Figure,
    data: xr.Dataset,
    name: str,
    along: Along,
    *,
    highlight: Highlight = None,
    log: bool = True,
    **where: int,
) -> None:
    """One line per head of a variable over (layer, head, one more); a sentence where there is nothing to draw.

    Args:
        figure: what to draw on.
        data: has the variable, and its band if there is one (see `interp.plots.bands`).
        name: the variable.
        along: the horizontal axis.
        highlight: heads to pick out.
        log: whether the vertical axis is logarithmic; what it cannot show becomes a gap.
        **where: row and col of a panel.
    """
    heads, labels, named = heads_of(data), names_of(data), named_heads(highlight, data)
    curves = _rows(data[name], len(heads))
    curves = np.where(curves > 0, curves, np.nan) if log else curves
    edges = None
    if (band := band_of(data, name)) is not None and (named or len(heads) <= MOST_BANDS):
        edges = _rows(band.low, len(heads)), _rows(band.high, len(heads))
        if log and np.isfinite(curves).any():  # a band that reaches zero has no end there: it ends with the lowest
            lowest = np.fmin(np.nanmin(curves), np.min(edges[0], where=edges[0] > 0, initial=np.inf))
            edges = tuple(np.where(edge <= 0, lowest, edge) for edge in edges)
    legend = {trace.name for trace in traces_of(figure) if trace.showlegend}
    drawn = [i for i in range(len(heads)) if np.isfinite(curves[i]).any()]
    for i in sorted(drawn, key=lambda i: heads[i] in named):
        picked = heads[i] in named
        place = list(named).index(heads[i]) if picked else -1
        colour = series_colour(place) if picked else theme.layer_colour(depth(heads[i][0], _n_layers(data)))
        if band is not None and edges is not None and (picked or not named):
            add_band(figure, along.x, (edges[0][i], edges[1][i]), band.words, colour, labels[i], **where)
        label = named.get(heads[i], labels[i])
        quiet = 0.2 if named else 0.75 if len(heads) <= _MANY_LINES else 0.45
        figure.add_scatter(
            x=along.x,
            y=curves[i],
            # A head that has one value only would be an invisible line.
            mode="lines" if np.isfinite(curves[i]).sum() > 1 else "markers",
            line={"color": colour, "width": 2.6 if picked else 1.4},
            marker={"size": 5},
            opacity=1 if picked else quiet,
            customdata=along.labels,
            hovertemplate=f"{label}, {along.called} %{{customdata}}: %{{y:.3g}}<extra></extra>",
            name=label,
            legendgroup=label,
            showlegend=picked and label not in legend,
            **where,
        )
    if not drawn:
        why = "holds no number above zero" if log else "holds no number"
        say(figure, f"nothing to draw: {name.replace('_', ' ')} {why}", **where)


def key_to_colours(figure: go.Figure, data: xr.Dataset) -> None:
    """The key to the lines' colours, where there is more than one layer."""
    if data.sizes["layer"] > 1:
        layer_colour_bar(figure, data["layer"].values, _n_layers(data))


def _rows(values: xr.DataArray, heads: int) -> np.ndarray:
    """A row of numbers for each head."""
    return values.transpose("layer", "head", ...).values.reshape(heads, -1).astype(np.float32)


def _n_layers(data: xr.Dataset) -> int:
    """Layers of the model, which set the colours, so that a figure of some layers has those of all."""
    return int(data.attrs.get("n_layers", data["layer"].values.max() + 1))
