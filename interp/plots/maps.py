"""Heat maps: numbers per head, pooled attention, exact windows of it with their tokens."""

import math
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.common.words import head_name, token_text
from interp.plots import theme
from interp.plots.base import finish, label_of, with_heads

# Attention below a hundred-thousandth is drawn like none.
MAP_DECADES = 5
_PANELS_ACROSS = 4
_LONGEST_AXIS_TOKEN = 14


def layer_head_map(values: xr.DataArray, *, title: str | None = None, ceiling: float | None = None) -> go.Figure:
    """Heat map of one number per head, layers down and heads across; blue and orange where the sign differs.

    Args:
        values: any (layer, head) array; its units decide how numbers are shown.
        title: heading of the figure; by default the array's description.
        ceiling: the value at which the colour is strongest; by default the largest.
    """
    values = with_heads(values)
    figure = go.Figure(_panel(values, ceiling))
    figure.update_traces(colorbar={"thickness": 10, "len": 1, "outlinewidth": 0, **_bar_title(values)})
    _layer_head_axes(figure, values)
    title = title or values.attrs.get("description") or str(values.name or "")
    return finish(figure, title, height=int(np.clip(110 + 20 * values.sizes["layer"], 240, 900)))


def head_scores(summary: xr.Dataset, *, title: str = "Head scores") -> go.Figure:
    """Every named score of a Dataset as a small layer × head heat map of its own.

    Args:
        summary: variables over (layer, head), as `head_summary` and `compare` return; others are left out.
        title: heading of the figure.
    """
    summary = with_heads(summary)
    names = [str(name) for name, v in summary.data_vars.items() if set(v.dims) == {"layer", "head"} and _numeric(v)]
    across = min(_PANELS_ACROSS, max(len(names), 1))
    down = max(1, math.ceil(len(names) / across))
    panel = int(np.clip(40 + 9 * summary.sizes["layer"], 110, 300))
    height = 80 + down * (panel + 56)
    figure = make_subplots(
        rows=down,
        cols=across,
        subplot_titles=[name.replace("_", " ") for name in names],
        horizontal_spacing=0.07,
        vertical_spacing=52 / max(height - 80, 1) if down > 1 else 0,
    )
    for place, name in enumerate(names):
        row, column = place // across + 1, place % across + 1
        trace = _panel(summary[name], None)
        axis: Any = figure.get_subplot(row, column)
        right, (low, high) = axis.xaxis.domain[1], axis.yaxis.domain
        trace.colorbar = {"x": right + 0.004, "y": (low + high) / 2, "len": high - low, "thickness": 6, "xpad": 0}
        trace.colorbar.update({"outlinewidth": 0, "tickfont": {"size": 9}, "nticks": 4, **_bar_format(summary[name])})
        figure.add_trace(trace, row=row, col=column)
    _layer_head_axes(figure, summary)
    figure.update_xaxes(title=None, tickfont={"size": 9}, nticks=6)
    figure.update_yaxes(title=None, tickfont={"size": 9}, nticks=8)
    figure.update_annotations(font={"size": 12})
    finish(figure, f"{title} (layers down, heads across)", height)
    return figure.update_layout(margin={"t": 76, "l": 40, "r": 40})


def pooled_map(cells: xr.DataArray, *, title: str | None = None) -> go.Figure:
    """A head's attention pooled into cells: queries down, keys right, colours logarithmic from 10⁻⁵ to 1.

    Args:
        cells: mean or largest attention over (map_query, map_key), of one head.
        title: heading of the figure; by default the head's name.
    """
    values = cells.transpose("map_query", "map_key").values.astype(np.float32)
    figure = go.Figure(_attention_cells(values, cells["map_key"].values, cells["map_query"].values))
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
    return finish(figure, title or f"Pooled {_said(cells)}", height=460)


def attention_window(pattern: xr.DataArray, *, title: str | None = None) -> go.Figure:
    """Exact attention of a few queries to a few keys, with their tokens.

    Args:
        pattern: attention over (query, key), as `attention_pattern` returns; coordinates ``query_token`` and
            ``key_token``, if there are any, label the axes.
        title: heading of the figure; by default the head's name.
    """
    values = pattern.transpose("query", "key").values.astype(np.float32)
    queries, keys = pattern["query"].values, pattern["key"].values
    x, y = np.arange(len(keys)), np.arange(len(queries))
    key_tokens, query_tokens = _tokens(pattern, "key"), _tokens(pattern, "query")
    figure = go.Figure(_attention_cells(values, x, y))
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
    figure.update_xaxes(title="key", tickangle=-90)
    figure.update_yaxes(title="query", autorange="reversed")
    height = int(np.clip(200 + 14 * len(queries), 320, 900))
    return finish(figure, title or f"Exact {_said(pattern)}", height)


def _attention_cells(values: np.ndarray, x: np.ndarray, y: np.ndarray) -> go.Heatmap:
    """Attention on a logarithmic colour scale; customdata holds the numbers themselves."""
    with np.errstate(divide="ignore"):
        exponents = np.maximum(np.log10(values), -MAP_DECADES)
    ticks = list(range(-MAP_DECADES, 1))
    return go.Heatmap(
        z=exponents.astype(np.float32),
        x=x,
        y=y,
        customdata=values,
        zmin=-MAP_DECADES,
        zmax=0,
        colorscale=theme.SHADE_SCALE,
        hoverongaps=False,
        colorbar={
            "title": {"text": "attention", "side": "right"},
            "tickvals": ticks,
            "ticktext": ["≤ 10⁻⁵", "10⁻⁴", "0.001", "0.01", "0.1", "1"],
            "thickness": 10,
            "len": 1,
            "outlinewidth": 0,
        },
    )


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


def _panel(values: xr.DataArray, ceiling: float | None) -> go.Heatmap:
    """One layer × head heat map."""
    z = values.transpose("layer", "head").values.astype(np.float32)
    finite = z[np.isfinite(z)]
    top = ceiling if ceiling is not None else float(np.abs(finite).max()) if finite.size else 1.0
    signed = bool((finite < 0).any())
    shown = ".1%" if _is_share(values) else ".4g"
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
        hovertemplate=f"L%{{y}} H%{{x}}: %{{z:{shown}}}<extra></extra>",
    )


def _layer_head_axes(figure: go.Figure, values: xr.Dataset | xr.DataArray) -> None:
    """Layers down, heads across."""
    figure.update_yaxes(title="layer", autorange="reversed", type="category", showgrid=False)
    figure.update_xaxes(title="head", type="category", showgrid=False)


def _bar_format(values: xr.DataArray) -> dict:
    """How a colour bar writes its numbers."""
    return {"tickformat": ".0%"} if _is_share(values) else {}


def _bar_title(values: xr.DataArray) -> dict:
    """The unit beside the colour bar, where there is one."""
    unit = label_of(values, "").strip(" []")
    return _bar_format(values) | ({"title": {"text": unit, "side": "right"}} if unit else {})


def _is_share(values: xr.DataArray) -> bool:
    """Whether a number is a share that reads best in per cent: dimensionless and between −1 and 1."""
    if values.attrs.get("units") != "1":
        return False
    array = values.values
    return bool(np.nanmax(np.abs(array), initial=0.0) <= 1 + 1e-6)


def _numeric(values: xr.DataArray) -> bool:
    """Whether a variable holds numbers."""
    return values.dtype.kind in "fiub"
