"""Figures along features and frequency pairs: massive values, and how near pairs come to their bounds."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.plots import theme
from interp.plots.bands import caption
from interp.plots.base import DECADES, finish, with_heads
from interp.plots.curves import Along, add_curves, key_to_colours
from interp.plots.given import drawn
from interp.plots.highlight import Highlight

_TICKS = [step * 10.0**power for power in range(-6, 7) for step in (1, 3)]


@drawn
def massive_values(
    values: xr.Dataset,
    *,
    title: str = "Features of q, k and v as multiples of the head's mean",
    highlight: Highlight = None,
) -> go.Figure:
    """A panel for each of q, k and v with one line per head along the features; the dotted line is the threshold.

    Of k and v the line of a head is that of the kv head which it reads.

    Args:
        values: a `massive_values` Dataset.
        title: heading of the figure.
        highlight: heads to pick out, as (layer, head), or {(layer, head): name}.
    """
    names = [name for name in "qkv" if f"{name}_ratio" in values]
    figure = make_subplots(rows=len(names), vertical_spacing=0.06)
    for row, name in enumerate(names, start=1):
        where: Any = {"row": row, "col": 1}
        ratio = values[f"{name}_ratio"]
        if "kv_head" in ratio.dims:
            ratio = ratio.isel(kv_head=values["kv_head_of"])
        ratio = ratio.rename({"value_feature": "feature"}) if "value_feature" in ratio.dims else ratio
        # Bands of a mean over texts are of q alone: k and v are drawn for each of their heads.
        data = with_heads(ratio.rename("ratio").to_dataset().assign_attrs(values.attrs))
        feature = np.arange(data.sizes["feature"])
        along = Along(feature, feature.astype(str), "feature")
        add_curves(figure, data, "ratio", along, highlight=highlight, **where)
        figure.add_hline(y=values.attrs["factor"], line={"color": theme.LIMIT, "width": 1, "dash": "dot"}, **where)
        figure.update_yaxes(type="log", title=f"{name} / mean", tickvals=_TICKS, **where)
        figure.update_xaxes(range=[-0.5, len(feature) - 0.5], title="feature" if row == len(names) else None, **where)
        if row == 1:
            key_to_colours(figure, data)
    counts = ", ".join(f"{float(values[f'{name}_massive'].sum()):,.0f} of {name}" for name in names)
    said = f"above {values.attrs['factor']:g} × the mean: {counts}"
    return finish(figure, title, 120 + 170 * len(names), "; ".join(x for x in (caption(figure, values), said) if x))


@drawn
def pair_attainment(
    pairs: xr.Dataset,
    *,
    title: str = "How near each frequency pair comes to what its norms allow",
    highlight: Highlight = None,
) -> go.Figure:
    """Two panels with a line per head along the frequency pairs, the fastest first: the bound, and the share reached.

    Args:
        pairs: a `pair_attainment` Dataset.
        title: heading of the figure.
        highlight: heads to pick out, as (layer, head), or {(layer, head): name}.
    """
    data = with_heads(pairs)
    pair = data["pair"].values
    along, figure = Along(pair, pair.astype(str), "pair"), make_subplots(rows=2, vertical_spacing=0.08)
    panels = (("pair_bound", "bound [score]", True), ("attainment", "reached, 1 is all", False))
    for row, (name, said, log) in enumerate(panels, start=1):
        where: Any = {"row": row, "col": 1}
        add_curves(figure, data, name, along, highlight=highlight, log=log, **where)
        figure.update_yaxes(title=said, **(DECADES | {"type": "log"} if log else {}), **where)
        ends = [float(pair.min()) - 0.5, float(pair.max()) + 0.5]
        figure.update_xaxes(range=ends, title="frequency pair, the fastest first" if row == 2 else None, **where)
    key_to_colours(figure, data)
    return finish(figure, title, 520, caption(figure, data))
