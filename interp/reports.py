"""One self-contained HTML file on a capture: figures, what each of them measures, and where the numbers come from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from hooks.errors import StageError
from interp import images, plots, summaries, theme
from interp.files import check_writable, write_text
from interp.losses import loss_by_position
from interp.positional import bin_distances, positional_bias, typical_distance
from interp.sinks import first_token_mass
from interp.stage_scores import stage_ranges

if TYPE_CHECKING:
    from interp.captures import Capture

_FLOOR = 1e-6


@dataclass(frozen=True)
class FigureView:
    """A figure as the template places it: its data, its height and its description in words."""

    key: str
    data: str
    height: int
    alt: str


@dataclass(frozen=True)
class MapView:
    """The pooled attention map of one head."""

    title: str
    image: str
    alt: str


@dataclass(frozen=True)
class MapRow:
    """The maps of one layer."""

    title: str
    maps: list[MapView]


@dataclass(frozen=True)
class Analyses:
    """Every Dataset that the report draws, restricted to the chosen heads."""

    bias: xr.Dataset
    binned: xr.Dataset
    typical: xr.DataArray
    ranges: xr.Dataset
    sinks: xr.DataArray
    maps: xr.DataArray
    loss: xr.Dataset


def report(cap: "Capture", path: str | Path, *, heads: Iterable[int] | None = None) -> Path:
    """Write the report: one HTML file that needs no network and no other file.

    Args:
        cap: what to report on.
        path: where to put it; replaced in one step, never half written.
        heads: which heads of each layer to show; None shows all.

    Returns:
        The path of the file.

    Raises:
        OutputError: the file cannot be written (checked before any computation).
        StageError: a head that the model does not have, or a capture that holds no loss.
    """
    check_writable(path)
    chosen = check_heads(cap.cfg.n_heads, heads)
    return write_text(path, render(cap, analyse(cap, chosen)))


def check_heads(n_heads: int, heads: Iterable[int] | None) -> list[int]:
    """The chosen heads in order, or a StageError for one that the model does not have."""
    chosen = list(range(n_heads)) if heads is None else sorted({int(head) for head in heads})
    if not chosen:
        raise StageError("no head was asked for: name at least one")
    for head in chosen:
        if not 0 <= head < n_heads:
            raise StageError(f"the model has no head {head}: its heads are 0 to {n_heads - 1}")
    return chosen


def analyse(cap: "Capture", heads: Sequence[int]) -> Analyses:
    """Run every analysis that the report shows."""
    loss = loss_by_position(cap)  # first: it refuses a capture without loss, and the rest takes a while
    bias = positional_bias(cap).sel(head=list(heads))
    return Analyses(
        bias=bias,
        binned=bin_distances(bias).assign_attrs(n_layers=cap.cfg.n_layers),
        typical=typical_distance(bias),
        ranges=stage_ranges(cap).sel(head=list(heads)),
        sinks=first_token_mass(cap).sel(head=list(heads)),
        maps=cap.statistics()["map_mean"].sel(head=list(heads)),
        loss=loss,
    )


def render(cap: "Capture", found: Analyses) -> str:
    """The report as HTML."""
    from plotly.offline import get_plotlyjs

    return _template().render(
        model=cap.model_id,
        cards=summaries.cards(cap, found.ranges, found.sinks, found.typical),
        sentences=summaries.sentences(cap, found.bias, found.ranges, found.sinks, found.typical),
        distance=_distance_figures(found),
        ranges=_view("ranges", plots.score_ranges(found.ranges), _ranges_alt(found.ranges)),
        map_rows=_map_rows(found),
        map_shades=theme.SHADES,
        map_decades=images.DECADES,
        sinks=_sink_figures(found),
        loss=_view("loss", plots.loss_by_position(found.loss), _loss_alt(found.loss)),
        table=_head_table(found),
        provenance=cap.provenance,
        plotly_js=get_plotlyjs(),
    )


@cache
def _template():
    """The page's template; everything put into it is escaped unless the template says otherwise."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("interp"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2")


def _view(key: str, figure: go.Figure, alt: str) -> FigureView:
    """A figure ready for the page; its JSON cannot end the script element that holds it."""
    data = figure.to_json()
    if data is None:
        raise RuntimeError("plotly returned no JSON")
    safe = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return FigureView(key, safe, int(figure.layout.height), alt)  # pyright: ignore[reportAttributeAccessIssue]


