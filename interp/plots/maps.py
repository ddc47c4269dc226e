"""Heat maps: numbers per head, pooled attention, exact windows of it with their tokens."""

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from hooks.checks import choice
from hooks.errors import InputError
from interp.common.words import head_name, token_text
from interp.plots import theme
from interp.plots.bands import EDGES
from interp.plots.base import finish, heads_of, in_lines, label_of, names_of, say, with_heads
from interp.plots.given import drawn
from interp.plots.highlight import Highlight, named_heads, outline_cells

Scale = Literal["log", "linear"]
# Attention below a hundred-thousandth is drawn like none.
MAP_DECADES = 5
_MOST_DECADES = 8
_PANELS_ACROSS = 4
_LONGEST_AXIS_TOKEN = 14


@drawn
def layer_head_map(
    values: xr.DataArray,
    *,
    title: str | None = None,
    ceiling: float | None = None,
    scale: Scale = "linear",
    highlight: Highlight = None,
) -> go.Figure:
    """Heat map of one number per head, layers down and heads across; blue and orange where the sign differs.

    Args:
        values: any (layer, head) array; its units decide how numbers are shown.
        title: heading of the figure; by default the array's description.
        ceiling: the value at which the colour is strongest; by default the largest.
        scale: colours in equal steps ("linear") or in powers of ten ("log", for numbers from zero on).
        highlight: heads to frame, as (layer, head), or {(layer, head): name}.

    Raises:
        InputError: a logarithmic scale for numbers below zero, another scale, or a head that is not there.
    """
    log, values = _is_log(scale), with_heads(values)
    named, labels = named_heads(highlight, values), names_of(values)
    trace: Any = _panel(values, ceiling, labels, named)
    trace.colorbar = {**theme.BAR, **_bar_title(values, scale)}
    figure = go.Figure(_in_decades(trace) if log else trace)
    _layer_head_axes(figure)
    outline_cells(figure, values, named, labels=True)
    if not np.isfinite(trace.z).any():
        say(figure, "nothing to draw: no head has a number here")
    title = title or values.attrs.get("description") or str(values.name or "")
    note = str(values.attrs.get("averaged", ""))
    return finish(figure, title, int(np.clip(110 + 20 * values.sizes["layer"], 240, 900)), note)


