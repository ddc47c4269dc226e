"""Score ranges: a bar per head at each stage, or under each variant, with the proven bound and float16's limit."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.common.words import KIND_NAME, head_name
from interp.plots import theme
from interp.plots.base import finish, heads_of, say, signed_log, signed_log_ticks, with_heads
from interp.plots.given import drawn
from interp.plots.highlight import Highlight, head_ticks, mark_places, named_heads

_PANEL_HEIGHT, _STRIP_HEIGHT, _GAP, _GAP_BELOW_AXIS, _MARGINS = 160, 40, 50, 72, 146
_WORDS = {
    "as_run": "As run",
    "no_norm": "Without QK-norm",
    "no_rope": "Without RoPE",
    "swapped_order": "QK-norm and RoPE in the other order",
}


@drawn
def score_ranges(ranges: xr.Dataset, *, title: str | None = None, highlight: Highlight = None) -> go.Figure:
    """One bar per head from its smallest to its largest score, a panel for each stage or variant, with the bound.

    Where the Dataset has quantiles, the outer bar is pale and the inner one holds the scores between them. A stage or
    variant that no head has is a strip with a sentence that says why.

    Args:
        ranges: a `score_ranges` or `stage_ranges` Dataset.
        title: heading of the figure.
        highlight: heads to pick out, as (layer, head), or {(layer, head): name}.
    """
    ranges = with_heads(ranges)
    dim = "variant" if "variant" in ranges.coords else "stage"
    ranges = ranges if dim in ranges.dims else ranges.expand_dims(dim)
    named = named_heads(highlight, ranges)
    panels = [(label, _Panel(ranges.sel({dim: name}))) for name, label in _names(ranges, dim)]
    panels.sort(key=lambda named: not named[1].measured)  # strips last, below the heads' axis
    lowest = max(sum(panel.measured for _, panel in panels), 1)
    gap = _GAP if lowest == len(panels) else _GAP_BELOW_AXIS
    tall = [_PANEL_HEIGHT if panel.measured else _STRIP_HEIGHT for _, panel in panels]
    figure = make_subplots(
        rows=len(panels),
        cols=1,
        shared_xaxes=True,
        row_heights=tall,
        vertical_spacing=gap / (sum(tall) + gap * (len(panels) - 1)) if len(panels) > 1 else 0,
        subplot_titles=[label for label, _ in panels],
    )
    figure.update_annotations(font={"size": 13}, x=0, xanchor="left")
    figure.update_yaxes(**signed_log_ticks(max(panel.reach for _, panel in panels)))
    shown: set[str] = set()
    for row, (_, panel) in enumerate(panels, start=1):
        if panel.measured:
            panel.draw(figure, row, shown)
            figure.update_yaxes(title="score", row=row, col=1, zeroline=True)
            mark_places(figure, ranges, named, across=True, row=row, col=1)
        else:
            say(figure, f"no head has it: {panel.reason or 'it was not measured'}", row=row, col=1)
            figure.update_yaxes(title=None, showticklabels=False, ticks="", showgrid=False, row=row, col=1)
    figure.update_xaxes(**head_ticks(ranges, 30, named, across=True), range=[-1, len(heads_of(ranges))], showgrid=False)
    figure.update_xaxes(title="layer (one bar per head)", showticklabels=True, row=lowest, col=1)
    figure.update_layout(barmode="overlay", bargap=0)
    return finish(figure, title, height=_MARGINS + sum(tall) + gap * (len(panels) - 1))


class _Panel:
    """The numbers of one panel, flat over heads, and the traces that draw them."""

    def __init__(self, part: xr.Dataset):
        self.heads = heads_of(part)
        self.x = np.arange(len(self.heads))
        self.kinds = _kinds(part)
        self.low, self.high = self._flat(part, "min"), self._flat(part, "max")
        self.mean, self.bound = self._flat(part, "mean"), self._flat(part, "bound")
        self.both_sides = "bound" not in part or part["bound"].attrs.get("side", "both") == "both"
        self.limit = self._flat(part, "float16_limit")
        self.inner = self._quantiles(part)
        self.measured = bool((np.isfinite(self.low) & np.isfinite(self.high)).any())
        reasons = part["bound_reason"].values.ravel().tolist() if "bound_reason" in part else []
        self.reason = "; ".join(dict.fromkeys(reason for reason in reasons if reason))

    @property
    def reach(self) -> float:
        """The largest score or bound in size."""
        drawn = np.concatenate([self.low, self.high, self.bound, self.limit])
        drawn = np.abs(drawn[np.isfinite(drawn)])
        return float(drawn.max()) if drawn.size else 1.0

    def draw(self, figure: go.Figure, row: int, shown: set[str]) -> None:
        """Add every trace; `shown` keeps each name in the legend once."""
        bound = {"color": theme.BOUND, "width": 1.6}
        self._line(figure, row, shown, self.bound, "proven bound", bound, (1, -1) if self.both_sides else (1,))
        limit = {"color": theme.LIMIT, "width": 1.2, "dash": "dot"}
        self._line(figure, row, shown, self.limit, "q·k reaches float16's largest number", limit)
        for kind, colour in theme.KIND_COLOUR.items():
            if not (mine := (self.kinds == kind) & np.isfinite(self.low + self.high)).any():
                continue
            name = f"{KIND_NAME[kind]} layers"
            pale = 1.0 if self.inner is None else 0.35
            self._bars(figure, row, mine, (self.low, self.high), colour, pale, name if name not in shown else None)
            shown.add(name)
            if self.inner is not None:
                self._bars(figure, row, mine, self.inner, colour, 1.0, None)
        if not np.isfinite(self.mean).any():
            return
        figure.add_scatter(
            x=self.x,
            y=signed_log(self.mean),
            mode="markers",
            marker={"symbol": "line-ew-open", "size": 4, "color": theme.PAPER, "line": {"width": 1.5}},
            hoverinfo="skip",
            showlegend=False,
            row=row,
            col=1,
        )

    def _bars(
        self,
        figure: go.Figure,
        row: int,
        mine: np.ndarray,
        ends: tuple[np.ndarray, np.ndarray],
        colour: str,
        opacity: float,
        legend: str | None,
    ) -> None:
        """Bars between two ends of each head."""
        low, high = signed_log(ends[0]), signed_log(ends[1])
        figure.add_bar(
            x=self.x[mine],
            y=(high - low)[mine],
            base=low[mine].tolist(),
            width=0.72,
            marker={"color": colour, "opacity": opacity, "line": {"width": 0}},
            hovertext=[text for text, keep in zip(self._hover(), mine, strict=True) if keep],
            hoverinfo="text",
            name=legend or "",
            legendgroup=colour,
            showlegend=legend is not None,
            row=row,
            col=1,
        )

    def _hover(self) -> list[str]:
        """What a bar says of its head."""
        rows, sign = zip(self.heads, self.low, self.high, self.mean, self.bound, strict=True), "±" * self.both_sides
        return [
            f"{head_name(*head)}: {low:.4g} … {high:.4g}, mean {mean:.4g}"
            + (f", bound {sign}{bound:.4g}" if np.isfinite(bound) else "")
            for head, low, high, mean, bound in rows
        ]

    def _line(
        self,
        figure: go.Figure,
        row: int,
        shown: set[str],
        values: np.ndarray,
        name: str,
        line: dict,
        signs: tuple[int, ...] = (1, -1),
    ) -> None:
        """A limit on one or both sides of zero, one step per head."""
        if not np.isfinite(values).any():
            return
        steps = np.stack([self.x - 0.5, self.x + 0.5, np.full(len(self.x), np.nan)], axis=1).ravel()
        for sign in signs:
            figure.add_scatter(
                x=steps,
                y=np.repeat(sign * signed_log(values), 3),
                mode="lines",
                line=line,
                hoverinfo="skip",
                name=name,
                legendgroup=name,
                showlegend=sign == 1 and name not in shown,
                row=row,
                col=1,
            )
        shown.add(name)

    def _flat(self, part: xr.Dataset, name: str) -> np.ndarray:
        """A variable head by head, under its own name or with ``score_`` before it; NaN where there is none."""
        found = next((key for key in (name, f"score_{name}") if key in part), None)
        if found is None:
            return np.full(len(self.heads), np.nan)
        values = part[found]
        return (
            values.broadcast_like(part["layer"] * part["head"]).transpose("layer", "head").values.ravel().astype(float)
        )

    def _quantiles(self, part: xr.Dataset) -> tuple[np.ndarray, np.ndarray] | None:
        """The outermost quantiles, if the Dataset has any."""
        found = next((key for key in ("quantile", "score_quantile", "quantiles") if key in part.data_vars), None)
        if found is None:
            return None
        level = next(str(d) for d in part[found].dims if d not in ("layer", "head"))
        ordered = part[found].sortby(level).transpose("layer", "head", level).values
        return ordered[..., 0].ravel().astype(float), ordered[..., -1].ravel().astype(float)


def _names(ranges: xr.Dataset, dim: str) -> list[tuple[str, str]]:
    """Each stage or variant and how it is called."""
    keys = [str(key) for key in ranges[dim].values]
    if f"{dim}_label" in ranges.coords:
        return list(zip(keys, (str(label) for label in ranges[f"{dim}_label"].values), strict=True))
    return [(key, _WORDS.get(key, key.replace("_", " "))) for key in keys]


def _kinds(part: xr.Dataset) -> np.ndarray:
    """The kind of layer of each head; full where the Dataset does not say."""
    if "layer_type" not in part.coords:
        return np.full(part.sizes["layer"] * part.sizes["head"], "full_attention")
    return np.repeat(np.atleast_1d(part["layer_type"].values).astype(str), part.sizes["head"])
