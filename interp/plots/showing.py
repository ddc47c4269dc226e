"""`show` picks the figure of any result: of an analysis, of a part of it, of several side by side.

Every number drawn is one that the Dataset holds, or a mean of some that the figure's caption names.
"""

from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go
import xarray as xr

from hooks import checks
from hooks.errors import InputError
from interp.plots.along_text import rows_by_position
from interp.plots.audited import pair_strengths, proven_scores, schedule_changes, wavelengths
from interp.plots.base import finish
from interp.plots.causes import effect_by_head, patched
from interp.plots.counts import coverage
from interp.plots.differences import comparison
from interp.plots.distance import attention_by_distance, attention_by_variant
from interp.plots.loss import loss_by_position
from interp.plots.maps import attention_window, head_scores, layer_head_map, pooled_map
from interp.plots.needle import needle_grid
from interp.plots.over_texts import spread_over_texts
from interp.plots.pairs import frequency_pairs
from interp.plots.profiles import bound_by_distance, precision_cost, received_by_position, relativity_error, sink_rate
from interp.plots.ranges import score_ranges
from interp.plots.reduced import binned_by_distance, binned_by_position, thinned, with_share_used
from interp.plots.several import OWN, averaged, averaged_array, check_once, refuse_added
from interp.plots.tables import ranking
from interp.plots.training import watched_scores
from interp.plots.variables import one_head, show_variable

_COMPARED = OWN | {"capture"}
_ROTATIONS = OWN | {"rotation", "schedule"}
_ROWS = ("entropy", "max_score", "max_prob", "mean_distance", "sink_mass")
_KEYS = ("received", "received_max", "received_value")


def _statistics(result: xr.Dataset, **options: Any) -> go.Figure:
    """By distance where that was measured, else along the text, else the pooled map."""
    if "distance_bin" in result.dims and "attention_mean" in result:
        return attention_by_distance(averaged(result), **options)
    if "distance" in result.dims:
        return _distances(result, **options)
    if "query" in result.dims and (rows := [name for name in _ROWS if name in result]):
        first = result.isel(sink_size=0) if "sink_size" in result.dims else result
        return rows_by_position(averaged(binned_by_position(first, rows, "query")), **options)
    if "key" in result.dims and (keys := [name for name in _KEYS if name in result]):
        options = {"title": "What each key receives, along the text"} | options
        return rows_by_position(averaged(binned_by_position(result, keys, "key")), **options)
    if "map_mean" in result:
        return pooled_map(one_head(averaged_array(result["map_mean"])), **options)
    held = ", ".join(map(str, result)) or "nothing"
    raise InputError(
        f"attention_statistics holds {held}, which no figure shows by itself: "
        'measure with "distances", "rows", "keys" or "map" among the groups'
    )


def _distances(result: xr.Dataset, **options: Any) -> go.Figure:
    """Curves by distance; a panel for each variant where there are some, and their loss below."""
    binned = averaged(binned_by_distance(result))
    if "variant" not in binned.dims:
        return attention_by_distance(binned, **options)
    losses = [name for name in ("loss_mean", "loss_stderr") if name in result]
    loss = averaged(result[losses]) if losses else None
    return attention_by_variant(binned, loss=loss, **options)


def _maps(draw: Callable[..., go.Figure]) -> Callable[..., go.Figure]:
    """A figure of one array, of one head."""
    return lambda result, **options: draw(one_head(averaged_array(result)), **options)


def _means(draw: Callable[..., go.Figure], own: frozenset[str] = OWN) -> Callable[..., go.Figure]:
    """A figure that can show the mean of several results."""
    return lambda result, **options: draw(averaged(result, own), **options)


def _alone(draw: Callable[..., go.Figure], own: frozenset[str] = OWN) -> Callable[..., go.Figure]:
    """A figure of one result: a ranking or an extreme has no mean."""

    def draw_one(result: xr.Dataset, **options: Any) -> go.Figure:
        refuse_added(result, own)
        return draw(averaged(result, own), **options)

    return draw_one


def _ranges(result: xr.Dataset, **options: Any) -> go.Figure:
    """The ranges under every variant; those of many texts are as run, and are maps of heads."""
    if "min" in result and not {"variant", "stage"} & set(result["min"].dims) and "variant" not in result.coords:
        return _means(head_scores)(result, **({"title": "Ranges of the scores"} | options))
    return _alone(score_ranges)(result, **options)


