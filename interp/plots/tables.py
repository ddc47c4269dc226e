"""Tables as figures: a row per head, or a row per rank of heads or keys."""

import html
from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from hooks.errors import InputError
from interp.common.words import head_name, token_text, visible_text
from interp.plots import theme
from interp.plots.base import finish, heads_of, with_heads
from interp.plots.given import drawn


@drawn
def head_table(summary: xr.Dataset, *, title: str = "Heads") -> go.Figure:
    """The same numbers as a table: a row per head, a column per variable over (layer, head).

    Raises:
        InputError: there is no such variable.
    """
    summary = with_heads(summary)
    columns = {
        str(name): v.transpose("layer", "head").values.ravel()
        for name, v in summary.data_vars.items()
        if set(v.dims) == {"layer", "head"}
    }
    if not columns:
        raise InputError(f"no variable over (layer, head) to list among {', '.join(map(str, summary)) or 'none'}")
    heads = [head_name(*pair) for pair in heads_of(summary)]
    return _table({"head": heads, **columns}, title)


@drawn
def ranking(ranks: xr.Dataset, *, title: str | None = None) -> go.Figure:
    """A row per rank: the heads of each kind, those that changed most, or the keys that a query attends to.

    Args:
        ranks: a `typical_heads`, `ranked`, `top_keys`, `top_edges` or `top_tokens` Dataset.
        title: heading of the figure; by default what the ranking is of.
    """
    rows = ranks.to_dataframe(dim_order=list(ranks.dims)).reset_index()
    if {"layer", "head"} <= set(rows):
        rows = rows[rows["layer"] >= 0]
        names = [head_name(*pair) for pair in zip(rows.pop("layer"), rows.pop("head"), strict=True)]
        rows.insert(list(rows).index("rank") + 1, "head", names)
    columns = {str(name): values.tolist() for name, values in rows.items()}
    return _table(columns, str(ranks.attrs.get("description", "")) if title is None else title)


def _table(columns: Mapping[str, Any], title: str) -> go.Figure:
    """A figure of one table; texts stay texts."""
    cells = [np.asarray(values) for values in columns.values()]
    numeric = [values.dtype.kind in "fiub" for values in cells]
    style = {"align": "left", "line": {"color": theme.GRID}, "font": {"color": theme.INK}}
    figure = go.Figure(
        go.Table(
            header={
                "values": [name.replace("_", " ") for name in columns],
                "fill": {"color": theme.GRID},
                **style,
            },
            cells={
                "values": [
                    values if is_number else [_text(name, value) for value in values.tolist()]
                    for name, values, is_number in zip(columns, cells, numeric, strict=True)
                ],
                "format": [".4~g" if is_number else None for is_number in numeric],
                "fill": {"color": theme.PAPER},
                "height": 24,
                **style,
            },
        )
    )
    words = max((len(name.split("_")) for name in columns), default=1)  # a header has a line for each at worst
    return finish(figure, title, height=int(np.clip(130 + 16 * words + 25 * max(map(len, cells), default=0), 220, 900)))


def _text(column: str, value: object) -> str:
    """A cell's text; spaces are marked in tokens only."""
    return token_text(value) if column.endswith("token") else html.escape(visible_text(value), quote=False)
