"""The figure of rollout: mass on the first token against depth, and where queries come from after all layers."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.plots import theme
from interp.plots.bands import add_band, band_of, caption
from interp.plots.base import finish, traces_of
from interp.plots.given import drawn
from interp.plots.maps import attention_cells


@drawn
def rollout(product: xr.Dataset, *, title: str = "Attention multiplied through the layers") -> go.Figure:
    """Two panels: mass on the first token after each layer, and the rollout through all of them, queries down.

    Args:
        product: a `rollout` Dataset.
        title: heading of the figure.
    """
    figure = make_subplots(cols=2, column_widths=[0.4, 0.6], horizontal_spacing=0.14)
    layers, mean = np.atleast_1d(product["layer"].values), np.atleast_1d(product["first_token_mean"].values)
    band = band_of(product, "first_token_mean")
    if band is not None:
        edges = np.atleast_1d(band.low.values), np.atleast_1d(band.high.values)
        add_band(figure, layers, edges, band.words, theme.SLIDING, "first token", row=1, col=1)
    figure.add_scatter(
        x=layers,
        y=mean,
        mode="lines+markers" if len(layers) > 1 else "markers",
        line={"color": theme.SLIDING, "width": 2},
        marker={"size": 5},
        hovertemplate="up to layer %{x}: %{y:.3g}<extra></extra>",
        name="first token",
        showlegend=False,
        row=1,
        col=1,
    )
    figure.update_xaxes(title="up to layer", row=1, col=1)
    figure.update_yaxes(title="mass on the first token", range=[0, 1.02], row=1, col=1)
    cells = product["rollout"].transpose("map_query", "map_key")
    values = cells.values.astype(np.float32)
    heat = attention_cells(values, cells["map_key"].values, cells["map_query"].values, "log")
    figure.add_trace(
        heat.update(hovertemplate="queries around %{y:,.0f}, keys around %{x:,.0f}: %{customdata:.3g}<extra></extra>"),
        row=1,
        col=2,
    )
    for trace in traces_of(figure):
        if trace.type == "heatmap":
            trace.colorbar.title.text = "mass, log scale"
    figure.update_xaxes(title="key position [tokens]", tickformat=",", showgrid=False, row=1, col=2)
    figure.update_yaxes(
        title="query position [tokens]", tickformat=",", autorange="reversed", showgrid=False, row=1, col=2
    )
    return finish(figure, title, 400, caption(figure, product))
