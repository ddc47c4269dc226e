"""One point per head for each member of a further dimension: formats, levels, tensors."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp.common.words import visible_text
from interp.plots import theme
from interp.plots.bands import caption
from interp.plots.base import DECADES, finish, label_of, names_of, positive, say, with_heads
from interp.plots.highlight import Highlight, head_ticks, mark_places, named_heads


def points_by_head(
    data: xr.Dataset,
    variable: str,
    dim: str,
    *,
    names: Sequence[str] | None = None,
    title: str | None = None,
    highlight: Highlight = None,
    note: str = "",
) -> go.Figure:
    """One point per head and member of a dimension, on a logarithmic axis; a gap where there is no number above zero.

    Args:
        data: a result.
        variable: which of its (layer, head, dim) numbers to draw.
        dim: the dimension; colours and marks tell its members apart.
        names: what its members are called; by default as they are.
        title: heading of the figure; by default what the number is.
        highlight: heads to pick out, as (layer, head), or {(layer, head): name}.
        note: more words under the title.
    """
    data = with_heads(data)
    data = data if dim in data.dims else data.expand_dims(dim)
    values, heads, named = data[variable], names_of(data), named_heads(highlight, data)
    figure, lacking = go.Figure(), []
    members = np.atleast_1d(data[dim].values) if dim in data.coords else range(data.sizes[dim])
    for place, member in enumerate(members):
        name = visible_text(member) if names is None else names[place]
        y = values.isel({dim: place}).transpose("layer", "head").values.ravel()
        y = positive(np.where(np.isfinite(y), y, np.nan))
        if not np.isfinite(y).any():
            lacking.append(name)
            continue
        figure.add_scatter(
            x=np.arange(len(heads)),
            y=y,
            mode="markers",
            marker={"color": theme.SERIES[place % len(theme.SERIES)], "size": 6, "symbol": place},
            text=heads,
            hovertemplate=f"%{{text}}, {name}: %{{y:.3g}}<extra></extra>",
            name=name,
            showlegend=True,
        )
    figure.update_xaxes(
        title="layer (one point per head)",
        **head_ticks(data, 30, named, across=True),
        range=[-1, len(heads)],
        showgrid=False,
    )
    mark_places(figure, data, named, across=True)
    what = variable.replace("_", " ")
    figure.update_yaxes(type="log", title=label_of(values, what), **DECADES)
    if len(lacking) == data.sizes[dim]:
        say(figure, f"nothing to draw: {what} is zero, infinite or missing in every head")
    words = [caption(figure, data), note]
    words += [f"not drawn, zero, infinite or missing in every head: {', '.join(lacking)}"] if lacking else []
    said = title or str(values.attrs.get("description", variable))
    return finish(figure, said, 380, "; ".join(word for word in words if word))
