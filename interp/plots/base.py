"""What figures share: size, axes of distance and of signed scores, names of heads, texts that stay texts."""

import textwrap
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp.plots import theme

# A log axis has no zero: the token itself (Δ = 0) is drawn half a step left of Δ = 1.
ZERO_AT = 0.5
_TITLE_LENGTH, _NOTE_LENGTH = 56, 66
# About what a legend takes in CSS pixels, in a figure as narrow as a phone's page.
_LEGEND_MARK, _LEGEND_LETTER, _NARROW = 46, 6.5, 420
DECADES = {"dtick": 1, "exponentformat": "power", "minor": {"showgrid": False}}


def finish(figure: go.Figure, title: str | None, height: int, note: str = "") -> go.Figure:
    """Template, title, the note under it, size and room above the plot, the same for every figure."""
    figure.update_layout(template=theme.template(), height=int(height))
    if title or note:
        figure.update_layout(title={"text": in_lines(title or "", _TITLE_LENGTH)})
    if note:
        figure.update_layout(title={"subtitle": {"text": in_lines(note, _NOTE_LENGTH)}})
    return make_room(figure)


def make_room(figure: go.Figure) -> go.Figure:
    """Title, note, legend and headings of panels one under the other, with as much margin as they need."""
    layout: Any = figure.layout
    title, note = layout.title.text or "", layout.title.subtitle.text or ""
    more = title.count("<br>")
    top = 16 + (18 * (more + 1) if title else 0) + (24 + 16 * note.count("<br>") if note else 0)
    traces = [trace for trace in traces_of(figure) if trace.type != "table"]
    names = [trace.name for trace in traces if trace.name and trace.showlegend is not False]
    shown = names if len(traces) > 1 or any(trace.showlegend for trace in traces) else []
    legend = 20 * -(-sum(_LEGEND_MARK + _LEGEND_LETTER * len(name) for name in shown) // _NARROW)
    headings = [a.text for a in layout.annotations if a.yref == "paper" and a.yanchor == "bottom" and a.y > 0.99]
    marks = max((20 + 15 * text.count("<br>") for text in headings), default=4)
    plot = max(int(layout.height) - top - legend - marks - 60, 40)
    # A title of several lines grows upwards from its first line by half of what it has more.
    figure.update_layout(margin={"t": top + legend + marks + 8}, title={"pad": {"t": 12 + 11 * more}})
    if shown:
        figure.update_layout(legend={"x": 0, "xanchor": "left", "y": 1 + marks / plot, "yanchor": "bottom"})
    return figure


def traces_of(figure: go.Figure) -> list[Any]:
    """What a figure draws, as plotly's own types do not say it."""
    return list(figure.data)


def say(figure: go.Figure, sentence: str, **where: Any) -> None:
    """A sentence in the middle of a panel that has nothing to draw."""
    panel: Any = figure.get_subplot(where["row"], where["col"]) if where else figure.layout
    # In parts of the page: plotly leaves out the axes of a panel without traces, and what is tied to them.
    x, y = (sum(axis.domain or (0, 1)) / 2 for axis in (panel.xaxis, panel.yaxis))
    figure.add_annotation(
        x=x,
        y=y,
        xref="paper",
        yref="paper",
        yanchor="middle",
        text=in_lines(sentence, _NOTE_LENGTH),
        showarrow=False,
        font={"size": 12, "color": theme.QUIET},
    )


def in_lines(text: str, longest: int) -> str:
    """A text in lines that fit a narrow figure; one with markup stays as it is."""
    return text if "<" in text else "<br>".join(textwrap.wrap(text, longest, break_long_words=False))


def heads_of(data: xr.Dataset | xr.DataArray) -> list[tuple[int, int]]:
    """(layer, head) of every head, layer by layer; a Dataset without a dimension has its coordinate or 0."""
    layers, heads = (np.atleast_1d(data[name].values) if name in data.coords else [0] for name in ("layer", "head"))
    return [(int(layer), int(head)) for layer in layers for head in heads]


def with_heads(data: Any) -> Any:
    """The data with both dimensions layer and head, which a selected head or a bare pass lacks."""
    lacking = [name for name in ("layer", "head") if name not in data.dims and name not in data.coords]
    for name in ("head", "layer"):
        if name not in data.dims:
            data = data.expand_dims({name: [data[name].item() if name in data.coords else 0]})
    return data.assign_attrs(lacking=lacking) if lacking else data


def names_of(data: xr.Dataset | xr.DataArray) -> list[str]:
    """What each of `heads_of` is called: L3 H1, or only the part that the data know."""
    lacking = data.attrs.get("lacking", ())
    parts = [((f"L{layer}", "layer"), (f"H{head}", "head")) for layer, head in heads_of(data)]
    return [" ".join(text for text, what in pair if what not in lacking) or "whole text" for pair in parts]


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
                text=f"window {int(window):,}",
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
