"""The figure of a single variable, by what it is over: heads, distances, positions, or a panel for each stage."""

from typing import Any

import plotly.graph_objects as go
import xarray as xr

from hooks.errors import InputError
from interp.common.words import visible_text
from interp.plots.along_text import rows_by_position
from interp.plots.bands import caption
from interp.plots.base import distance_axis, finish, label_of, with_heads
from interp.plots.causes import effect_map
from interp.plots.curves import add_curves, along_distance, key_to_colours
from interp.plots.highlight import Highlight
from interp.plots.maps import attention_window, head_scores, layer_head_map, pooled_map
from interp.plots.needle import needle_cells
from interp.plots.reduced import binned_by_position, thinned
from interp.plots.several import OWN, averaged, averaged_array

_MOST_PANELS = 12
_MAPS = {frozenset({"map_query", "map_key"}): pooled_map, frozenset({"query", "key"}): attention_window}
_MAPS |= {frozenset(dims): needle_cells for dims in ({"length", "depth"}, {"length"}, {"depth"})}
_PANELS = ("variant", "stage", "dtype", "shift", "part", "capture", "sink_size", "q", "level", "gap")


def show_variable(values: xr.DataArray, **options: Any) -> go.Figure:
    """One variable of a result, drawn by what it is over.

    Args:
        values: the variable; several side by side along a dimension of their own are averaged.
        **options: passed on to the figure's function.

    Raises:
        InputError: no figure shows such a variable; the message says what it is.
    """
    if values.dtype.kind not in "fiub":
        raise InputError(f"{_said(values)} holds words, not numbers: print it, or use .values")
    captures = {"capture"} if set(values.dims) <= {"capture", "layer", "head"} else set()  # a map for each of them
    over = {str(dim) for dim in values.dims if dim in OWN | captures} - {"layer", "head"}
    options = {"title": _title(values)} | options
    if not over and {"layer", "head"} & set(values.dims):
        return layer_head_map(averaged_array(values), **options)
    if over == {"map_query", "map_key"} and str(values.name).startswith("effect"):
        return effect_map(one_head(averaged_array(values)), **options)
    if frozenset(over) in _MAPS:
        return _MAPS[frozenset(over)](one_head(averaged_array(values)), **options)
    if over in ({"distance"}, {"distance_bin"}):
        return _by_distance(values, **options)
    if over in ({"query"}, {"key"}, {"position"}, {"position_bin"}):
        return _along_text(values, *over, **options)
    if len(over) == 1 and over <= set(_PANELS) and {"layer", "head"} & set(values.dims):
        return _panels(values, *over, **options)
    raise InputError(
        f"no figure shows {_said(values)}"
        + (f" = {values.item():.6g}: it is one number" if not values.dims else "; select one of them with .sel")
    )


def one_head(values: xr.DataArray) -> xr.DataArray:
    """The map of the only head that an array holds.

    Raises:
        InputError: there are several.
    """
    several = [dim for dim in ("variant", "layer", "head") if values.sizes.get(dim, 1) > 1]
    if several:
        raise InputError(
            f"{_said(values)} holds the maps of several heads: select one with "
            f".sel({', '.join(f'{dim}=…' for dim in several)})"
        )
    return values.squeeze([dim for dim in ("variant", "layer", "head") if dim in values.dims])


def _by_distance(values: xr.DataArray, *, title: str, highlight: Highlight = None) -> go.Figure:
    """A line per head against distance; shares and counts on a logarithmic axis, scores on a linear one."""
    name = str(values.name or "value")
    data = with_heads(averaged(thinned(values.rename(name).to_dataset())))
    log = not bool((data[name] < 0).any()) and values.attrs.get("units") != "score"
    figure = go.Figure()
    add_curves(figure, data, name, along_distance(data), highlight=highlight, log=log)
    key_to_colours(figure, data)
    figure.update_yaxes(title=label_of(values, name.replace("_", " ")), type="log" if log else "linear")
    distance_axis(figure, data)
    return finish(figure, title, 400, caption(figure, data))


def _along_text(values: xr.DataArray, dim: str, **options: Any) -> go.Figure:
    """A line per head along the text."""
    name = str(values.name or "value")
    data = values.rename(name).to_dataset()
    if dim != "position_bin":
        data = binned_by_position(data, [name], dim)
    elif "first_position" not in data.coords:
        raise InputError(f"{_said(values)} has lost first_position and last_position, which say where its bins lie")
    return rows_by_position(averaged(data), names=[name], **options)


def _panels(values: xr.DataArray, dim: str, **options: Any) -> go.Figure:
    """A layer × head map for each value of one more dimension."""
    if values.sizes[dim] > _MOST_PANELS:
        raise InputError(f"{_said(values)} would be {values.sizes[dim]} maps: select one with .sel({dim}=…)")
    values = averaged_array(values, OWN | {dim})
    names = values[dim].values if dim in values.coords else range(values.sizes[dim])
    parts = {f"{dim} {visible_text(name)}": values.isel({dim: at}, drop=True) for at, name in enumerate(names)}
    return head_scores(xr.Dataset(parts, attrs=values.attrs), **options)


def _title(values: xr.DataArray) -> str:
    """What a variable is, as a heading: its first words, or its name."""
    said = str(values.attrs.get("description") or values.name or "values without a name")
    return said[0].upper() + said[1:]


def _said(values: xr.DataArray) -> str:
    """A variable as an error names it."""
    what = f" ({values.attrs['description']})" if values.attrs.get("description") else ""
    over = f" over ({', '.join(map(str, values.dims))})" if values.dims else ""
    return f"the variable {values.name!r}{what}{over}" if values.name else f"this array{what}{over}"
