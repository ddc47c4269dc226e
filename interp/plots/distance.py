"""Figures of what distance does to attention: curves, shares, and two variants of the same heads side by side."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.plots import theme
from interp.plots.bands import caption
from interp.plots.base import (
    DECADES,
    distance_axis,
    distance_edges,
    distance_labels,
    finish,
    log_range,
    mark_windows,
    names_of,
    with_heads,
)
from interp.plots.curves import add_curves, along_distance, key_to_colours
from interp.plots.given import drawn
from interp.plots.highlight import Highlight, head_ticks, mark_places, named_heads
from interp.plots.loss import add_losses

# Panels side by side whose axes have room for a title each, in a figure of 520 CSS pixels.
_TITLED = 2


@drawn
def attention_by_distance(
    binned: xr.Dataset,
    *,
    title: str = "Attention by distance",
    y_range: tuple[float, float] | None = None,
    highlight: Highlight = None,
) -> go.Figure:
    """One line per head: mean attention of a pair against its distance, both axes logarithmic.

    Args:
        binned: a `bin_distances` Dataset, of the layers to draw; with a band where it holds one.
        title: heading of the figure.
        highlight: heads to pick out, as (layer, head), or {(layer, head): name}.
        y_range: smallest and largest attention to show, so that two figures compare.
    """
    figure = go.Figure()
    binned = with_heads(binned)
    add_curves(figure, binned, "attention_mean", along_distance(binned), highlight=highlight)
    mark_windows(figure, binned)
    key_to_colours(figure, binned)
    figure.update_yaxes(type="log", title="mean attention of a pair", **log_range(y_range), **DECADES)
    distance_axis(figure, binned)
    return finish(figure, title, 400, caption(figure, binned))


@drawn
def attention_by_variant(
    binned: xr.Dataset,
    *,
    loss: xr.Dataset | None = None,
    title: str = "Attention by distance, as run and what if",
    y_range: tuple[float, float] | None = (1e-9, 1.0),
    highlight: Highlight = None,
) -> go.Figure:
    """The curves of `attention_by_distance`, one panel for each variant on the same axes: RoPE beside ALiBi, say.

    Args:
        binned: a `bin_distances` Dataset with a leading dimension ``variant``.
        loss: loss_mean and loss_stderr over (variant, position_bin), drawn below; those that are NaN have no line.
        title: heading of the figure.
        y_range: smallest and largest attention to show; None shows all, which under ALiBi is dozens of decades.
        highlight: heads to pick out, as (layer, head), or {(layer, head): name}.
    """
    variants = [str(name) for name in binned["variant"].values]
    panels: list[list[dict | None]] = [[{} for _ in variants]]
    if loss is not None:
        panels.append([{"colspan": len(variants)}, *[None for _ in variants[1:]]])
    figure = make_subplots(
        rows=len(panels),
        cols=len(variants),
        specs=panels,
        shared_yaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=0.15,
        subplot_titles=[_words(v) for v in variants],
    )
    binned = with_heads(binned)
    for column, variant in enumerate(variants, start=1):
        part = binned.sel(variant=variant)
        add_curves(figure, part, "attention_mean", along_distance(part), highlight=highlight, row=1, col=column)
        distance_axis(figure, part, row=1, col=column)
    if len(variants) > _TITLED:
        # Narrower than their axes' titles: one in the middle speaks for all.
        middle = (len(variants) + 1) // 2
        for column in set(range(1, len(variants) + 1)) - {middle}:
            figure.update_xaxes(title=None, row=1, col=column)
    key_to_colours(figure, binned)
    figure.update_yaxes(type="log", **log_range(y_range), **DECADES, row=1)
    figure.update_yaxes(title="mean attention of a pair", row=1, col=1)
    if loss is not None:
        add_losses(figure, loss, row=2, col=1)
    return finish(figure, title, 420 if loss is None else 680, caption(figure, binned))


@drawn
def attention_share_by_head(
    binned: xr.Dataset,
    *,
    title: str = "Where each head spends its attention",
    ceiling: float | None = None,
    highlight: Highlight = None,
) -> go.Figure:
    """One row per head: how its attention is shared out over distances; dark is much.

    Args:
        binned: a `bin_distances` Dataset, of the layers to draw.
        title: heading of the figure.
        ceiling: the share at which the colour is darkest, so that two figures compare.
        highlight: heads to pick out, as (layer, head), or {(layer, head): name}.
    """
    binned = with_heads(binned)
    share = binned["attention_share"].transpose("layer", "head", "distance_bin").values
    rows = names_of(binned)
    share = share.reshape(len(rows), -1).astype(np.float32)
    figure = go.Figure(
        go.Heatmap(
            z=share,
            x=distance_edges(binned),
            y=np.arange(len(rows)),
            zmin=0,
            zmax=ceiling,
            colorscale=theme.SHADE_SCALE,
            customdata=np.broadcast_to(distance_labels(binned), share.shape),
            text=np.broadcast_to(np.asarray(rows)[:, None], share.shape),
            hovertemplate="%{text}, Δ %{customdata}: %{z:.1%}<extra></extra>",
            colorbar={
                "title": {"text": "share", "side": "right"},
                "tickformat": ".0%",
                "thickness": 10,
                "len": 1,
                "outlinewidth": 0,
            },
        )
    )
    head_rows(figure, binned, highlight)
    mark_windows(figure, binned)
    distance_axis(figure, binned)
    return finish(figure, title, int(np.clip(110 + 8 * len(rows), 320, 900)), caption(figure, binned))


def head_rows(figure: go.Figure, data: xr.Dataset, highlight: Highlight = None) -> None:
    """A vertical axis with one row for each head, layers downwards, a thin line between layers."""
    per_layer, layers, named = data.sizes["head"], data["layer"].values, named_heads(highlight, data)
    figure.update_yaxes(
        title="layer", **head_ticks(data, 18, named, across=False), autorange="reversed", showgrid=False
    )
    for start in np.arange(per_layer, per_layer * len(layers), per_layer):
        figure.add_hline(y=start - 0.5, line={"color": theme.GRID, "width": 1})
    mark_places(figure, data, named, across=False)


def _words(name: str) -> str:
    """A variant's name as a heading."""
    return name.replace("_", " ")
