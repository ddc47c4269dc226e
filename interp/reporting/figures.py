"""The figures that stand still in the report, each with its description in words."""

import json
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp import plots
from interp.common.words import KIND_NAME, head_name, visible_text
from interp.plots import png
from interp.reporting import sentences
from interp.reporting.page_data import as_script

_FLOOR = 1e-6
_MOST_CAUSES = 8
_LONGEST_TOKEN = 24
_WIDE = 640


@dataclass(frozen=True)
class FigureView:
    """A figure as the template places it: its data, its height, its description in words, the width that it needs."""

    key: str
    data: str
    height: int
    alt: str
    width: int


@dataclass(frozen=True)
class MapView:
    """The pooled attention map of one head."""

    title: str
    anchor: str
    image: str
    alt: str


@dataclass(frozen=True)
class MapRow:
    """The maps of one layer."""

    title: str
    maps: list[MapView]


def view(key: str, figure: go.Figure, alt: str, width: int = 0) -> FigureView:
    """A figure ready for the page, which scrolls sideways where there is less than its width in CSS pixels."""
    height = figure.layout.height  # pyright: ignore[reportAttributeAccessIssue]
    return FigureView(key, as_script(_plain(figure)), int(height), alt, width)


def _plain(figure: go.Figure) -> dict:
    """The figure as JSON values."""
    return json.loads(figure.to_json() or "{}")


def distance_views(
    binned: xr.Dataset, typical: xr.DataArray, ranges: xr.Dataset
) -> list[tuple[FigureView, FigureView]]:
    """Curves and shares by distance, a pair for each kind of layer, drawn on the same scales."""
    mean = binned["attention_mean"]
    positive = mean.where(mean > 0)
    limits = (max(float(positive.min()) / 1.5, _FLOOR), min(float(positive.max()) * 1.5, 1.2))
    ceiling = float(binned["attention_share"].quantile(0.995))
    views = []
    for kind, layers in sentences.kinds(ranges).items():
        name = f"{KIND_NAME[kind].capitalize()} layers"
        part = binned.sel(layer=layers)
        middle = sentences.number(float(np.median(typical.sel(layer=layers))))
        said = f"{name}: the median head spends half of its attention within {middle} tokens."
        curves = plots.attention_by_distance(part, title=name, y_range=limits)
        shares = plots.attention_share_by_head(part, title=f"{name}, head by head", ceiling=ceiling)
        views.append(
            (
                view(f"curves-{kind}", curves, f"Mean attention against distance, one line per head. {said}"),
                view(f"shares-{kind}", shares, f"Share of attention by distance, one row per head. {said}"),
            )
        )
    return views


def sink_views(sinks: xr.DataArray, r2: xr.DataArray) -> list[FigureView]:
    """First-token mass and positional R² of every head."""
    return [
        view(
            "sinks",
            plots.layer_head_map(sinks, title="Attention to the first token", ceiling=1),
            f"First-token attention by layer and head, from {float(sinks.min()):.0%} to {float(sinks.max()):.0%}.",
        ),
        view(
            "positional",
            plots.layer_head_map(r2, title="Positional R² of the scores", ceiling=1),
            f"Positional R² by layer and head, from {float(r2.min()):.0%} to {float(r2.max()):.0%}.",
        ),
    ]


def range_view(ranges: xr.Dataset) -> FigureView:
    """The score ranges of every head at each stage."""
    parts = [
        f"{label}: {sentences.number(float(ranges['score_min'].sel(stage=stage).min()))} to "
        f"{sentences.number(float(ranges['score_max'].sel(stage=stage).max()))}"
        for stage, label in zip(ranges["stage"].values, ranges["stage_label"].values, strict=True)
    ]
    alt = f"Smallest and largest score of every head at each stage. {'. '.join(parts)}."
    return view("ranges", plots.score_ranges(ranges), alt)


def variant_view(variants: xr.Dataset | None) -> FigureView | None:
    """The ranges as run and with norm and rotation changed, where some layer can be changed."""
    if variants is None:
        return None
    there = [name for name in variants["variant"].values if np.isfinite(variants["max"].sel(variant=name)).any()]
    if len(there) < 2:
        return None
    parts = [
        f"{str(name).replace('_', ' ')}: {sentences.number(float(variants['min'].sel(variant=name).min()))} to "
        f"{sentences.number(float(variants['max'].sel(variant=name).max()))}"
        for name in there
    ]
    alt = f"Smallest and largest score of every head under each variant. {'. '.join(parts)}."
    return view("variants", plots.score_ranges(variants.sel(variant=there)), alt)