def _distance_figures(found: Analyses) -> list[tuple[FigureView, FigureView]]:
    """Curves and shares by distance, a pair for each kind of layer, drawn on the same scales."""
    mean = found.binned["attention_mean"]
    positive = mean.where(mean > 0)
    limits = (max(float(positive.min()) / 1.5, _FLOOR), min(float(positive.max()) * 1.5, 1.2))
    ceiling = float(found.binned["attention_share"].quantile(0.995))
    views = []
    for kind, layers in summaries.kinds(found.ranges).items():
        name = f"{theme.KIND_NAME[kind].capitalize()} layers"
        part = found.binned.sel(layer=layers)
        middle = summaries.number(float(np.median(found.typical.sel(layer=layers))))
        said = f"{name}: the median head spends half of its attention within {middle} tokens."
        curves = plots.attention_by_distance(part, title=name, y_range=limits)
        shares = plots.attention_share_by_head(part, title=f"{name}, head by head", ceiling=ceiling)
        views.append(
            (
                _view(f"curves-{kind}", curves, f"Mean attention against distance, one line per head. {said}"),
                _view(f"shares-{kind}", shares, f"Share of attention by distance, one row per head. {said}"),
            )
        )
    return views


def _sink_figures(found: Analyses) -> list[FigureView]:
    """First-token mass and positional R² of every head."""
    r2 = found.bias["positional_r2"]
    return [
        _view(
            "sinks",
            plots.layer_head_map(found.sinks, title="Attention to the first token"),
            f"First-token attention by layer and head, from {float(found.sinks.min()):.0%} "
            f"to {float(found.sinks.max()):.0%}.",
        ),
        _view(
            "positional",
            plots.layer_head_map(r2, title="Positional R² of the scores"),
            f"Positional R² by layer and head, from {float(r2.min()):.0%} to {float(r2.max()):.0%}.",
        ),
    ]


def _ranges_alt(ranges: xr.Dataset) -> str:
    """The range figure in words."""
    parts = [
        f"{label}: {summaries.number(float(ranges['score_min'].sel(stage=stage).min()))} to "
        f"{summaries.number(float(ranges['score_max'].sel(stage=stage).max()))}"
        for stage, label in zip(ranges["stage"].values, ranges["stage_label"].values, strict=True)
    ]
    return f"Smallest and largest score of every head at each stage. {'. '.join(parts)}."


def _loss_alt(loss: xr.Dataset) -> str:
    """The loss figure in words."""
    mean = loss["loss_mean"].values
    return f"Mean loss by position: {mean[0]:.2f} nats in the first stretch, {mean[-1]:.2f} in the last."


def _map_rows(found: Analyses) -> list[MapRow]:
    """The pooled maps, a row for each layer."""
    kind = dict(zip(found.ranges["layer"].values, found.ranges["layer_type"].values, strict=True))
    rows = []
    for layer in found.maps["layer"].values:
        maps = []
        for head in found.maps["head"].values:
            name = summaries.head_label(layer, head)
            alt = (
                f"Attention map of {name}: {float(found.sinks.sel(layer=layer, head=head)):.0%} on the first token, "
                f"half of the attention within {int(found.typical.sel(layer=layer, head=head)):,} tokens"
            )
            cells = found.maps.sel(layer=layer, head=head).transpose("map_query", "map_key").values
            maps.append(MapView(name, images.data_uri(images.map_png(cells)), alt))
        rows.append(MapRow(f"Layer {layer}, {theme.KIND_NAME[kind[layer]]}", maps))
    return rows


def _head_table(found: Analyses) -> dict[str, list]:
    """The numbers behind the figures, one row per head, for readers and screen readers."""
    stages = list(zip(found.ranges["stage"].values, found.ranges["stage_label"].values, strict=True))
    columns = ["Head", "Kind", "First token", "Half within [tokens]", "Positional R²"]
    columns += [str(label) for _, label in stages] + ["Bound", "Share of bound"]
    rows = []
    for layer in found.ranges["layer"].values:
        for head in found.ranges["head"].values:
            at = {"layer": layer, "head": head}
            one = found.ranges.sel(at)
            spans = [
                f"{summaries.number(float(one['score_min'].sel(stage=s)))} … "
                f"{summaries.number(float(one['score_max'].sel(stage=s)))}"
                if np.isfinite(one["score_min"].sel(stage=s))
                else "–"
                for s, _ in stages
            ]
            bound, share = float(one["bound"].sel(stage="final")), float(one["utilisation"].sel(stage="final"))
            rows.append(
                [
                    summaries.head_label(layer, head),
                    theme.KIND_NAME[str(one["layer_type"].item())],
                    f"{float(found.sinks.sel(at)):.1%}",
                    f"{int(found.typical.sel(at)):,}",
                    f"{float(found.bias['positional_r2'].sel(at)):.1%}",
                    *spans,
                    f"±{summaries.number(bound)}" if np.isfinite(bound) else "none",
                    f"{share:.1%}" if np.isfinite(share) else "–",
                ]
            )
    return {"columns": columns, "rows": rows}
