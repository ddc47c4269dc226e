"""The spectrum of the frequency pairs: what each RoPE pair adds to the score, and how large q and k are in it."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.common.words import head_name
from interp.plots import theme
from interp.plots.bands import caption
from interp.plots.base import (
    distance_axis,
    distance_edges,
    distance_labels,
    finish,
    heads_of,
    names_of,
    say,
    with_heads,
)
from interp.plots.distance import head_rows
from interp.plots.given import drawn
from interp.plots.highlight import Highlight, named_heads


@drawn
def frequency_pairs(
    bias: xr.Dataset,
    *,
    layer: int | None = None,
    head: int | None = None,
    title: str | None = None,
    highlight: Highlight = None,
) -> go.Figure:
    """Frequency pairs of one head, or of all of them where none is chosen.

    One head: the norms of q and k in each pair against its wavelength, above the mean score that the pair adds at
    each distance. All heads: those norms as a heat map, one row per head, slowest pair on the right.

    Args:
        bias: a `frequency_bias` Dataset; its distances may be binned.
        layer: layer of the head to draw.
        head: the head to draw.
        title: heading of the figure.
        highlight: heads to pick out or name, as (layer, head), or {(layer, head): name}.
    """
    bias = with_heads(bias)
    heads = heads_of(bias)
    if layer is None and head is None and len(heads) > 1:
        return _all_heads(bias, title, highlight)
    chosen = (heads[0][0] if layer is None else layer, heads[0][1] if head is None else head)
    name = named_heads(highlight, bias).get(chosen, head_name(*chosen))
    return _one_head(bias.sel(layer=chosen[0], head=chosen[1]), name, title)


def _one_head(bias: xr.Dataset, name: str, title: str | None) -> go.Figure:
    """Norms of the pairs on top, their score against distance below."""
    wavelength = bias["wavelength"].values.astype(float)
    turning = np.isfinite(wavelength)
    bias, wavelength = bias.isel(pair=turning), wavelength[turning]
    figure = make_subplots(
        rows=2,
        cols=1,
        row_heights=[0.32, 0.68],
        vertical_spacing=0.2,
        subplot_titles=["Size of q and k in each pair", "Mean score that each pair adds"],
    )
    _norms(figure, bias, wavelength, name)
    add_pair_scores(figure, bias, wavelength, name)
    figure.update_annotations(font={"size": 13}, x=0, xanchor="left")
    if not len(wavelength):
        for row in (1, 2):
            say(figure, "nothing to draw: no frequency pair of this head turns", row=row, col=1)
    return finish(figure, title or f"Frequency pairs of {name}", 640, caption(figure, bias))


def _norms(figure: go.Figure, bias: xr.Dataset, wavelength: np.ndarray, name: str) -> None:
    """Size of q and k in each pair, in the upper panel."""
    pairs = bias["pair"].values
    for variable, label, colour in (("q_norm", "q", theme.SLIDING), ("k_norm", "k", theme.FULL)):
        figure.add_scatter(
            x=wavelength,
            y=bias[variable].values,
            name=label,
            mode="lines+markers",
            line={"color": colour, "width": 1.4},
            marker={"size": 4},
            customdata=pairs,
            hovertemplate=f"{name}, pair %{{customdata}}, λ %{{x:,.4~g}} tokens: {label} %{{y:.3g}}<extra></extra>",
            row=1,
            col=1,
        )
    figure.update_xaxes(type="log", title="wavelength [tokens]", row=1, col=1, **decade_ticks(wavelength))
    figure.update_yaxes(title="norm", rangemode="tozero", row=1, col=1)


def add_pair_scores(figure: go.Figure, bias: xr.Dataset, wavelength: np.ndarray, name: str) -> None:
    """What each pair adds to the score at each distance, in the lower panel."""
    pairs = bias["pair"].values
    dim = "distance_bin" if "distance_bin" in bias.dims else "distance"
    z = bias["score_mean"].transpose("pair", dim).values.astype(np.float32)
    top = float(np.nanmax(np.abs(z), initial=0.0)) or 1.0
    figure.add_heatmap(
        z=z,
        x=distance_edges(bias),
        y=np.arange(len(pairs)),
        zmin=-top,
        zmax=top,
        colorscale=theme.DIVERGING_SCALE,
        customdata=np.broadcast_to(distance_labels(bias), z.shape),
        text=np.broadcast_to(
            np.asarray([pair_name(*row) for row in zip(pairs, wavelength, strict=True)])[:, None], z.shape
        ),
        hovertemplate=f"{name}, %{{text}}, Δ %{{customdata}}: %{{z:.3g}}<extra></extra>",
        colorbar={
            "title": {"text": "score", "side": "right"},
            "thickness": 10,
            "len": 0.56,
            "y": 0.28,
            "outlinewidth": 0,
        },
        row=2,
        col=1,
    )
    distance_axis(figure, bias, row=2, col=1)
    step = max(1, len(pairs) // 8)
    figure.update_yaxes(
        title="wavelength [tokens]",
        tickvals=np.arange(len(pairs))[::step],
        ticktext=[_short(value) for value in wavelength[::step]],
        showgrid=False,
        row=2,
        col=1,
    )


def _all_heads(bias: xr.Dataset, title: str | None, highlight: Highlight) -> go.Figure:
    """Norm of q and of k in every pair of every head."""
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=["q", "k"])
    names = np.asarray(names_of(bias))
    pairs = bias["pair"].values
    stacked = {
        name: bias[name].transpose("layer", "head", "pair").values.reshape(len(names), -1)
        for name in ("q_norm", "k_norm")
    }
    top = max(float(np.nanmax(values, initial=0.0)) for values in stacked.values()) or 1.0
    wavelength = np.broadcast_to(
        bias["wavelength"]
        .broadcast_like(bias["q_norm"])
        .transpose("layer", "head", "pair")
        .values.reshape(len(names), -1),
        (len(names), len(pairs)),
    )
    said = np.asarray(
        [
            [f"{n}, {pair_name(p, w)}" for p, w in zip(pairs, row, strict=True)]
            for n, row in zip(names, wavelength, strict=True)
        ]
    )
    for column, (name, values) in enumerate(stacked.items(), start=1):
        figure.add_heatmap(
            z=values.astype(np.float32),
            x=pairs,
            y=np.arange(len(names)),
            zmin=0,
            zmax=top,
            coloraxis="coloraxis",
            text=said,
            hovertemplate=f"%{{text}}: {name[0]} %{{z:.3g}}<extra></extra>",
            row=1,
            col=column,
        )
    bar = {"title": {"text": "root mean square norm", "side": "right"}, "thickness": 10, "len": 1, "outlinewidth": 0}
    figure.update_layout(coloraxis={"colorscale": theme.SHADE_SCALE, "cmin": 0, "cmax": top, "colorbar": bar})
    head_rows(figure, bias, highlight)
    figure.update_yaxes(title=None, col=2)
    figure.update_xaxes(title="pair, fast → slow", showgrid=False)
    title = title or "Size of q and k in each frequency pair"
    return finish(figure, title, int(np.clip(130 + 8 * len(names), 340, 900)), caption(figure, bias))


def decade_ticks(wavelength: np.ndarray) -> dict:
    """A tick at each power of ten, written out."""
    if not len(wavelength):
        return {}
    powers = range(int(np.floor(np.log10(wavelength.min()))), int(np.ceil(np.log10(wavelength.max()))) + 1)
    return {"tickvals": [10.0**p for p in powers], "ticktext": [_short(10.0**p) for p in powers]}


def pair_name(pair: int, wavelength: float) -> str:
    """A pair in words."""
    return (
        f"pair {pair} (wavelength {_short(wavelength)} tokens)"
        if np.isfinite(wavelength)
        else f"pair {pair} (does not turn)"
    )


def _short(value: float) -> str:
    """A wavelength in three digits."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"
