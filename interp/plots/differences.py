"""Two captures held against each other: what changed in each head, and at which distance."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp.plots import theme
from interp.plots.base import distance_axis, distance_edges, distance_labels, finish, label_of, names_of, with_heads
from interp.plots.distance import head_rows
from interp.plots.given import drawn
from interp.plots.highlight import Highlight
from interp.plots.maps import head_scores


@drawn
def comparison(
    difference: xr.Dataset, *, title: str = "Differences, second minus first", highlight: Highlight = None
) -> go.Figure:
    """What changed in each head: a layer × head map for each score, blue where it grew, orange where it shrank.

    Args:
        difference: a `compare` Dataset.
        title: heading of the figure.
        highlight: heads to pick out, as (layer, head), or {(layer, head): name}.
    """
    return head_scores(difference, title=title, highlight=highlight)


@drawn
def comparison_by_distance(
    difference: xr.DataArray, *, title: str | None = None, highlight: Highlight = None
) -> go.Figure:
    """One row per head: what changed at each distance, blue where it grew, orange where it shrank.

    Args:
        difference: a (layer, head, distance) variable of a `compare` Dataset, or one with distances in bins.
        title: heading of the figure; by default the variable's description.
        highlight: heads to pick out, as (layer, head), or {(layer, head): name}.
    """
    data = with_heads(difference.to_dataset(name="difference"))
    dim = "distance_bin" if "distance_bin" in data.dims else "distance"
    rows = names_of(data)
    z = data["difference"].transpose("layer", "head", dim).values.reshape(len(rows), -1).astype(np.float32)
    top = float(np.nanmax(np.abs(z), initial=0.0)) or 1.0
    figure = go.Figure(
        go.Heatmap(
            z=z,
            x=distance_edges(data),
            y=np.arange(len(rows)),
            zmin=-top,
            zmax=top,
            colorscale=theme.DIVERGING_SCALE,
            hoverongaps=False,
            customdata=np.broadcast_to(distance_labels(data), z.shape),
            text=np.broadcast_to(np.asarray(rows)[:, None], z.shape),
            hovertemplate="%{text}, Δ %{customdata}: %{z:.3g}<extra></extra>",
            colorbar={"title": {"text": label_of(difference, "change"), "side": "right"}, **theme.BAR},
        )
    )
    head_rows(figure, data, highlight)
    distance_axis(figure, data)
    title = title or str(difference.attrs.get("description", difference.name or ""))
    return finish(figure, title, height=int(np.clip(110 + 8 * len(rows), 320, 900)))
