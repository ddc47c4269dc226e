"""The grid of a needle sweep: lengths across, depths down."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp.plots import theme
from interp.plots.base import finish, label_of, say
from interp.plots.given import drawn

# A cell narrower than this has no room for its number.
_MOST_WRITTEN = 12


@drawn
def needle_grid(sweep: xr.Dataset, *, title: str | None = None) -> go.Figure:
    """The answer's loss by length and depth, with a mark where greedy decoding gives the answer.

    Args:
        sweep: a `needle_sweep` Dataset.
        title: heading of the figure; by default in how many of the texts the answer was found.
    """
    found = sweep["found"].astype(np.float64)
    found = found.expand_dims([dim for dim in ("length", "depth") if dim not in found.dims])
    marks = np.where(found.transpose("depth", "length").values == 1, "✓", "")
    share = np.where((found > 0) & (found < 1), 1, 0).any()
    many = f"{float(found.mean()):.0%} of the" if share else f"{int(found.sum())} of {found.size}"
    said = f"Loss of the needle's answer; found (✓) in {many} texts"
    return _grid(sweep["answer_loss"], marks, title or said, str(sweep.attrs.get("averaged", "")))


@drawn
def needle_cells(values: xr.DataArray, *, title: str | None = None) -> go.Figure:
    """One variable of a sweep by length and depth.

    Args:
        values: any array over (length, depth).
        title: heading of the figure; by default the variable's description.
    """
    title = title or str(values.attrs.get("description") or values.name or "")
    return _grid(values, None, title, str(values.attrs.get("averaged", "")))


def _grid(values: xr.DataArray, marks: np.ndarray | None, title: str, note: str) -> go.Figure:
    """Lengths across and depths down, each cell with its number."""
    values = values.expand_dims([dim for dim in ("length", "depth") if dim not in values.dims])
    z = values.transpose("depth", "length").values.astype(np.float32)
    marks = np.full(z.shape, "") if marks is None else marks
    written = [
        [f"{mark} {number:.3g}".strip() if np.isfinite(number) else "" for mark, number in zip(*row, strict=True)]
        for row in zip(marks, z, strict=True)
    ]
    lengths, depths = (np.atleast_1d(values[name].values) for name in ("length", "depth"))
    name = str(values.name or "value").replace("_", " ")
    trace = go.Heatmap(
        z=z,
        x=[f"{length:,}" for length in lengths.tolist()],
        y=[f"{depth:.3g}" for depth in depths.tolist()],
        zmin=0,
        zmax=float(np.nanmax(z, initial=0.0)) or 1.0,
        colorscale=theme.SHADE_SCALE,
        xgap=1,
        ygap=1,
        hoverongaps=False,
        text=written,
        texttemplate="%{text}" if len(lengths) <= _MOST_WRITTEN else None,
        hovertemplate=f"%{{x}} tokens, depth %{{y}}: {name} %{{text}}<extra></extra>",
        colorbar={"title": {"text": label_of(values, name), "side": "right"}, **theme.BAR},
    )
    figure = go.Figure(trace)
    figure.update_xaxes(type="category", title="length [tokens]", showgrid=False)
    figure.update_yaxes(type="category", title="depth of the needle", showgrid=False, autorange="reversed")
    if not np.isfinite(z).any():
        say(figure, "nothing to draw: no cell has a number")
    return finish(figure, title, int(np.clip(150 + 36 * len(depths), 240, 700)), note)
