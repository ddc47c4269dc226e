"""Figures of what distance does to attention: curves, shares, and two variants of the same heads side by side."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.common.words import head_name
from interp.plots import theme
from interp.plots.base import (
    DECADES,
    depth,
    distance_axis,
    distance_centres,
    distance_edges,
    distance_labels,
    finish,
    heads_of,
    layer_colour_bar,
    log_range,
    mark_windows,
    positive,
    with_heads,
)
from interp.plots.loss import add_losses

_MANY_LINES = 100


def attention_by_distance(
    binned: xr.Dataset, *, title: str = "Attention by distance", y_range: tuple[float, float] | None = None
) -> go.Figure:
    """One line per head: mean attention of a pair against its distance, both axes logarithmic.

    Args:
        binned: a `bin_distances` Dataset, of the layers to draw.
        title: heading of the figure.
        y_range: smallest and largest attention to show, so that two figures compare.
    """
    figure = go.Figure()
    binned = with_heads(binned)
    add_curves(figure, binned, "attention_mean")
    mark_windows(figure, binned)
    key_to_colours(figure, binned)
    figure.update_yaxes(type="log", title="mean attention of a pair", **log_range(y_range), **DECADES)
    distance_axis(figure, binned)
    return finish(figure, title, height=400)


def attention_by_variant(
    binned: xr.Dataset,
    *,
    loss: xr.Dataset | None = None,
    title: str = "Attention by distance, as run and what if",
    y_range: tuple[float, float] | None = (1e-9, 1.0),
) -> go.Figure:
    """The curves of `attention_by_distance`, one panel for each variant on the same axes: RoPE beside ALiBi, say.

    Args:
        binned: a `bin_distances` Dataset with a leading dimension ``variant``.
        loss: loss_mean and loss_stderr over (variant, position_bin), drawn below; those that are NaN have no line.
        title: heading of the figure.
        y_range: smallest and largest attention to show; None shows all, which under ALiBi is dozens of decades.
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
        add_curves(figure, part, "attention_mean", row=1, col=column)
        distance_axis(figure, part, row=1, col=column)
    key_to_colours(figure, binned)
    figure.update_yaxes(type="log", **log_range(y_range), **DECADES, row=1)
    figure.update_yaxes(title="mean attention of a pair", row=1, col=1)
    if loss is not None:
        add_losses(figure, loss, row=2, col=1)
    finish(figure, title, height=420 if loss is None else 680)
    return figure.update_layout(margin={"t": 76})


def attention_share_by_head(
    binned: xr.Dataset, *, title: str = "Where each head spends its attention", ceiling: float | None = None
) -> go.Figure:
    """One row per head: how its attention is shared out over distances; dark is much.

    Args:
        binned: a `bin_distances` Dataset, of the layers to draw.
        title: heading of the figure.
        ceiling: the share at which the colour is darkest, so that two figures compare.
    """
    binned = with_heads(binned)
    share = binned["attention_share"].transpose("layer", "head", "distance_bin").values
    rows = [head_name(*pair) for pair in heads_of(binned)]
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
    head_rows(figure, binned)
    mark_windows(figure, binned)
    distance_axis(figure, binned)
    return finish(figure, title, height=int(np.clip(110 + 8 * len(rows), 320, 900)))


def head_rows(figure: go.Figure, data: xr.Dataset) -> None:
    """A vertical axis with one row for each head, layers downwards, a thin line between layers."""
    per_layer, layers = data.sizes["head"], data["layer"].values
    starts = np.arange(0, per_layer * len(layers), per_layer)
    step = max(1, round(len(layers) / 18))
    figure.update_yaxes(
        title="layer",
        tickvals=(starts + (per_layer - 1) / 2)[::step],
        ticktext=[str(layer) for layer in layers[::step]],
        autorange="reversed",
        showgrid=False,
    )
    for start in starts[1:]:
        figure.add_hline(y=start - 0.5, line={"color": theme.GRID, "width": 1})


def add_curves(figure: go.Figure, binned: xr.Dataset, name: str, **where: int) -> None:
    """One line per head of a variable by distance, coloured by the head's layer."""
    x, labels = distance_centres(binned), distance_labels(binned)
    heads = heads_of(binned)
    values = positive(binned[name].transpose("layer", "head", ...).values)
    for (layer, head), curve in zip(heads, values.reshape(len(heads), -1), strict=True):
        figure.add_scatter(
            x=x,
            y=curve,
            # A head that sees one distance only would be an invisible line.
            mode="lines" if np.isfinite(curve).sum() > 1 else "markers",
            line={"color": theme.layer_colour(depth(layer, _n_layers(binned))), "width": 1.4},
            marker={"size": 5},
            opacity=0.75 if len(heads) <= _MANY_LINES else 0.45,
            customdata=labels,
            hovertemplate=f"{head_name(layer, head)}, Δ %{{customdata}}: %{{y:.3g}}<extra></extra>",
            name=head_name(layer, head),
            showlegend=False,
            **where,
        )


def key_to_colours(figure: go.Figure, binned: xr.Dataset) -> None:
    """The key to the lines' colours, where there is more than one layer."""
    if binned.sizes["layer"] > 1:
        layer_colour_bar(figure, binned["layer"].values, _n_layers(binned))


def _n_layers(binned: xr.Dataset) -> int:
    """Layers of the model, which set the colours, so that a figure of some layers has those of all."""
    return int(binned.attrs.get("n_layers", binned["layer"].values.max() + 1))


def _words(name: str) -> str:
    """A variant's name as a heading."""
    return name.replace("_", " ")
