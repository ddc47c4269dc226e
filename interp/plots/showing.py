"""Datasets drawn as plotly figures; every number drawn is one that the Dataset holds.

`show` picks the figure of any result.
"""

from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go
import xarray as xr

from hooks.errors import InputError
from interp.plots.differences import comparison
from interp.plots.distance import attention_by_distance, attention_by_variant
from interp.plots.loss import loss_by_position
from interp.plots.maps import attention_window, head_scores, layer_head_map, pooled_map
from interp.plots.pairs import frequency_pairs
from interp.plots.profiles import bound_by_distance, precision_cost, received_by_position, relativity_error, sink_rate
from interp.plots.ranges import score_ranges
from interp.plots.reduced import binned_by_distance, thinned
from interp.plots.tables import ranking


def _distances(result: xr.Dataset, **options: Any) -> go.Figure:
    """Curves by distance; a panel for each variant where there are some, and their loss below."""
    if "distance" not in result.dims:
        raise InputError('there is nothing by distance to draw: measure with "distances" among the groups')
    binned = binned_by_distance(result)
    if "variant" not in binned.dims:
        return attention_by_distance(binned, **options)
    loss = result[["loss_mean", "loss_stderr"]] if "loss_mean" in result else None
    return attention_by_variant(binned, loss=loss, **options)


def _pairs(result: xr.Dataset, **options: Any) -> go.Figure:
    """The spectrum of the frequency pairs."""
    return frequency_pairs(thinned(result), **options)


_FIGURES: dict[str, Callable[..., go.Figure]] = {
    "attention_map": pooled_map,
    "attention_pattern": attention_window,
    "attention_statistics": _distances,
    "bound_by_distance": bound_by_distance,
    "compare": comparison,
    "frequency_bias": _pairs,
    "head_summary": head_scores,
    "loss_by_position": loss_by_position,
    "positional_bias": _distances,
    "precision_cost": precision_cost,
    "ranked": ranking,
    "received_by_position": received_by_position,
    "relativity_error": relativity_error,
    "score_ranges": score_ranges,
    "sink_rate": sink_rate,
    "top_keys": ranking,
    "typical_heads": ranking,
    "what_if_rope": _distances,
}


def show(result: xr.Dataset | xr.DataArray, **options: Any) -> go.Figure:
    """The figure of any result: the analysis that made it decides which.

    Distances are merged into bins first (exactly, see `interp.common.binning`), so that a figure of a long
    text stays light. A bare (layer, head) array is drawn as a heat map.

    Args:
        result: what an analysis of `interp` returned, or a part of it selected by layer and head.
        **options: passed on to the figure's function, such as ``title``.

    Raises:
        InputError: nothing here knows how to draw it.
    """
    analysis = result.attrs.get("analysis") if isinstance(result, xr.Dataset | xr.DataArray) else type(result).__name__
    draw: Callable[..., go.Figure] | None = _FIGURES.get(str(analysis))
    if draw is None and isinstance(result, xr.DataArray) and set(result.dims) == {"layer", "head"}:
        draw = layer_head_map
    if draw is None:
        known = ", ".join(sorted(_FIGURES))
        raise InputError(
            f"no figure for the analysis {analysis!r}: plots.show draws what these return: {known}; "
            "for anything else use a function of interp.plots, or .plot of xarray"
        )
    figure: Any = draw(result, **options)
    if "title" not in options and not figure.layout.title.text:
        figure.update_layout(title={"text": str(getattr(result, "attrs", {}).get("description", ""))}, margin={"t": 84})
    return figure


def can_show(result: object) -> bool:
    """Whether `show` has a figure for it, decided without drawing."""
    return isinstance(result, xr.Dataset | xr.DataArray) and str(result.attrs.get("analysis")) in _FIGURES