@drawn
def head_scores(summary: xr.Dataset, *, title: str = "Head scores", highlight: Highlight = None) -> go.Figure:
    """Every named score of a Dataset as a small layer × head heat map of its own.

    Args:
        summary: variables over (layer, head), as `head_summary` and `compare` return; others are left out.
        title: heading of the figure.
        highlight: heads to frame, as (layer, head), or {(layer, head): name}.

    Raises:
        InputError: no variable is a number for each head.
    """
    summary = with_heads(summary)
    named, labels = named_heads(highlight, summary), names_of(summary)
    names = [str(name) for name, v in summary.data_vars.items() if set(v.dims) == {"layer", "head"} and _numeric(v)]
    names = [name for name in names if not name.endswith(EDGES)]
    if not names:
        raise InputError(f"no variable over (layer, head) to draw among {', '.join(map(str, summary)) or 'none'}")
    across = min(_PANELS_ACROSS, len(names))
    down = math.ceil(len(names) / across)
    panel = int(np.clip(40 + 9 * summary.sizes["layer"], 110, 300))
    height = 130 + down * (panel + 66)
    panels: Any = [_panel(summary[name], None, labels, named) for name in names]
    ticks = [_few_ticks(trace, summary[name]) for trace, name in zip(panels, names, strict=True)]
    longest = max(len(text) for tick in ticks for text in tick["ticktext"])
    figure = make_subplots(
        rows=down,
        cols=across,
        subplot_titles=[in_lines(label_of(summary[name], name.replace("_", " ")), 68 // across) for name in names],
        # Beside each panel stand a colour bar and its numbers, in a figure that may be narrow.
        horizontal_spacing=(30 + 5.5 * longest) / 420 if across > 1 else 0,
        vertical_spacing=66 / (height - 130) if down > 1 else 0,
    )
    for place, name in enumerate(names):
        where: Any = {"row": place // across + 1, "col": place % across + 1}
        trace = panels[place]
        axis: Any = figure.get_subplot(where["row"], where["col"])
        right, (low, high) = axis.xaxis.domain[1], axis.yaxis.domain
        trace.colorbar = {"x": right + 0.004, "y": (low + high) / 2, "len": high - low, "thickness": 6, "xpad": 0}
        trace.colorbar.update({"outlinewidth": 0, "tickfont": {"size": 9}, **ticks[place]})
        figure.add_trace(trace, **where)
        outline_cells(figure, summary[name], named, labels=False, **where)
    figure.update_annotations(font={"size": 11})
    for place in range(len(names)):
        where: Any = {"row": place // across + 1, "col": place % across + 1}
        if not np.isfinite(panels[place].z).any():
            say(figure, "not measured", **where)
        lowest = place + across >= len(names)
        figure.update_xaxes(title="head" if lowest else None, **where)
        figure.update_yaxes(title="layer" if where["col"] == 1 else None, **where)
    _layer_head_axes(figure, tickfont={"size": 9}, nticks=6)
    figure.update_layout(margin={"r": 48})
    return finish(figure, title, height, str(summary.attrs.get("averaged", "")))


@drawn
def pooled_map(cells: xr.DataArray, *, title: str | None = None, scale: Scale = "log") -> go.Figure:
    """A head's attention pooled into cells: queries down, keys right.

    Args:
        cells: mean or largest attention over (map_query, map_key), of one head.
        title: heading of the figure; by default the head's name.
        scale: colours in powers of ten from 10⁻⁵ to 1 ("log") or in equal steps from 0 ("linear").
    """
    values = cells.transpose("map_query", "map_key").values.astype(np.float32)
    figure = go.Figure(_attention_cells(values, cells["map_key"].values, cells["map_query"].values, scale))
    if not np.isfinite(values).any():
        say(figure, "nothing to draw: no cell has a number")
    figure.update_traces(hovertemplate="query %{y:,.0f}, key %{x:,.0f}: %{customdata:.3g}<extra></extra>")
    figure.update_xaxes(title="key position [tokens]", showgrid=False, tickformat=",", constrain="domain")
    figure.update_yaxes(
        title="query position [tokens]",
        showgrid=False,
        tickformat=",",
        autorange="reversed",
        scaleanchor="x",
        constrain="domain",
    )
    return finish(figure, title or f"Pooled {_said(cells)}", 460, str(cells.attrs.get("averaged", "")))


@drawn
def attention_window(pattern: xr.DataArray, *, title: str | None = None, scale: Scale = "log") -> go.Figure:
    """Exact attention of a few queries to a few keys, with their tokens.

    Args:
        pattern: attention over (query, key), as `attention_pattern` returns; coordinates ``query_token`` and
            ``key_token``, if there are any, label the axes.
        title: heading of the figure; by default the head's name.
        scale: colours in powers of ten from 10⁻⁵ to 1 ("log") or in equal steps from 0 ("linear").
    """
    values = pattern.transpose("query", "key").values.astype(np.float32)
    queries, keys = pattern["query"].values, pattern["key"].values
    x, y = np.arange(len(keys)), np.arange(len(queries))
    key_tokens, query_tokens = _tokens(pattern, "key"), _tokens(pattern, "query")
    figure = go.Figure(_attention_cells(values, x, y, scale))
    names = (("query", queries, query_tokens), ("key", keys, key_tokens))
    said = [
        [f"{what} {int(at)} {text}".rstrip() for at, text in zip(place, texts, strict=True)]
        for what, place, texts in names
    ]
    figure.update_traces(
        text=np.asarray([[f"{query}<br>{key}" for key in said[1]] for query in said[0]]),
        hovertemplate="%{text}<br>attention %{customdata:.4g}<extra></extra>",
    )
    for update, place, texts in ((figure.update_xaxes, keys, key_tokens), (figure.update_yaxes, queries, query_tokens)):
        step = max(1, math.ceil(len(place) / 48))
        labels = [f"{text} {int(at)}".lstrip() for at, text in zip(place, texts, strict=True)]
        update(tickvals=np.arange(len(place))[::step], ticktext=labels[::step], tickfont={"size": 10}, showgrid=False)
    figure.update_xaxes(title="key [position in tokens]", tickangle=-90)
    figure.update_yaxes(title="query [position in tokens]", autorange="reversed")
    height = int(np.clip(200 + 14 * len(queries), 320, 900))
    return finish(figure, title or f"Exact {_said(pattern)}", height, str(pattern.attrs.get("averaged", "")))


def _attention_cells(values: np.ndarray, x: np.ndarray, y: np.ndarray, scale: Scale) -> go.Heatmap:
    """Attention on a logarithmic or linear colour scale; customdata holds the numbers themselves."""
    cells = go.Heatmap(x=x, y=y, customdata=values, colorscale=theme.SHADE_SCALE, hoverongaps=False)
    bar = {"title": {"text": f"attention, {scale} scale", "side": "right"}, **theme.BAR}
    if not _is_log(scale):
        return cells.update(z=values, zmin=0, zmax=float(np.nanmax(values, initial=0)) or 1, colorbar=bar)
    with np.errstate(divide="ignore"):
        exponents = np.maximum(np.log10(values), -MAP_DECADES)
    bar |= {
        "tickvals": list(range(-MAP_DECADES, 1)),
        "ticktext": ["≤ 10⁻⁵", "10⁻⁴", "0.001", "0.01", "0.1", "1"],
    }
    return cells.update(z=exponents.astype(np.float32), zmin=-MAP_DECADES, zmax=0, colorbar=bar)


def _is_log(scale: Scale) -> bool:
    """Whether colours go by powers of ten, of a scale that was checked."""
    return choice("scale", scale, get_args(Scale)) == "log"


def _in_decades(trace: Any) -> go.Heatmap:
    """A layer × head map with colours in powers of ten below its strongest; the hover keeps the numbers themselves."""
    values, top = np.asarray(trace.z), float(trace.zmax)
    if trace.zmin < 0:
        raise InputError(f'scale="log": {float(np.nanmin(values)):.4g} is below zero; scale="linear" shows both signs')
    low = values[values > 0].min(initial=top)
    floor = max(float(np.floor(np.log10(low))), float(np.ceil(np.log10(top))) - _MOST_DECADES)
    with np.errstate(divide="ignore"):
        exponents = np.maximum(np.log10(values), floor)
    steps = np.arange(floor, np.floor(np.log10(top)) + 1)
    said = [f"{10.0**step:.4g}" for step in steps]
    said[:1] = ["≤ " + said[0]] if (values < 10**floor).any() else said[:1]
    shown = str(trace.hovertemplate).replace("%{z:", "%{customdata:")
    trace.update(z=exponents.astype(np.float32), customdata=values, zmin=floor, zmax=np.log10(top), hovertemplate=shown)
    trace.colorbar.update(tickvals=steps, ticktext=said, tickformat=None)
    return trace


def _tokens(pattern: xr.DataArray, axis: str) -> list[str]:
    """The tokens along an axis, fit to be shown; empty where the array does not hold them."""
    name = f"{axis}_token"
    if name not in pattern.coords:
        return [""] * pattern.sizes[axis]
    return [token_text(token, _LONGEST_AXIS_TOKEN) for token in pattern[name].values]


def _said(data: xr.DataArray) -> str:
    """What an array says it is: the head that it was selected from, or its description."""
    if "layer" in data.coords and "head" in data.coords and data["layer"].ndim == data["head"].ndim == 0:
        return f"attention of {head_name(data['layer'].item(), data['head'].item())}"
    return str(data.attrs.get("description", "attention of one head")) if "analysis" in data.attrs else "attention"


def _panel(
    values: xr.DataArray, ceiling: float | None, labels: list[str], named: Mapping[tuple[int, int], str]
) -> go.Heatmap:
    """One layer × head heat map."""
    z = values.transpose("layer", "head").values.astype(np.float32)
    finite = z[np.isfinite(z)]
    top = ceiling if ceiling is not None else float(np.abs(finite).max()) if finite.size else 1.0
    signed = bool((finite < 0).any())
    shown = ".1%" if _is_share(values) else ".4g"
    said = [named.get(head, label) for head, label in zip(heads_of(values), labels, strict=True)]
    return go.Heatmap(
        z=z,
        x=[str(head) for head in values["head"].values],
        y=[str(layer) for layer in values["layer"].values],
        zmin=-top if signed else 0,
        zmax=top or 1.0,
        colorscale=theme.DIVERGING_SCALE if signed else theme.SHADE_SCALE,
        xgap=1,
        ygap=1,
        hoverongaps=False,
        text=np.reshape(np.asarray(said, dtype=object), z.shape),
        hovertemplate=f"%{{text}}: %{{z:{shown}}}<extra></extra>",
    )


def _layer_head_axes(figure: go.Figure, **ticks: Any) -> None:
    """Layers down, heads across."""
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False, **ticks)
    figure.update_xaxes(type="category", showgrid=False, **ticks)
    if not ticks:
        figure.update_layout(xaxis={"title": "head"}, yaxis={"title": "layer"})


def _few_ticks(trace: Any, values: xr.DataArray) -> dict:
    """Three ticks in few letters, which fit beside a small panel whatever their size: −2e-15, 0, 2e-15."""
    low, high = float(trace.zmin), float(trace.zmax)
    places = [low, (low + high) / 2, high]
    write = ".0%" if _is_share(values) and high >= 0.02 else ".2g"
    return {
        "tickvals": places,
        "ticktext": [f"{place:{write}}".replace("e-0", "e-").replace("-", "−") for place in places],
    }


def _bar_format(values: xr.DataArray) -> dict:
    """How a colour bar writes its numbers."""
    return {"tickformat": ".0%"} if _is_share(values) else {}


def _bar_title(values: xr.DataArray, scale: Scale) -> dict:
    """The unit beside the colour bar, where there is one, and that its steps are powers of ten."""
    words = [label_of(values, "").strip(" []"), "log scale" if _is_log(scale) else ""]
    said = ", ".join(word for word in words if word)
    return _bar_format(values) | ({"title": {"text": said, "side": "right"}} if said else {})


def _is_share(values: xr.DataArray) -> bool:
    """Whether a number is a share that reads best in per cent: dimensionless and between −1 and 1."""
    if values.attrs.get("units") != "1":
        return False
    array = values.values
    return bool(np.nanmax(np.abs(array), initial=0.0) <= 1 + 1e-6)


def _numeric(values: xr.DataArray) -> bool:
    """Whether a variable holds numbers."""
    return values.dtype.kind in "fiub"