def received_view(received: xr.Dataset | None) -> FigureView | None:
    """Attention received along the text."""
    if received is None:
        return None
    share = received["received_share"].median(("layer", "head"))
    parts = ", ".join(f"{float(share.sel(part=part)):.0%} at its {part}" for part in share["part"].values)
    alt = f"Mean attention that keys receive, by position. Of the median head's attention, {parts}."
    return view("received", plots.received_by_position(received), alt.replace("at its middle", "in its middle"))


@dataclass(frozen=True)
class CausesView:
    """What made the model say it: the metric with its value, the heads and tokens that count most, and the figures."""

    metric: str
    value: str
    heads: list[tuple[str, str, str, str]]
    tokens: list[tuple[str, str, str, str, str]]
    figures: list[FigureView]


def causes_view(effects: xr.Dataset | None) -> CausesView | None:
    """Effects by head, by token and by distance from the head with the largest, where a gradient was captured."""
    if effects is None:
        return None
    metric, value = visible_text(effects.attrs["metric"]), sentences.number(float(effects.attrs["metric_value"]))
    parts = ("effect", "effect_positive", "effect_negative")
    sizes = np.abs(effects["effect"].transpose("layer", "head").values)
    order = np.argsort(-sizes, axis=None, kind="stable")[:_MOST_CAUSES]
    places = [np.unravel_index(at, sizes.shape) for at in order]
    heads = []
    for layer, head in places:
        one = effects.isel(layer=layer, head=head)
        numbers = [sentences.number(float(one[name])) for name in parts]
        heads.append((head_name(int(one["layer"]), int(one["head"])), *numbers))
    summed = effects[[name.replace("effect", "effect_by_key") for name in parts]].sum(("layer", "head"))
    tokens = []
    for at in np.argsort(-np.abs(summed["effect_by_key"].values), kind="stable")[:_MOST_CAUSES]:
        numbers = [sentences.number(float(summed[name][at])) for name in summed]
        said = visible_text(str(effects["key_token"].values[at]), _LONGEST_TOKEN)
        tokens.append((said, f"{int(effects['key'][at]):,}", *numbers))
    best = effects.isel(layer=places[0][0], head=places[0][1])
    views = [
        view(
            "causes-heads",
            plots.effect_by_head(effects, title="By head"),
            f"Effect of every head on {metric}, from {sentences.number(float(effects['effect'].min()))} to "
            f"{sentences.number(float(effects['effect'].max()))}.",
            _WIDE,
        ),
        view(
            "causes-tokens",
            plots.effect_by_token(effects, title="By the token that was read"),
            f"The text, its tokens coloured by what reading them did for {metric}.",
            _WIDE,
        ),
        view(
            "causes-map",
            plots.effect_map(best["effect_map"]),
            f"Effect by query and key of {heads[0][0]}, the head with the largest.",
        ),
    ]
    return CausesView(metric, value, heads, tokens, views)


def loss_view(loss: xr.Dataset, second: xr.Dataset | None = None) -> FigureView:
    """Loss by position, of both captures where there are two."""
    mean = loss["loss_mean"].values
    alt = f"Mean loss by position: {mean[0]:.2f} nats in the first stretch, {mean[-1]:.2f} in the last."
    if second is None:
        return view("loss", plots.loss_by_position(loss), alt)
    other = second["loss_mean"].values
    alt += f" Second capture: {other[0]:.2f} and {other[-1]:.2f}."
    return view("loss", plots.loss_by_position({"first": loss, "second": second}), alt)


def map_rows(maps: xr.DataArray, sinks: xr.DataArray, typical: xr.DataArray, ranges: xr.Dataset) -> list[MapRow]:
    """The pooled maps, a row for each layer."""
    kind = dict(zip(ranges["layer"].values, ranges["layer_type"].values, strict=True))
    rows = []
    for layer in maps["layer"].values:
        row = []
        for head in maps["head"].values:
            at = {"layer": layer, "head": head}
            name = head_name(layer, head)
            alt = (
                f"Attention map of {name}: {float(sinks.sel(at)):.0%} on the first token, "
                f"half of the attention within {int(typical.sel(at)):,} tokens"
            )
            cells = maps.sel(at).transpose("map_query", "map_key").values
            row.append(MapView(name, f"L{layer}H{head}", png.data_uri(png.map_png(cells)), alt))
        rows.append(MapRow(f"Layer {layer}, {KIND_NAME[kind[layer]]}", row))
    return rows
