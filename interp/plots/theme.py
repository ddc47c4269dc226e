"""How figures look: one plotly template, light and dark, in colours that hold up for colour-blind readers and in grey.

Figures are drawn in light colours. `dark` exchanges every colour of a figure for its dark partner, and the report
does the same in the browser, so a figure is drawn once and shown in both.
"""

import json
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio

from hooks import checks

INK = "#1f2933"
QUIET = "#5b6773"
AXIS = "#aab4be"
GRID = "#e6eaee"
PAPER = "#ffffff"
SLIDING = "#0072b2"
FULL = "#d55e00"
BOUND = "#202a34"
LIMIT = "#b5179e"
# Okabe and Ito's colours, for lines that have no order: schedules, bands, variants.
SERIES = (SLIDING, FULL, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a6a00", "#4b4bc8")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

# Little is the page's own colour, much stands out; readable in print.
SHADES = (PAPER, "#dbe9f6", "#9fc9e6", "#4a98c9", "#1764ab", "#08264f")
# Below zero orange, above it blue.
DIVERGING = ("#7a3300", "#d9701a", "#f6cda8", "#fdfdfe", "#a9cde8", "#2f7fbd", "#0a3a6b")
# Viridis without its palest end, which vanishes on white.
LAYERS = ("#440154", "#3b528b", "#21918c", "#5ec962", "#c9b400")

_DARK_SHADES = ("#161b22", "#16304a", "#1f5580", "#3b86b8", "#86bfe4", "#e8f4ff")
_DARK_DIVERGING = ("#ffb37a", "#d9803a", "#6e4423", "#191e26", "#234a68", "#4c97cc", "#a8d8fb")
_DARK_LAYERS = ("#a56cd1", "#7f93e0", "#35b5b0", "#7fdc82", "#f0dd4a")
_LAYER_STEPS = 64


def scale(colours: tuple[str, ...]) -> list[list]:
    """Colours at equal steps from 0 to 1, as plotly wants a colour scale."""
    return [[i / (len(colours) - 1), colour] for i, colour in enumerate(colours)]


SHADE_SCALE = scale(SHADES)
DIVERGING_SCALE = scale(DIVERGING)
LAYER_SCALE = scale(LAYERS)
BAR = {"thickness": 10, "len": 1, "outlinewidth": 0}
KIND_COLOUR = {"sliding_attention": SLIDING, "full_attention": FULL}


def template() -> go.layout.Template:
    """The template of every figure."""
    axis = {
        "showline": True,
        "linecolor": AXIS,
        "ticks": "outside",
        "tickcolor": AXIS,
        "ticklen": 4,
        "gridcolor": GRID,
        "zeroline": False,
        "zerolinecolor": AXIS,
        "title": {"standoff": 8, "font": {"size": 13}},
        "automargin": True,
    }
    layout = go.Layout(
        font={"family": FONT, "size": 12, "color": INK},
        title={
            "font": {"size": 15},
            "subtitle": {"font": {"size": 12, "color": QUIET}},
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "yref": "container",
            "y": 1,
            "yanchor": "top",
            "pad": {"t": 12},
        },
        paper_bgcolor=PAPER,
        plot_bgcolor=PAPER,
        colorway=SERIES,
        xaxis=axis,
        yaxis=axis,
        margin={"l": 56, "r": 16, "t": 44, "b": 48},
        hoverlabel={"font": {"family": FONT, "size": 12, "color": INK}, "bgcolor": PAPER, "bordercolor": AXIS},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": AXIS, "activecolor": QUIET},
    )
    return go.layout.Template(layout=layout)


def layer_colour(position: float) -> str:
    """The colour of a layer at a place in 0 … 1 of the model's depth, one of 64 steps."""
    return hexadecimal(round(min(max(position, 0.0), 1.0) * (_LAYER_STEPS - 1)) / (_LAYER_STEPS - 1), LAYER_SCALE)


def hexadecimal(position: float, colours: list[list]) -> str:
    """The colour at a position in 0 … 1 of a scale, as ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*rgb(position, colours))


def rgb(position: float, colours: list[list]) -> tuple[int, int, int]:
    """Red, green and blue (0 … 255) at a position in 0 … 1 of a scale."""
    position = min(max(position, 0.0), 1.0)
    upper = next(i for i, (edge, _) in enumerate(colours) if position <= edge)
    if upper == 0:
        return _channels(colours[0][1])
    (low, start), (high, stop) = colours[upper - 1], colours[upper]
    share = (position - low) / (high - low)
    pairs = zip(_channels(start), _channels(stop), strict=True)
    r, g, b = (round(a + (z - a) * share) for a, z in pairs)
    return r, g, b


def _channels(colour: str) -> tuple[int, int, int]:
    """``#rrggbb`` as three numbers."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _dark_partners() -> dict[str, str]:
    """Each colour of a light figure and its partner on a dark page."""
    named = {
        INK: "#e3e9ef",
        QUIET: "#a3b0bd",
        AXIS: "#56616d",
        GRID: "#262e38",
        SLIDING: "#58b0ea",
        FULL: "#f08a4b",
        BOUND: "#dfe6ee",
        LIMIT: "#f57fe0",
        "#009e73": "#2cc79a",
        "#cc79a7": "#e29ac1",
        "#e69f00": "#f2b632",
        "#56b4e9": "#9ad6fa",
        "#7a6a00": "#c9b63c",
        "#4b4bc8": "#9c9cf5",
    }
    scales = ((SHADES, _DARK_SHADES), (DIVERGING, _DARK_DIVERGING), (LAYERS, _DARK_LAYERS))
    for light, dark in scales:
        named |= dict(zip(light, dark, strict=True))
    for step in range(_LAYER_STEPS):
        place = step / (_LAYER_STEPS - 1)
        named[layer_colour(place)] = hexadecimal(place, scale(_DARK_LAYERS))
    return named


DARK = _dark_partners()
# Where a figure holds text or data and a colour-like string is none of ours to change.
CONTENT_KEYS = frozenset({"text", "hovertext", "customdata", "ticktext", "name", "x", "y", "z", "hovertemplate"})


def dark(figure: go.Figure) -> go.Figure:
    """The same figure in dark colours, for a dark page or slide."""
    text = checks.instance("figure", figure, go.Figure, "a figure of interp.plots").to_json()
    return go.Figure(_exchange(json.loads(text or "{}")))


def _exchange(value: Any) -> Any:
    """A figure's JSON with every colour exchanged, its texts and data untouched."""
    if isinstance(value, str):
        return DARK.get(value, value)
    if isinstance(value, list):
        return [_exchange(item) for item in value]
    if isinstance(value, dict):
        return {key: item if key in CONTENT_KEYS else _exchange(item) for key, item in value.items()}
    return value


# By this name anybody's own figure can look like ours: pio.templates.default = "ropescope".
pio.templates["ropescope"] = template()
