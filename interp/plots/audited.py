"""Figures of an audit: wavelengths against what is seen, what schedules change, what is proven, what heads can do."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.common.words import KIND_NAME, head_name
from interp.plots import theme
from interp.plots.bands import caption
from interp.plots.base import DECADES, distance_axis, finish, heads_of, names_of, positive, say, with_heads
from interp.plots.curves import add_curves, along_distance, key_to_colours
from interp.plots.distance import head_rows
from interp.plots.given import drawn
from interp.plots.highlight import Highlight, named_heads
from interp.plots.pairs import add_pair_scores, decade_ticks, pair_name


@drawn
def wavelengths(rotations: xr.Dataset, *, title: str = "Wavelength of every frequency pair") -> go.Figure:
    """One point per pair: how many tokens a turn takes, beside how far the layers see.

    A pair above the dotted line of its colour never completes a turn: a longer text brings angles that are new to it.

    Args:
        rotations: the ``rotations`` of an audit.
        title: heading of the figure.
    """
    rotations = rotations if "rotation" in rotations.dims else rotations.expand_dims("rotation")
    figure, alone = go.Figure(), rotations.sizes["rotation"] == 1
    for place, kind in enumerate(rotations["rotation"].values.tolist()):
        one = rotations.sel(rotation=kind)
        colour = theme.KIND_COLOUR.get(kind, theme.SERIES[place])
        name = "all layers that turn" if alone else f"{KIND_NAME.get(kind, kind)} layers"
        figure.add_scatter(
            x=one["pair"].values,
            y=positive(np.where(np.isfinite(one["wavelength"].values), one["wavelength"].values, np.nan)),
            mode="markers",
            marker={"color": colour, "size": 5, "symbol": place},
            name=name,
            showlegend=True,
            hovertemplate=f"{name}, pair %{{x}}: %{{y:,.4~g}} tokens<extra></extra>",
        )
        span = int(one["span"])
        figure.add_scatter(
            x=[float(rotations["pair"].min()), float(rotations["pair"].max())],
            y=[span, span],
            mode="lines",
            line={"color": colour, "width": 1.4, "dash": "dot"},
            showlegend=False,
            hoverinfo="skip",
        )
        figure.add_annotation(
            x=float(rotations["pair"].min()),
            y=float(np.log10(span)),
            xanchor="left",
            yanchor="bottom",
            showarrow=False,
            text=f"{span:,} tokens seen",
            font={"size": 11, "color": theme.QUIET},
        )
    if not rotations.sizes["rotation"]:
        say(figure, "nothing to draw: no layer turns q and k")
    figure.update_xaxes(title="pair, fast → slow", showgrid=False)
    figure.update_yaxes(type="log", title="wavelength [tokens]", **DECADES)
    return finish(figure, title, 400, _slow(rotations))


@drawn
def schedule_changes(schedules: xr.Dataset, *, title: str | None = None) -> go.Figure:
    """A line per schedule: how fast each pair would turn, as a share of what the plain base gives it.

    Args:
        schedules: the ``schedules`` of an audit.
        title: heading of the figure.
    """
    schedules = schedules if "rotation" in schedules.dims else schedules.expand_dims("rotation")
    kinds = schedules["rotation"].values.tolist()
    headings = [f"{KIND_NAME.get(kind, kind)} layers" for kind in kinds] if len(kinds) > 1 else None
    figure = make_subplots(cols=max(len(kinds), 1), shared_yaxes=True, horizontal_spacing=0.06, subplot_titles=headings)
    for column, kind in enumerate(kinds, start=1):
        part = schedules.sel(rotation=kind)
        for place, name in enumerate(part["schedule"].values.tolist()):
            y = part["kept"].sel(schedule=name).values
            if not np.isfinite(y).any():
                continue
            figure.add_scatter(
                x=part["pair"].values,
                y=y,
                mode="lines" if np.isfinite(y).sum() > 1 else "markers",
                line={"color": theme.SERIES[place % len(theme.SERIES)], "width": 3 if name == "own" else 1.6},
                marker={"size": 5},
                name="as it is" if name == "own" else name,
                legendgroup=name,
                showlegend=column == 1,
                hovertemplate=f"{name}, pair %{{x}}: %{{y:.3g}}<extra></extra>",
                row=1,
                col=column,
            )
    figure.update_annotations(font={"size": 13})
    figure.update_xaxes(title="pair, fast → slow", showgrid=False)
    figure.update_yaxes(range=[0, 1.08])
    figure.update_yaxes(title="speed, 1: the plain base's", row=1, col=1)
    if not kinds:
        say(figure, "nothing to draw: no layer turns q and k")
    factor = schedules.attrs.get("factor")
    said = "What schedules change" + (f", stretched {factor:g} ×" if factor else "")
    return finish(figure, title or said, 360)


@drawn
def proven_scores(
    layers: xr.Dataset, *, title: str = "The largest score of any text", highlight: Highlight = None
) -> go.Figure:
    """A line per head: what the weights prove at each distance.

    Args:
        layers: the ``layers`` of an audit.
        title: heading of the figure.
        highlight: heads to pick out, as (layer, head), or {(layer, head): name}.
    """
    layers = with_heads(layers)
    layers = layers if "distance" in layers.dims else layers.expand_dims("distance")
    figure = go.Figure()
    add_curves(figure, layers, "bound", along_distance(layers), highlight=highlight)
    key_to_colours(figure, layers)
    figure.update_yaxes(type="log", title="bound [score]", **DECADES)
    distance_axis(figure, layers)
    return finish(figure, title, 420, caption(figure, layers))


@drawn
def pair_strengths(
    heads: xr.Dataset,
    *,
    layer: int | None = None,
    head: int | None = None,
    title: str | None = None,
    highlight: Highlight = None,
) -> go.Figure:
    """What each frequency pair of one head can do, or of all of them where none is chosen.

    One head: the largest singular value of each pair's W_Qᵀ R(Δ) W_K against its wavelength, as wide as it varies with
    the distance, above what the pair adds on average over token embeddings. All heads: those singular values, at the
    distance where they are largest, as a heat map with one row per head.

    Args:
        heads: the ``heads`` of an audit.
        layer: layer of the head to draw.
        head: the head to draw.
        title: heading of the figure.
        highlight: heads to pick out or name, as (layer, head), or {(layer, head): name}.
    """
    heads = with_heads(heads)
    there = heads_of(heads)
    if layer is None and head is None and len(there) > 1:
        return _all_heads(heads, title, highlight)
    chosen = (there[0][0] if layer is None else layer, there[0][1] if head is None else head)
    name = named_heads(highlight, heads).get(chosen, head_name(*chosen))
    return _one_head(heads.sel(layer=chosen[0], head=chosen[1]), name, title)


def _all_heads(heads: xr.Dataset, title: str | None, highlight: Highlight) -> go.Figure:
    """Each head's pairs as a row."""
    strength = heads["singular_value"].max("distance").transpose("layer", "head", "pair")
    names = names_of(heads)
    z = strength.values.reshape(len(names), -1).astype(np.float32)
    wavelength = heads["wavelength"].broadcast_like(strength).transpose("layer", "head", "pair").values
    wavelength = wavelength.reshape(z.shape)
    said = [
        [f"{name}, {pair_name(pair, at)}" for pair, at in zip(heads["pair"].values, row, strict=True)]
        for name, row in zip(names, wavelength, strict=True)
    ]
    figure = go.Figure(
        go.Heatmap(
            z=z,
            x=heads["pair"].values,
            y=np.arange(len(names)),
            zmin=0,
            colorscale=theme.SHADE_SCALE,
            text=np.asarray(said).reshape(z.shape),
            hovertemplate="%{text}: %{z:.3g}<extra></extra>",
            colorbar={**theme.BAR, "title": {"text": "largest singular value [score]", "side": "right"}},
        )
    )
    head_rows(figure, heads, highlight)
    figure.update_xaxes(title="pair, fast → slow", showgrid=False)
    if not np.isfinite(z).any():
        say(figure, _why_not(heads))
    title = title or "What each pair of a head can add"
    note = "The largest singular value of W_Qᵀ R(Δ) W_K in each pair, where it is largest"
    return finish(figure, title, int(np.clip(130 + 8 * len(names), 340, 900)), note)


