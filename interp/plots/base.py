"""What figures share: size, axes of distance and of signed scores, names of heads, texts that stay texts."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp.plots import theme

# A log axis has no zero: the token itself (Δ = 0) is drawn half a step left of Δ = 1.
ZERO_AT = 0.5
DECADES = {"dtick": 1, "exponentformat": "power", "minor": {"showgrid": False}}


def finish(figure: go.Figure, title: str | None, height: int) -> go.Figure:
    """Template, title and size, the same for every figure."""
    figure.update_layout(template=theme.template(), height=int(height))
    if title:
        figure.update_layout(title={"text": title})
    return figure


def heads_of(data: xr.Dataset | xr.DataArray) -> list[tuple[int, int]]:
    """(layer, head) of every head, layer by layer; a Dataset without a dimension has its coordinate or 0."""
    layers, heads = (np.atleast_1d(data[name].values) if name in data.coords else [0] for name in ("layer", "head"))
    return [(int(layer), int(head)) for layer in layers for head in heads]


def with_heads(data: Any) -> Any:
    """The data with both dimensions layer and head, which a selected head or a bare pass lacks."""
    for name in ("head", "layer"):
        if name not in data.dims:
            data = data.expand_dims({name: [data[name].item() if name in data.coords else 0]})
    return data


def label_of(values: xr.DataArray, fallback: str) -> str:
    """Name and unit of a variable as an axis says it."""
    units = values.attrs.get("units", "")
    return fallback if units in ("", "1") else f"{fallback} [{units}]"


def positive(values: np.ndarray) -> np.ndarray:
    """Values that a log axis can show; the others become gaps."""
    return np.where(values > 0, values, np.nan).astype(np.float32)


def log_range(limits: tuple[float, float] | None) -> dict[str, Any]:
    """The range of a log axis, in the exponents that plotly wants."""
    return {} if limits is None else {"range": [float(np.log10(limits[0])), float(np.log10(limits[1]))]}


def distance_centres(binned: xr.Dataset) -> np.ndarray:
    """Where a bin is drawn: the geometric middle of its distances."""
    first, last = _bin_limits(binned)
    return np.where(first > 0, np.sqrt(first * last), ZERO_AT)


def distance_edges(binned: xr.Dataset) -> np.ndarray:
    """Edges of the bins on the log axis."""
    first, last = _bin_limits(binned)
    inner = np.sqrt(np.maximum(last[:-1], ZERO_AT) * np.maximum(first[1:], ZERO_AT))
    left = ZERO_AT / np.sqrt(2) if first[0] == 0 else first[0] / 1.05
    return np.concatenate([[left], inner, [max(last[-1], ZERO_AT) * 1.05]])


def distance_labels(binned: xr.Dataset) -> np.ndarray:
    """The distances of each bin as text: 7 or 8–9."""
    pairs = zip(*(limit.astype(np.int64) for limit in _bin_limits(binned)), strict=True)
    return np.asarray([f"{a:,}" if a == b else f"{a:,}–{b:,}" for a, b in pairs])


def distance_axis(figure: go.Figure, binned: xr.Dataset, **where: Any) -> None:
    """The log axis of distances, with its zero."""
    top = int(_bin_limits(binned)[1].max())
    decades = [10**power for power in range(len(str(max(top, 1))))]
    edges = distance_edges(binned)
    figure.update_xaxes(
        type="log",
        title="distance Δ [tokens]",
        tickvals=[ZERO_AT, *decades],
        ticktext=["0", *(f"{value:,}" for value in decades)],
        range=[float(np.log10(edges[0])), float(np.log10(edges[-1]))],
        **where,
    )


def _bin_limits(binned: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """First and last distance of each bin; a Dataset that is not binned has every distance for itself."""
    names = ("first_distance", "last_distance") if "first_distance" in binned else ("distance", "distance")
    first, last = (binned[name].values.astype(np.float64) for name in names)
    return first, last


def mark_windows(figure: go.Figure, binned: xr.Dataset) -> None:
    """A dotted line at the edge of each sliding window."""
    if "window" not in binned:
        return
    for window in sorted(set(np.atleast_1d(binned["window"].values).tolist()) - {0}):
        if window <= int(_bin_limits(binned)[1].max()) + 1:
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


def depth(layer: int, n_layers: int) -> float:
    """Place of a layer on the colour scale, from 0 to 1."""
    return layer / max(1, n_layers - 1)


def layer_colour_bar(figure: go.Figure, layers: np.ndarray, n_layers: int) -> None:
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
                "outlinewidth": 0,
            },
        },
        hoverinfo="skip",
        showlegend=False,
    )


def signed_log(values: np.ndarray) -> np.ndarray:
    """Where a score is drawn on an axis that is logarithmic in both directions: sign(s) · log10(1 + |s|)."""
    return np.sign(values) * np.log10(1 + np.abs(values))


def signed_log_ticks(top: float) -> dict[str, Any]:
    """Ticks at powers of ten in both directions, and a range that reaches ±top."""
    # Next to ±100 there is no room for ±1.
    powers = [10**power for power in range(int(top >= 100), int(np.floor(np.log10(max(top, 1)))) + 1)]
    values = np.asarray([*(-p for p in reversed(powers)), 0, *powers])
    reach = float(signed_log(np.asarray(max(top, 1e-3)))) * 1.05
    text = [f"{value:,}".replace("-", "−") for value in values.tolist()]
    return {"tickvals": signed_log(values), "ticktext": text, "range": [-reach, reach]}
