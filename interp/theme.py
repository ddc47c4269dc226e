"""How figures look: one plotly template, colours that hold up for colour-blind readers and in grey."""

import plotly.graph_objects as go

INK = "#1f2933"
QUIET = "#66727f"
GRID = "#e6eaee"
SLIDING = "#0072b2"
FULL = "#d55e00"
BOUND = "#1f2933"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

# Light is little, dark is much; readable in print.
SHADES = ("#ffffff", "#dbe9f6", "#9fc9e6", "#4a98c9", "#1764ab", "#08264f")
SHADE_SCALE = [[i / (len(SHADES) - 1), colour] for i, colour in enumerate(SHADES)]
# Viridis without its palest end, which vanishes on white.
LAYER_SCALE = [
    [0.0, "#440154"],
    [0.25, "#3b528b"],
    [0.5, "#21918c"],
    [0.75, "#5ec962"],
    [1.0, "#c9b400"],
]
KIND_COLOUR = {"sliding_attention": SLIDING, "full_attention": FULL}
KIND_NAME = {"sliding_attention": "sliding", "full_attention": "full"}


def template() -> go.layout.Template:
    """The template of every figure."""
    axis = {
        "showline": True,
        "linecolor": "#aab4be",
        "ticks": "outside",
        "tickcolor": "#aab4be",
        "ticklen": 4,
        "gridcolor": GRID,
        "zeroline": False,
        "title": {"standoff": 8, "font": {"size": 13}},
        "automargin": True,
    }
    layout = go.Layout(
        font={"family": FONT, "size": 12, "color": INK},
        title={"font": {"size": 15}, "x": 0, "xref": "paper", "xanchor": "left", "yref": "container", "y": 0.98},
        paper_bgcolor="#ffffff",
        plot_bgcolor="#ffffff",
        colorway=[SLIDING, FULL, "#009e73", "#cc79a7", "#e69f00", "#56b4e9"],
        xaxis=axis,
        yaxis=axis,
        margin={"l": 56, "r": 16, "t": 44, "b": 48},
        hoverlabel={"font": {"family": FONT, "size": 12}},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
    )
    return go.layout.Template(layout=layout)


def blend(position: float, scale: list[list] = LAYER_SCALE) -> str:
    """The colour at a position in 0 … 1 of a scale, as ``rgb(r, g, b)``."""
    return "rgb({}, {}, {})".format(*rgb(position, scale))


def rgb(position: float, scale: list[list]) -> tuple[int, int, int]:
    """Red, green and blue (0 … 255) at a position in 0 … 1 of a scale."""
    position = min(max(position, 0.0), 1.0)
    upper = next(i for i, (edge, _) in enumerate(scale) if position <= edge)
    if upper == 0:
        return _channels(scale[0][1])
    (low, start), (high, stop) = scale[upper - 1], scale[upper]
    share = (position - low) / (high - low)
    pairs = zip(_channels(start), _channels(stop), strict=True)
    r, g, b = (round(a + (z - a) * share) for a, z in pairs)
    return r, g, b


def _channels(colour: str) -> tuple[int, int, int]:
    """``#rrggbb`` as three numbers."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