def _one_head(heads: xr.Dataset, name: str, title: str | None) -> go.Figure:
    """Strength against wavelength on top, mean score against distance below."""
    wavelength = heads["wavelength"].values.astype(float)
    turning = np.isfinite(wavelength)
    bias, wavelength = heads.isel(pair=turning).rename(mean_score="score_mean"), wavelength[turning]
    figure = make_subplots(
        rows=2,
        cols=1,
        row_heights=[0.32, 0.68],
        vertical_spacing=0.2,
        subplot_titles=["What each pair can add", "What it adds on average"],
    )
    if np.isfinite(bias["singular_value"].values).any():
        _strengths(figure, bias["singular_value"], wavelength, name)
        add_pair_scores(figure, bias.dropna("distance", how="all", subset=["score_mean"]), wavelength, name)
    else:
        distance_axis(figure, heads, row=2, col=1)
        figure.update_xaxes(title="wavelength [tokens]", row=1, col=1)
        for row in (1, 2):
            say(figure, _why_not(heads), row=row, col=1)
    figure.update_annotations(font={"size": 13})
    figure.for_each_annotation(lambda note: note.update(x=0, xanchor="left"), selector={"yanchor": "bottom"})
    return finish(figure, title or f"Frequency pairs of {name}", 640)


def _strengths(figure: go.Figure, values: xr.DataArray, wavelength: np.ndarray, name: str) -> None:
    """The singular values of each pair, from the distance where they are smallest to where they are largest."""
    low, high = (reduce("distance").values.astype(np.float32) for reduce in (values.min, values.max))
    pairs = values["pair"].values
    for label, y, width in (("smallest over distances", low, 1.0), ("largest", high, 1.8)):
        figure.add_scatter(
            x=wavelength,
            y=y,
            name=label,
            mode="lines+markers",
            line={"color": theme.SLIDING, "width": width},
            marker={"size": 4 if label == "largest" else 2},
            fill="tonexty" if label == "largest" else None,
            customdata=pairs,
            hovertemplate=f"{name}, pair %{{customdata}}, λ %{{x:,.4~g}} tokens, {label}: %{{y:.3g}}<extra></extra>",
            showlegend=False,
            row=1,
            col=1,
        )
    figure.update_xaxes(type="log", title="wavelength [tokens]", row=1, col=1, **decade_ticks(wavelength))
    figure.update_yaxes(title="σ [score]", rangemode="tozero", row=1, col=1)


def _why_not(heads: xr.Dataset) -> str:
    """Why there is nothing to draw."""
    reasons = dict.fromkeys(str(reason) for reason in np.atleast_1d(heads["reason"].values) if reason)
    return "nothing to draw: " + ("; ".join(reasons) or "no frequency pair turns")


def _slow(rotations: xr.Dataset) -> str:
    """How many pairs never turn once."""
    total = np.isfinite(rotations["wavelength"].transpose("rotation", "pair").values).sum(1).tolist()
    each = zip(rotations["rotation"].values.tolist(), rotations["slow_pairs"].values.tolist(), total, strict=True)
    said = [f"{slow} of {pairs} pairs of {KIND_NAME.get(kind, kind)} layers" for kind, slow, pairs in each]
    return f"Never a whole turn within what is seen: {', '.join(said)}" if said else ""
