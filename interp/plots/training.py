"""Scores along a training: the largest of each layer beside its bound and the end of float16."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp.plots import theme
from interp.plots.base import finish, signed_log, signed_log_ticks, with_heads
from interp.plots.given import drawn

_POINTS = 400


@drawn
def watched_scores(watched: xr.Dataset, *, title: str | None = None) -> go.Figure:
    """The largest score of each layer's heads at each step, with the layer's bound and float16's limit.

    Long trainings are drawn in stretches of steps, each by its largest score and its largest bound.

    Args:
        watched: a `watch_scores` Dataset.
        title: heading of the figure.
    """
    watched = with_heads(watched)
    if "step" not in watched.dims:
        watched = watched.expand_dims("step")
    per = -(-watched.sizes["step"] // _POINTS)
    largest = watched[["score_max", "bound"]].max("head").coarsen(step=per, boundary="pad").max()
    steps, layers = largest["step"].values, watched["layer"].values.tolist()
    figure = go.Figure()
    for place, layer in enumerate(layers):
        line = largest.sel(layer=layer)
        colour = theme.layer_colour(place / max(len(layers) - 1, 1))
        text = [
            f"layer {layer}, step {step:,.0f}: {value:.4g}"
            for step, value in zip(steps, line["score_max"].values, strict=True)
        ]
        _line(figure, steps, line["score_max"].values, f"layer {layer}", {"color": colour, "width": 1.6}, text)
        bound = line["bound"].values
        text = [f"layer {layer}, step {step:,.0f}: bound {value:.4g}" for step, value in zip(steps, bound, strict=True)]
        if np.isfinite(bound).any():
            _line(figure, steps, bound, "bound", {"color": colour, "width": 1.2, "dash": "dash"}, text, place == 0)
    drawn = np.abs(np.concatenate([largest["score_max"].values.ravel(), largest["bound"].values.ravel()]))
    top = float(drawn[np.isfinite(drawn)].max(initial=1.0))
    limit = float(watched["float16_limit"].max())
    if top > limit / 100:
        top = max(top, limit)
        ends = np.asarray([steps[0], steps[-1]])
        said = "q·k reaches float16's largest number"
        _line(figure, ends, np.full(2, limit), said, {"color": theme.LIMIT, "width": 1.2, "dash": "dot"}, None)
    ticks = signed_log_ticks(top)
    low = float(np.nanmin(signed_log(largest["score_max"].values), initial=0.0))
    figure.update_yaxes(title="largest score", **{**ticks, "range": [1.05 * low, ticks["range"][1]]})
    figure.update_xaxes(title="step", tickformat=",")
    note = "The largest of each layer's heads" + (f", and of each {per} steps" if per > 1 else "")
    return finish(figure, title, 380, note)


def _line(
    figure: go.Figure,
    x: np.ndarray,
    y: np.ndarray,
    name: str,
    line: dict,
    text: list[str] | None,
    legend: bool = True,
) -> None:
    """One line on the signed logarithmic axis."""
    figure.add_scatter(
        x=x,
        y=signed_log(y),
        mode="lines",
        line=line,
        name=name,
        legendgroup=name,
        showlegend=legend,
        hovertext=text,
        hoverinfo="skip" if text is None else "text",
    )
