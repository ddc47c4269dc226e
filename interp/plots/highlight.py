"""Heads that a figure picks out and names: the same argument in every figure that draws many heads."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from hooks.checks import shown
from hooks.errors import InputError
from interp.common.words import head_name, number_ranges, token_text
from interp.plots import theme
from interp.plots.base import heads_of

# (layer, head) of each head to pick out, or {(layer, head): "induction"} to name it too.
Highlight = Sequence[tuple[int, int]] | Mapping[tuple[int, int], str] | None

_LONGEST_NAME = 40
# The least that the places of all heads have, in CSS pixels: across a narrow figure, down a low one.
_ACROSS, _DOWN = 400, 200


def named_heads(highlight: Highlight, data: xr.Dataset | xr.DataArray) -> dict[tuple[int, int], str]:
    """Each head to pick out and what it is called; empty where there is none.

    Raises:
        InputError: something that is no (layer, head), or a head that the figure does not draw.
    """
    chosen: dict[tuple[int, int], str] = {}
    names = highlight if isinstance(highlight, Mapping) else {}
    try:
        for pair in () if highlight is None else highlight:
            layer, head = (int(number) for number in pair)
            name = token_text(names.get(pair, ""), _LONGEST_NAME).replace("·", " ")
            chosen[layer, head] = f"{head_name(layer, head)} {name}".rstrip()
    except (TypeError, ValueError):
        raise InputError(
            f'highlight={shown(highlight)}: give (layer, head) pairs, or {{(layer, head): "a name"}}'
        ) from None
    there = heads_of(data)
    for layer, head in chosen:
        if (layer, head) not in there:
            layers, heads = (number_ranges(sorted(set(numbers))) for numbers in zip(*there, strict=True))
            raise InputError(
                f"highlight: {head_name(layer, head)} is not in this figure of layers {layers} and heads {heads}"
            )
    return chosen


def series_colour(place: int) -> str:
    """The colour of the n-th head that is picked out."""
    return theme.SERIES[place % len(theme.SERIES)]


def head_ticks(data: xr.Dataset, most: int, named: Mapping[tuple[int, int], str], *, across: bool) -> Any:
    """Ticks of an axis with one place for each head: layers at their middle, and the heads picked out by name.

    A layer's number makes way for a name: in a row it is as high as a line, across it is as wide as half of the name.
    """
    per_layer, layers, heads = data.sizes["head"], data["layer"].values, heads_of(data)
    middles = np.arange(len(layers)) * per_layer + (per_layer - 1) / 2
    step = max(1, round(len(layers) / most))
    places = {float(heads.index(head)): label for head, label in named.items()}
    sizes = {place: 12 + 3.5 * len(label) if across else 16 for place, label in places.items()}
    pixels = len(heads) / (_ACROSS if across else _DOWN)
    free = [
        at for at in range(0, len(layers), step) if all(abs(middles[at] - p) > pixels * s for p, s in sizes.items())
    ]
    ticks = places | {float(middles[at]): str(layers[at]) for at in free}
    return {"tickvals": list(ticks), "ticktext": list(ticks.values())}


def mark_places(
    figure: go.Figure, data: xr.Dataset, named: Mapping[tuple[int, int], str], *, across: bool, **where: Any
) -> None:
    """Two thin lines around the row (or, across, the column) of each head picked out."""
    heads = heads_of(data)
    for place, head in enumerate(named):
        at, line = heads.index(head), {"color": series_colour(place), "width": 1}
        for edge in (at - 0.5, at + 0.5):
            if across:
                figure.add_vline(x=edge, line=line, **where)
            else:
                figure.add_hline(y=edge, line=line, **where)


def outline_cells(
    figure: go.Figure, values: xr.DataArray, named: Mapping[tuple[int, int], str], *, labels: bool, **where: Any
) -> None:
    """A frame around the cell of each head picked out in a layer × head map, with its label above it or without."""
    layers, heads = values["layer"].values.tolist(), values["head"].values.tolist()
    for (layer, head), label in named.items():
        x, y = heads.index(head), layers.index(layer)
        frame = {"x0": x - 0.5, "x1": x + 0.5, "y0": y - 0.5, "y1": y + 0.5}
        figure.add_shape(type="rect", **frame, line={"color": theme.FULL, "width": 2}, **where)
        if labels:
            figure.add_annotation(
                x=x,
                y=y - 0.5,
                text=label,
                showarrow=False,
                yanchor="bottom",
                font={"size": 10},
                bgcolor=theme.PAPER,
                borderpad=1,
                **where,
            )