def _direct(result: xr.Dataset, **options: Any) -> go.Figure:
    """What each head adds to the logit, summed over the keys that it reads."""
    mean = averaged(result)
    whole = mean["logit"].sum([dim for dim in mean["logit"].dims if dim == "key"])
    said = {"averaged": mean.attrs["averaged"]} if "averaged" in mean.attrs else {}
    whole = whole.assign_attrs(mean["logit"].attrs | said)
    options.setdefault("title", str(result.attrs.get("description", "")))
    return layer_head_map(whole, **options)


_FIGURES: dict[str, Callable[..., go.Figure]] = {
    "activation_patching": _means(patched),
    "attention_map": _maps(pooled_map),
    "attention_pattern": _maps(attention_window),
    "attention_statistics": _statistics,
    "audit_heads": _alone(pair_strengths),
    "audit_layers": _alone(proven_scores),
    "audit_rotations": _alone(wavelengths, _ROTATIONS),
    "audit_schedules": _alone(schedule_changes, _ROTATIONS),
    "attribution": _means(effect_by_head),
    "attribution_patching": _means(patched),
    "bound_by_distance": lambda result, **options: bound_by_distance(
        averaged(with_share_used(thinned(result))), **options
    ),
    "compare": _means(comparison, _COMPARED),
    "compare_corpora": _alone(comparison),
    "coverage": _means(coverage),
    "direct_logit_attribution": _direct,
    "frequency_bias": lambda result, **options: frequency_pairs(averaged(thinned(result)), **options),
    "head_summary": _means(head_scores),
    "knock_out_sweep": _means(patched),
    "loss_by_position": _means(loss_by_position),
    "needle_sweep": _means(needle_grid),
    "positional_bias": _statistics,
    "precision_cost": _means(precision_cost),
    "ranked": _alone(ranking, _COMPARED),
    "received_by_position": _means(received_by_position),
    "relativity_error": _means(relativity_error),
    "score_ranges": _ranges,
    "spread_over_texts": _alone(spread_over_texts),
    "sink_rate": _means(sink_rate),
    "top_edges": _alone(ranking),
    "top_keys": _alone(ranking),
    "top_texts": _alone(ranking),
    "top_tokens": _alone(ranking),
    "typical_heads": _alone(ranking),
    "watch_scores": _alone(watched_scores, OWN | {"step"}),
    "what_if_rope": _statistics,
}


def show(result: xr.Dataset | xr.DataArray, **options: Any) -> go.Figure:
    """The figure of any result: the analysis that made it decides which.

    Distances are merged into bins first (exactly, see `interp.common.binning`), so that a figure of a long text stays
    light. One variable of a result is drawn by what it is over: heads as a map, distances and positions as curves.
    Several results side by side, as ``xr.concat([a, b], "text")`` makes them, are drawn as their mean, with a band
    from the lowest to the highest around curves; the line under the title says so.

    Args:
        result: what an analysis of `interp` returned, a part of it selected by layer and head, one of its variables,
            or several of them along a dimension of their own.
        **options: passed on to the figure's function: ``title``, ``highlight`` (the heads to pick out, as
            (layer, head), or {(layer, head): name}), ``scale`` of maps ("log" or "linear").

    Raises:
        InputError: nothing here knows how to draw it, or a mean of it would say nothing.
    """
    if options.get("title") is not None:
        checks.text("title", options["title"])
    if not isinstance(result, xr.Dataset | xr.DataArray):
        raise InputError(
            f"plots.show draws the Dataset of an analysis or one of its variables, and this is a "
            f"{type(result).__name__}; a Capture is asked first, such as plots.show(positional_bias(cap))"
        )
    check_once(result)
    analysis = result.attrs.get("analysis")
    draw: Callable[..., go.Figure] | None = _FIGURES.get(str(analysis))
    if draw is None and isinstance(result, xr.DataArray):
        draw = show_variable
    if draw is None:
        known = ", ".join(sorted(_FIGURES))
        named = "a Dataset that no analysis marked" if analysis is None else f"the analysis {analysis!r}"
        raise InputError(
            f"no figure for {named}: plots.show draws what these return: {known}; "
            "for anything else use a function of interp.plots, or .plot of xarray"
        )
    try:
        figure = draw(result, **options)
    except KeyError as error:
        if analysis is None:
            raise
        raise InputError(f"the figure of {analysis} needs {error}, which this part of it does not hold") from None
    layout: Any = figure.layout
    if "title" not in options and not layout.title.text:
        finish(figure, str(result.attrs.get("description", "")), layout.height, layout.title.subtitle.text or "")
    return figure


def can_show(result: object) -> bool:
    """Whether `show` has a figure for it, decided without drawing."""
    return isinstance(result, xr.Dataset | xr.DataArray) and str(result.attrs.get("analysis")) in _FIGURES
