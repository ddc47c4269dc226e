"""Figures of what each query or key is, along the text: entropy, largest score, attention received, in stretches."""

from collections.abc import Sequence

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from hooks import checks
from hooks.errors import InputError
from interp.plots.bands import EDGES, caption
from interp.plots.base import finish, label_of, with_heads
from interp.plots.curves import add_curves, along_positions, key_to_colours
from interp.plots.given import drawn
from interp.plots.highlight import Highlight

_PANEL_HEIGHT = 160
_WORDS = {"sink_mass": "first-token mass"}


@drawn
def rows_by_position(
    rows: xr.Dataset,
    *,
    names: Sequence[str] | None = None,
    title: str = "What each query does, along the text",
    highlight: Highlight = None,
) -> go.Figure:
    """A panel for each variable, a line per head in each: the mean of a stretch, in the band of its lowest and highest.

    Args:
        rows: variables over (layer, head, position_bin), each with its band; a column for each ``variant``, if any.
        names: which variables to draw; None is all of them.
        title: heading of the figure.
        highlight: heads to pick out, as (layer, head), or {(layer, head): name}.

    Raises:
        InputError: no variable lies along the text.
    """
    rows = with_heads(rows)
    found = [str(name) for name, values in rows.items() if "position_bin" in values.dims]
    names = (
        [name for name in found if not name.endswith(EDGES)] if names is None else list(checks.words("names", names))
    )
    if not names:
        raise InputError("no variable over position_bin to draw")
    variants = [str(name) for name in rows["variant"].values] if "variant" in rows.dims else [""]
    figure = make_subplots(
        rows=len(names),
        cols=len(variants),
        shared_xaxes=True,
        shared_yaxes=True,
        vertical_spacing=0.12 / len(names),
        horizontal_spacing=0.04,
        subplot_titles=[name.replace("_", " ") for name in variants] if len(variants) > 1 else None,
    )
    along = along_positions(rows)
    for column, variant in enumerate(variants, start=1):
        part = rows.sel(variant=variant) if variant else rows
        for row, name in enumerate(names, start=1):
            add_curves(figure, part, name, along, highlight=highlight, log=False, row=row, col=column)
            if column == 1:
                words = _WORDS.get(name, name.replace("_", " "))
                figure.update_yaxes(title=label_of(rows[name], words), row=row, col=1)
        figure.update_xaxes(title="position [tokens]", tickformat=",", row=len(names), col=column)
    key_to_colours(figure, rows)
    return finish(figure, title, 130 + _PANEL_HEIGHT * max(len(names), 2), caption(figure, rows))
