"""Datasets drawn as plotly figures; every number drawn is one that the Dataset holds."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp import theme

# A log axis has no zero: the token itself (Δ = 0) is drawn half a step left of Δ = 1.
_ZERO_AT = 0.5


def attention_by_distance(binned: xr.Dataset, *, title: str, y_range: tuple[float, float] | None = None) -> go.Figure:
    """One line per head: mean attention of a pair against its distance, both axes logarithmic.

    Args:
        binned: a `bin_distances` Dataset, of the layers to draw.
        title: heading of the figure.
        y_range: smallest and largest attention to show, so that two figures compare.
    """
    figure = go.Figure()
    x = _distance_centres(binned)
    labels = _distance_labels(binned)
    layers = binned["layer"].values
    values = _positive(binned["attention_mean"])
    opacity = 0.75 if layers.size * binned.sizes["head"] <= 100 else 0.45
    for layer in layers:
        colour = theme.blend(_place(layer, binned.attrs.get("n_layers", layers.max() + 1)))
        for head in binned["head"].values:
            figure.add_scatter(
                x=x,
                y=values.sel(layer=layer, head=head).values,
                mode="lines",
                line={"color": colour, "width": 1.4},
                opacity=opacity,
                customdata=labels,
                hovertemplate=f"L{layer} H{head}, Δ %{{customdata}}: %{{y:.3g}}<extra></extra>",
                name=f"L{layer} H{head}",
                showlegend=False,
            )
    _mark_windows(figure, binned)
    _layer_colour_bar(figure, layers, binned.attrs.get("n_layers", layers.max() + 1))
    figure.update_yaxes(type="log", title="mean attention of a pair", **_log_range(y_range), **_DECADES)
    _distance_axis(figure, binned)
    return _finish(figure, title, height=400)


def attention_share_by_head(binned: xr.Dataset, *, title: str, ceiling: float) -> go.Figure:
    """One row per head: how its attention is shared out over distances; dark is much.

    Args:
        binned: a `bin_distances` Dataset, of the layers to draw.
        title: heading of the figure.
        ceiling: the share at which the colour is darkest, so that two figures compare.
    """
    share = binned["attention_share"].stack(row=("layer", "head")).transpose("row", "distance_bin")
    names = [f"L{layer} H{head}" for layer, head in share["row"].values]
    hover = np.broadcast_to(_distance_labels(binned), share.shape)
    figure = go.Figure(
        go.Heatmap(
            z=share.values.astype(np.float32),
            x=_distance_edges(binned),
            y=np.arange(len(names)),
            zmin=0,
            zmax=ceiling,
            colorscale=theme.SHADE_SCALE,
            customdata=hover,
            text=np.broadcast_to(np.asarray(names)[:, None], share.shape),
            hovertemplate="%{text}, Δ %{customdata}: %{z:.1%}<extra></extra>",
            colorbar={"title": {"text": "share", "side": "right"}, "tickformat": ".0%", "thickness": 10, "len": 1},
        )
    )
    per_layer = binned.sizes["head"]
    starts = np.arange(0, len(names), per_layer)
    figure.update_yaxes(
        title="layer",
        tickvals=starts + (per_layer - 1) / 2,
        ticktext=[str(layer) for layer in binned["layer"].values],
        autorange="reversed",
        showgrid=False,
    )
    for start in starts[1:]:
        figure.add_hline(y=start - 0.5, line={"color": theme.GRID, "width": 1})
    _mark_windows(figure, binned)
    _distance_axis(figure, binned)
    return _finish(figure, title, height=int(np.clip(110 + 8 * len(names), 320, 900)))


def score_ranges(ranges: xr.Dataset) -> go.Figure:
    """One bar per head from its smallest to its largest score, a panel for each stage, with the proven bound."""
    stages = ranges["stage"].values
    figure = make_subplots(
        rows=len(stages),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.09 if len(stages) > 1 else 0,
        subplot_titles=[str(label) for label in ranges["stage_label"].values],
    )
    layer, head = (a.ravel() for a in np.meshgrid(ranges["layer"], ranges["head"], indexing="ij"))
    kinds = np.repeat(ranges["layer_type"].values, ranges.sizes["head"])
    x = np.arange(len(layer))
    bounded = [str(s) for s in stages if np.isfinite(ranges["bound"].sel(stage=s)).any()] or [""]
    for row, stage in enumerate(stages, start=1):
        part = {
            str(name): values.transpose("layer", "head").values.ravel()
            for name, values in ranges.sel(stage=stage)[["score_min", "score_max", "score_mean", "bound"]].items()
        }
        _add_bound(figure, row, x, part["bound"], legend=str(stage) == bounded[-1])
        hover = [
            f"L{a} H{b}: {low:.4g} … {high:.4g}, mean {mean:.4g}"
            + (f", bound ±{bound:.4g}" if np.isfinite(bound) else "")
            for a, b, low, high, mean, bound in zip(
                layer, head, part["score_min"], part["score_max"], part["score_mean"], part["bound"], strict=True
            )
        ]
        for kind, colour in theme.KIND_COLOUR.items():
            mine = kinds == kind
            if not mine.any():
                continue
            figure.add_bar(
                x=x[mine],
                y=(_signed_log(part["score_max"]) - _signed_log(part["score_min"]))[mine],
                base=_signed_log(part["score_min"])[mine].tolist(),
                width=0.72,
                marker={"color": colour, "line": {"width": 0}},
                hovertext=[text for text, keep in zip(hover, mine, strict=True) if keep],
                hoverinfo="text",
                name=f"{theme.KIND_NAME[kind]} layers",
                legendgroup=kind,
                showlegend=row == 1,
                row=row,
                col=1,
            )
        figure.add_scatter(
            x=x,
            y=_signed_log(part["score_mean"]),
            mode="markers",
            marker={"symbol": "line-ew-open", "size": 4, "color": "#ffffff", "line": {"width": 1.5}},
            hoverinfo="skip",
            showlegend=False,
            row=row,
            col=1,
        )
        figure.update_yaxes(title="score", row=row, col=1, zeroline=True, zerolinecolor="#aab4be")
    figure.update_yaxes(**_signed_log_ticks(ranges))
    per_layer = ranges.sizes["head"]
    figure.update_xaxes(
        tickvals=np.arange(0, len(x), per_layer) + (per_layer - 1) / 2,
        ticktext=[str(value) for value in ranges["layer"].values],
        range=[-1, len(x)],
        showgrid=False,
    )
    figure.update_xaxes(title="layer (one bar per head)", row=len(stages), col=1)
    figure.update_layout(barmode="overlay", bargap=0)
    figure.update_annotations(font={"size": 13}, x=0, xanchor="left")
    _finish(figure, None, height=146 + 200 * len(stages))
    figure.update_layout(margin={"t": 80}, legend={"y": 1, "yref": "container", "yanchor": "top"})
    return figure


def layer_head_map(values: xr.DataArray, *, title: str, ceiling: float = 1.0) -> go.Figure:
    """Heat map of one number per head, layers down and heads across."""
    percent = values.attrs.get("units") == "1"
    figure = go.Figure(
        go.Heatmap(
            z=values.transpose("layer", "head").values.astype(np.float32),
            x=[str(head) for head in values["head"].values],
            y=[str(layer) for layer in values["layer"].values],
            zmin=0,
            zmax=ceiling,
            colorscale=theme.SHADE_SCALE,
            xgap=1,
            ygap=1,
            hovertemplate="L%{y} H%{x}: %{z:.1%}<extra></extra>" if percent else "L%{y} H%{x}: %{z:.4g}<extra></extra>",
            colorbar={"thickness": 10, "len": 1, "tickformat": ".0%" if percent else None},
        )
    )
    figure.update_yaxes(title="layer", autorange="reversed", type="category", showgrid=False)
    figure.update_xaxes(title="head", type="category", showgrid=False)
    return _finish(figure, title, height=int(np.clip(110 + 20 * values.sizes["layer"], 240, 900)))


def loss_by_position(loss: xr.Dataset) -> go.Figure:
    """Mean loss in stretches of positions with its standard error, and the mean so far."""
    first, last = loss["first_position"].values, loss["last_position"].values
    figure = go.Figure()
    figure.add_scatter(
        x=(first + last) / 2,
        y=loss["loss_mean"].values,
        error_y={"array": loss["loss_stderr"].values, "thickness": 1, "width": 0, "color": theme.SLIDING},
        mode="lines+markers",
        line={"color": theme.SLIDING, "width": 1.6},
        marker={"size": 5},
        customdata=[f"{a:,}–{b:,}" for a, b in zip(first, last, strict=True)],
        hovertemplate="tokens %{customdata}: %{y:.3f} nats<extra></extra>",
        name="mean of a stretch ± standard error",
    )
    step = max(1, loss.sizes["position"] // 512)
    figure.add_scatter(
        x=loss["position"].values[::step],
        y=loss["running_mean"].values[::step].astype(np.float32),
        mode="lines",
        line={"color": theme.FULL, "width": 1.6, "dash": "dot"},
        hovertemplate="up to %{x:,}: %{y:.3f} nats<extra></extra>",
        name="mean so far",
    )
    figure.update_xaxes(title="position [tokens]", rangemode="tozero", tickformat=",")
    figure.update_yaxes(title="loss [nats per token]", range=[0, float(loss["loss_mean"].max()) * 1.15])
    return _finish(figure, None, height=340)


_DECADES = {"dtick": 1, "exponentformat": "power", "minor": {"showgrid": False}}


def _finish(figure: go.Figure, title: str | None, height: int) -> go.Figure:
    """Template, title and size, the same for every figure."""
    figure.update_layout(template=theme.template(), height=height)
    if title:
        figure.update_layout(title={"text": title})
    return figure


def _place(layer: int, n_layers: int) -> float:
    """Position of a layer on the colour scale."""
    return layer / max(1, n_layers - 1)


def _positive(values: xr.DataArray) -> xr.DataArray:
    """Values that a log axis can show; the others become gaps."""
    return values.where(values > 0).astype(np.float32)


def _log_range(limits: tuple[float, float] | None) -> dict[str, Any]:
    """The range of a log axis, in the exponents that plotly wants."""
    return {} if limits is None else {"range": [float(np.log10(limits[0])), float(np.log10(limits[1]))]}


def _distance_centres(binned: xr.Dataset) -> np.ndarray:
    """Where a bin is drawn: the geometric middle of its distances."""
    first, last = (binned[name].values.astype(np.float64) for name in ("first_distance", "last_distance"))
    return np.where(first > 0, np.sqrt(first * last), _ZERO_AT)


def _distance_edges(binned: xr.Dataset) -> np.ndarray:
    """Edges of the bins on the log axis."""
    first, last = (binned[name].values.astype(np.float64) for name in ("first_distance", "last_distance"))
    inner = np.sqrt(np.maximum(last[:-1], _ZERO_AT) * np.maximum(first[1:], _ZERO_AT))
    left = _ZERO_AT / np.sqrt(2) if first[0] == 0 else first[0] / 1.05
    return np.concatenate([[left], inner, [max(last[-1], _ZERO_AT) * 1.05]])


def _distance_labels(binned: xr.Dataset) -> np.ndarray:
    """The distances of each bin as text: 7 or 8–9."""
    pairs = zip(binned["first_distance"].values, binned["last_distance"].values, strict=True)
    return np.asarray([f"{a:,}" if a == b else f"{a:,}–{b:,}" for a, b in pairs])


def _distance_axis(figure: go.Figure, binned: xr.Dataset) -> None:
    """The log axis of distances, with its zero."""
    top = int(binned["last_distance"].max())
    decades = [10**power for power in range(len(str(max(top, 1))))]
    edges = _distance_edges(binned)
    figure.update_xaxes(
        type="log",
        title="distance Δ [tokens]",
        tickvals=[_ZERO_AT, *decades],
        ticktext=["0", *(f"{value:,}" for value in decades)],
        range=[float(np.log10(edges[0])), float(np.log10(edges[-1]))],
    )


def _mark_windows(figure: go.Figure, binned: xr.Dataset) -> None:
    """A dotted line at the edge of each sliding window."""
    for window in sorted(set(binned["window"].values.tolist()) - {0}):
        if window <= int(binned["last_distance"].max()) + 1:
            figure.add_vline(x=window, line={"color": theme.QUIET, "width": 1, "dash": "dot"})
            # Annotations take the exponent on a log axis, shapes the value.
            figure.add_annotation(
                x=float(np.log10(window)),
                y=1,
                yref="paper",
                yanchor="bottom",
                showarrow=False,
                text=f"window {window:,}",
                font={"size": 11, "color": theme.QUIET},
            )


def _layer_colour_bar(figure: go.Figure, layers: np.ndarray, n_layers: int) -> None:
    """A colour bar that says which line belongs to which layer."""
    figure.add_scatter(
        x=[None],
        y=[None],
        mode="markers",
        marker={
            "color": [0],
            "cmin": 0,
            "cmax": max(1, n_layers - 1),
            "colorscale": theme.LAYER_SCALE,
            "colorbar": {
                "title": {"text": "layer", "side": "right"},
                "thickness": 10,
                "len": 1,
                "tickvals": [int(layers.min()), int(layers.max())],
            },
        },
        hoverinfo="skip",
        showlegend=False,
    )


def _signed_log(values: np.ndarray) -> np.ndarray:
    """Where a score is drawn on an axis that is logarithmic in both directions: sign(s) · log10(1 + |s|)."""
    return np.sign(values) * np.log10(1 + np.abs(values))


def _signed_log_ticks(ranges: xr.Dataset) -> dict[str, Any]:
    """Ticks at powers of ten in both directions, and a range that holds every score and bound."""
    drawn = ranges[["score_min", "score_max", "bound"]].to_dataarray()
    top = float(abs(drawn).max())
    # Next to ±100 there is no room for ±1.
    powers = [10**power for power in range(int(top >= 100), int(np.floor(np.log10(max(top, 1)))) + 1)]
    values = np.asarray([*(-p for p in reversed(powers)), 0, *powers])
    reach = float(_signed_log(np.asarray(top))) * 1.05
    text = [f"{value:,}".replace("-", "−") for value in values.tolist()]
    return {"tickvals": _signed_log(values), "ticktext": text, "range": [-reach, reach]}


def _add_bound(figure: go.Figure, row: int, x: np.ndarray, bound: np.ndarray, *, legend: bool) -> None:
    """The two lines that no score can cross, one step per head."""
    if not np.isfinite(bound).any():
        return
    steps_x = np.stack([x - 0.5, x + 0.5, np.full(len(x), np.nan)], axis=1).ravel()
    for sign in (1, -1):
        figure.add_scatter(
            x=steps_x,
            y=np.repeat(sign * _signed_log(bound), 3),
            mode="lines",
            line={"color": theme.BOUND, "width": 1.6},
            hoverinfo="skip",
            name="proven bound",
            showlegend=legend and sign == 1,
            row=row,
            col=1,
        )
