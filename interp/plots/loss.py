"""Figures along positions: the loss of one run or of several schedules."""

import html
from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp.common.words import token_text
from interp.plots import theme
from interp.plots.bands import add_band, band_of, caption
from interp.plots.base import finish, say
from interp.plots.given import drawn

_RUNNING_POINTS = 512


@drawn
def loss_by_position(loss: xr.Dataset | Mapping[str, xr.Dataset], *, title: str | None = None) -> go.Figure:
    """Mean loss in stretches of positions with its standard error; for one run also the mean so far.

    Args:
        loss: a `loss_by_position` Dataset, or several by name, such as one for each RoPE schedule.
        title: heading of the figure.
    """
    runs = loss if isinstance(loss, Mapping) and not isinstance(loss, xr.Dataset) else {"": loss}
    figure = go.Figure()
    for place, (name, run) in enumerate(runs.items()):
        _add_stretches(figure, run, name, theme.SERIES[place % len(theme.SERIES)])
    if len(runs) == 1 and "running_mean" in loss:
        _add_running_mean(figure, next(iter(runs.values())))
    top = max(_top(run) for run in runs.values())
    figure.update_xaxes(title="position [tokens]", rangemode="tozero", tickformat=",")
    figure.update_yaxes(title="loss [nats per token]", range=[0, top * 1.05])
    note = caption(figure, next(iter(runs.values()))) if len(runs) == 1 else ""
    return finish(figure, title, 340 if title is None else 380, note)


def add_losses(figure: go.Figure, losses: xr.Dataset, **where: Any) -> None:
    """Mean loss of several variants in one panel; one that has none is left out."""
    ran = [name for name in losses["variant"].values if losses["loss_mean"].sel(variant=name).notnull().any()]
    if not ran:
        say(figure, "no loss was measured", **where)
    for place, name in enumerate(ran):
        run = losses.sel(variant=name)
        _add_stretches(figure, run, f"loss {name}".replace("_", " "), theme.SERIES[place % len(theme.SERIES)], **where)
    figure.update_xaxes(title="position [tokens]", rangemode="tozero", tickformat=",", **where)
    figure.update_yaxes(title="loss [nats per token]", rangemode="tozero", **where)


def _top(run: xr.Dataset) -> float:
    """The highest point of one run, its error or band included."""
    spread = run.get("loss_stderr", xr.zeros_like(run["loss_mean"])).fillna(0)
    return float(np.fmax(run["loss_mean"] + spread, run.get("loss_mean_high", run["loss_mean"])).max())


def _add_stretches(figure: go.Figure, run: xr.Dataset, name: str, colour: str, **where: Any) -> None:
    """The means of one run, each with its standard error; of several runs, with the band that they fill."""
    first, last = run["first_position"].values, run["last_position"].values
    error = {"array": run["loss_stderr"].values} if "loss_stderr" in run else {}
    # A standard error beside it is drawn as bars.
    if not error and (spread := band_of(run, "loss_mean")) is not None:
        edges = spread.low.values, spread.high.values
        add_band(figure, (first + last) / 2, edges, spread.words, colour, name or "the mean of a stretch", **where)
    said = f"{token_text(name)}, " if name else ""
    figure.add_scatter(
        x=(first + last) / 2,
        y=run["loss_mean"].values,
        error_y={**error, "thickness": 1, "width": 0, "color": colour},
        mode="lines+markers",
        line={"color": colour, "width": 1.6},
        marker={"size": 5, "color": colour},
        customdata=[f"{a:,}–{b:,}" for a, b in zip(first, last, strict=True)],
        hovertemplate=said + "tokens %{customdata}: %{y:.3f} nats<extra></extra>",
        legendgroup=name,  # beside curves that have groups, those of one group stand one under the other
        name=html.escape(name, quote=False) or "mean of a stretch" + " ± standard error" * bool(error),
        **where,
    )


def _add_running_mean(figure: go.Figure, run: xr.Dataset) -> None:
    """Mean loss of all tokens so far."""
    step = max(1, run.sizes["position"] // _RUNNING_POINTS)
    figure.add_scatter(
        x=run["position"].values[::step],
        y=run["running_mean"].values[::step].astype("float32"),
        mode="lines",
        line={"color": theme.FULL, "width": 1.6, "dash": "dot"},
        hovertemplate="up to %{x:,}: %{y:.3f} nats<extra></extra>",
        name="mean so far",
    )
