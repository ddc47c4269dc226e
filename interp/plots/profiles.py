"""Figures of single analyses over heads: attention received, sinks, bounds, shifted positions, low precision."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.common.words import head_name
from interp.plots import theme
from interp.plots.base import DECADES, depth, distance_axis, finish, heads_of, layer_colour_bar, positive, with_heads
from interp.plots.distance import add_curves, key_to_colours
from interp.plots.maps import head_scores, layer_head_map
from interp.plots.reduced import thinned

_MANY_LINES = 100


def received_by_position(
    received: xr.Dataset, *, weighted: bool = False, title: str = "Attention received along the text"
) -> go.Figure:
    """One line per head: mean attention that keys of each stretch get from the queries that see them.

    The dotted lines are a head that attends alike to every key it sees, one for each kind of layer.

    Args:
        received: a `received_by_position` Dataset.
        weighted: draw attention weighted by the size of the values that it moves.
        title: heading of the figure.
    """
    received = with_heads(received)
    name = "received_value_mean" if weighted else "received_mean"
    first, last = received["first_position"].values, received["last_position"].values
    middle = (first + last) / 2
    heads, layers = heads_of(received), received["layer"].values
    n_layers = int(layers.max()) + 1
    curves = positive(received[name].transpose("layer", "head", "position_bin").values).reshape(len(heads), -1)
    figure = go.Figure()
    for (layer, head), curve in zip(heads, curves, strict=True):
        figure.add_scatter(
            x=middle,
            y=curve,
            mode="lines" if len(middle) > 1 else "markers",
            line={"color": theme.layer_colour(depth(layer, n_layers)), "width": 1.3},
            opacity=0.75 if len(heads) <= _MANY_LINES else 0.45,
            hovertemplate=f"{head_name(layer, head)}, around token %{{x:,.0f}}: %{{y:.3g}}<extra></extra>",
            name=head_name(layer, head),
            showlegend=False,
        )
    if not weighted:
        _add_uniform(figure, received, middle)
    if len(layers) > 1:
        layer_colour_bar(figure, layers, n_layers)
    figure.update_xaxes(title="position of the key [tokens]", tickformat=",", rangemode="tozero")
    unit = "mean attention from a query × ‖v W_O‖" if weighted else "mean attention from a query"
    figure.update_yaxes(type="log", title=unit, **DECADES)
    finish(figure, title, height=420)
    return figure.update_layout(margin={"t": 76})


def precision_cost(cost: xr.Dataset, *, variable: str = "kl", title: str | None = None) -> go.Figure:
    """One point per head and number format: what rounding q and k to it changes; a gap where the head overflows.

    Args:
        cost: a `precision_cost` Dataset.
        variable: which of its (layer, head, dtype) numbers to draw.
        title: heading of the figure; by default what the number is.
    """
    cost = with_heads(cost)
    values, heads = cost[variable], heads_of(cost)
    figure = go.Figure()
    for place, dtype in enumerate(cost["dtype"].values):
        y = values.sel(dtype=dtype).transpose("layer", "head").values.ravel()
        figure.add_scatter(
            x=np.arange(len(heads)),
            y=positive(np.where(np.isfinite(y), y, np.nan)),
            mode="markers",
            marker={"color": theme.SERIES[place % len(theme.SERIES)], "size": 6, "symbol": place},
            text=[head_name(*head) for head in heads],
            hovertemplate=f"%{{text}}, {dtype}: %{{y:.3g}}<extra></extra>",
            name=str(dtype),
        )
    per_layer, layers = cost.sizes["head"], cost["layer"].values
    step = max(1, round(len(layers) / 30))
    figure.update_xaxes(
        title="layer (one point per head)",
        tickvals=(np.arange(len(layers)) * per_layer + (per_layer - 1) / 2)[::step],
        ticktext=[str(layer) for layer in layers[::step]],
        range=[-1, len(heads)],
        showgrid=False,
    )
    units = values.attrs.get("units", "")
    figure.update_yaxes(type="log", title=variable.replace("_", " ") + (f" [{units}]" if units else ""), **DECADES)
    finish(figure, title or str(values.attrs.get("description", variable)), height=380)
    return figure.update_layout(margin={"t": 76})


def _add_uniform(figure: go.Figure, received: xr.Dataset, middle: np.ndarray) -> None:
    """Uniform attention, once for each profile that occurs."""
    uniform = received["uniform_mean"].transpose("layer", "position_bin").values
    _, chosen = np.unique(uniform, axis=0, return_index=True)
    for place, row in enumerate(sorted(chosen)):
        figure.add_scatter(
            x=middle,
            y=positive(uniform[row]),
            mode="lines" if len(middle) > 1 else "markers",
            line={"color": theme.INK, "width": 1.6, "dash": "dot"},
            hovertemplate="uniform attention, %{y:.3g}<extra></extra>",
            name="uniform attention",
            legendgroup="uniform",
            showlegend=place == 0,
        )


def relativity_error(errors: xr.Dataset, *, title: str = "Change of the scores when all positions shift") -> go.Figure:
    """A layer × head map for each shift: the change, as a share of the scores' own spread.

    Args:
        errors: a `relativity_error` Dataset.
        title: heading of the figure.
    """
    change = errors["relativity_error"].assign_attrs(units="")  # from 1e-15 on: no percentages
    change = change if "shift" in change.dims else change.expand_dims("shift")
    panels = {f"by {shift:,} tokens": change.sel(shift=shift, drop=True) for shift in change["shift"].values.tolist()}
    return head_scores(xr.Dataset(panels), title=title).update_traces(colorbar_exponentformat="power")


def sink_rate(sinks: xr.Dataset) -> go.Figure:
    """The sink score of each head, and under it the share of heads that pass for sinks.

    Args:
        sinks: a `sink_rate` Dataset.
    """
    rate, threshold = float(sinks["sink_rate"]), sinks.attrs["epsilon"]
    title = f"Attention to token {sinks.attrs['k']}: above {threshold:g} in {rate:.1%} of the heads"
    return layer_head_map(sinks["sink_score"], title=title)


def bound_by_distance(
    bounds: xr.Dataset, *, title: str = "Proven bound by distance, and how much of it this text used"
) -> go.Figure:
    """Two panels, a line per head in each: the bound, and the largest observed score as a share of it.

    Args:
        bounds: a `bound_by_distance` Dataset.
        title: heading of the figure.
    """
    bounds = with_heads(thinned(bounds))
    largest = bounds["score_max"]
    if bounds["bound"].attrs.get("side", "both") == "both":
        largest = np.maximum(np.abs(bounds["score_min"]), np.abs(largest))
    bounds = bounds.assign(used=largest / bounds["bound"])
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.08)
    for row, (name, label) in enumerate((("bound", "bound [score]"), ("used", "used, 1 is all")), start=1):
        add_curves(figure, bounds, name, row=row, col=1)
        figure.update_yaxes(type="log", title=label, **DECADES, row=row, col=1)
        distance_axis(figure, bounds, row=row, col=1)
    figure.update_xaxes(title=None, row=1, col=1)
    key_to_colours(figure, bounds)
    return finish(figure, title, height=560)
