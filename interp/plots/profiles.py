"""Figures of single analyses over heads: attention received, sinks, bounds, shifted positions, low precision."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.plots import theme
from interp.plots.bands import caption
from interp.plots.base import DECADES, distance_axis, finish, positive, with_heads
from interp.plots.curves import add_curves, along_distance, along_positions, key_to_colours
from interp.plots.given import drawn
from interp.plots.highlight import Highlight
from interp.plots.maps import Scale, head_scores, layer_head_map
from interp.plots.points import points_by_head
from interp.plots.reduced import thinned, with_share_used


@drawn
def received_by_position(
    received: xr.Dataset,
    *,
    weighted: bool = False,
    title: str = "Attention received along the text",
    highlight: Highlight = None,
) -> go.Figure:
    """One line per head: mean attention that keys of each stretch get from the queries that see them.

    The dotted lines are a head that attends alike to every key it sees, one for each kind of layer.

    Args:
        received: a `received_by_position` Dataset; with a band where it holds one.
        weighted: draw attention weighted by the size of the values that it moves.
        title: heading of the figure.
        highlight: heads to pick out, as (layer, head), or {(layer, head): name}.
    """
    received = with_heads(received)
    along = along_positions(received)
    figure = go.Figure()
    name = "received_value_mean" if weighted else "received_mean"
    add_curves(figure, received, name, along, highlight=highlight)
    if not weighted and "uniform_mean" in received:
        _add_uniform(figure, received, along.x)
    key_to_colours(figure, received)
    figure.update_xaxes(title="position of the key [tokens]", tickformat=",", rangemode="tozero")
    unit = "mean attention from a query × ‖v W_O‖" if weighted else "mean attention from a query"
    figure.update_yaxes(type="log", title=unit, **DECADES)
    return finish(figure, title, 420, caption(figure, received))


@drawn
def precision_cost(
    cost: xr.Dataset, *, variable: str = "kl", title: str | None = None, highlight: Highlight = None
) -> go.Figure:
    """One point per head and number format: what rounding q and k to it changes; a gap where the head overflows.

    Args:
        cost: a `precision_cost` Dataset.
        variable: which of its (layer, head, dtype) numbers to draw.
        title: heading of the figure; by default what the number is.
        highlight: heads to pick out, as (layer, head), or {(layer, head): name}.
    """
    return points_by_head(cost, variable, "dtype", title=title, highlight=highlight)


def _add_uniform(figure: go.Figure, received: xr.Dataset, middle: np.ndarray) -> None:
    """Uniform attention, once for each profile that occurs."""
    uniform = received["uniform_mean"]
    uniform = uniform.isel(head=0) if "head" in uniform.dims else uniform  # of one selected head
    uniform = uniform.transpose("layer", "position_bin").values
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


@drawn
def relativity_error(
    errors: xr.Dataset,
    *,
    title: str = "Change of the scores when all positions shift",
    highlight: Highlight = None,
) -> go.Figure:
    """A layer × head map for each shift: the change, as a share of the scores' own spread.

    Args:
        errors: a `relativity_error` Dataset.
        title: heading of the figure.
        highlight: heads to pick out, as (layer, head), or {(layer, head): name}.
    """
    change = errors["relativity_error"].assign_attrs(units="")  # from 1e-15 on: no percentages
    change = change if "shift" in change.dims else change.expand_dims("shift")
    panels = {
        f"by {shift:,} {'token' if abs(shift) == 1 else 'tokens'}": change.sel(shift=shift, drop=True)
        for shift in change["shift"].values.tolist()
    }
    return head_scores(xr.Dataset(panels, attrs=errors.attrs), title=title, highlight=highlight)


@drawn
def sink_rate(
    sinks: xr.Dataset, *, title: str | None = None, scale: Scale = "linear", highlight: Highlight = None
) -> go.Figure:
    """The sink score of each head, and in the title the share of heads that pass for sinks.

    Args:
        sinks: a `sink_rate` Dataset.
        title: heading of the figure; by default token, threshold and the share of heads above it.
        scale: colours in equal steps ("linear") or in powers of ten ("log").
        highlight: heads to pick out, as (layer, head), or {(layer, head): name}.
    """
    rate, threshold = float(sinks["sink_rate"]), sinks.attrs["epsilon"]
    said = f"Attention to token {sinks.attrs['k']}: above {threshold:g} in {rate:.1%} of the heads"
    score = sinks["sink_score"].assign_attrs({"averaged": caption(go.Figure(), sinks)})
    return layer_head_map(score, title=title or said, scale=scale, highlight=highlight)


@drawn
def bound_by_distance(
    bounds: xr.Dataset,
    *,
    title: str = "Proven bound by distance, and how much of it this text used",
    highlight: Highlight = None,
) -> go.Figure:
    """Two panels, a line per head in each: the bound, and the largest observed score as a share of it.

    Args:
        bounds: a `bound_by_distance` Dataset.
        title: heading of the figure.
        highlight: heads to pick out, as (layer, head), or {(layer, head): name}.
    """
    bounds = with_heads(bounds if "used" in bounds else with_share_used(thinned(bounds)))
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.08)
    for row, (name, label) in enumerate((("bound", "bound [score]"), ("used", "used, 1 is all")), start=1):
        add_curves(figure, bounds, name, along_distance(bounds), highlight=highlight, row=row, col=1)
        figure.update_yaxes(type="log", title=label, **DECADES, row=row, col=1)
        distance_axis(figure, bounds, row=row, col=1)
    figure.update_xaxes(title=None, row=1, col=1)
    key_to_colours(figure, bounds)
    return finish(figure, title, 560, caption(figure, bounds))
