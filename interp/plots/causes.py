"""What moved a metric: heads beside what doing without them costs, signed maps, the text coloured by effect."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from hooks.checks import choice, instance
from hooks.errors import InputError
from interp.common.words import token_text
from interp.plots import theme
from interp.plots.base import finish, label_of, say, with_heads
from interp.plots.given import drawn
from interp.plots.highlight import Highlight
from interp.plots.maps import head_scores, layer_head_map

_PARTS = ("effect", "effect_positive", "effect_negative", "score_effect")
_ACROSS, _DOWN = 10, 24
_LONGEST_TOKEN = 10


@drawn
def effect_by_head(
    effects: xr.Dataset,
    *,
    ablated: xr.Dataset | None = None,
    title: str | None = None,
    highlight: Highlight = None,
) -> go.Figure:
    """What each head does for the metric, blue for and orange against it, beside what is lost without the head.

    Args:
        effects: an `attribution` Dataset.
        ablated: a `knock_out_sweep` Dataset of the same model, text and metric, without segments: what really happens
            where the effects say what would to first order.
        title: heading of the figure; by default the metric.
        highlight: heads to pick out, as (layer, head), or {(layer, head): name}.

    Raises:
        InputError: ablated is another Dataset, or of another metric.
    """
    effects = with_heads(effects)
    shown = effects[[name for name in _PARTS if name in effects]]
    if ablated is not None:
        given = instance("ablated", ablated, xr.Dataset, "what knock_out_sweep returned")
        if given.attrs.get("analysis") != "knock_out_sweep" or set(given["change"].dims) != {"layer", "head"}:
            raise InputError("ablated: give what knock_out_sweep returned for whole heads, without segments")
        if given.attrs.get("metric") != effects.attrs.get("metric"):
            raise InputError(
                f"ablated is about {given.attrs.get('metric')} and effects about {effects.attrs.get('metric')}: "
                "knock out under the same metric"
            )
        lost = (-given["change"]).assign_attrs(units="metric")
        shown = shown.assign(lost_without_it=lost.reindex(layer=effects["layer"], head=effects["head"]))
    return head_scores(shown, title=title or _about(effects), highlight=highlight)


@drawn
def effect_map(cells: xr.DataArray, *, title: str | None = None) -> go.Figure:
    """Where in the text a head's effect comes from: queries down, keys right, blue for the metric, orange against it.

    Args:
        cells: effect_map of an `attribution` Dataset over (map_query, map_key), of one head or summed over some.
        title: heading of the figure.
    """
    values = cells.transpose("map_query", "map_key").values.astype(np.float32)
    figure = go.Figure(_signed(values, x=cells["map_key"].values, y=cells["map_query"].values))
    figure.update_traces(
        hovertemplate="query %{y:,.0f}, key %{x:,.0f}: %{z:.3g}<extra></extra>",
        colorbar={"title": {"text": label_of(cells, "effect"), "side": "right"}, **theme.BAR},
    )
    if not np.isfinite(values).any():
        say(figure, "nothing to draw: no cell has a number")
    place = {"showgrid": False, "tickformat": ",", "constrain": "domain"}
    figure.update_xaxes(title="key position [tokens]", **place)
    figure.update_yaxes(title="query position [tokens]", autorange="reversed", scaleanchor="x", **place)
    return finish(
        figure,
        title or str(cells.attrs.get("description", "Effect by pair")),
        460,
        str(cells.attrs.get("averaged", "")),
    )


@drawn
def effect_by_token(effects: xr.Dataset, *, by: str = "key", title: str | None = None) -> go.Figure:
    """The text, its tokens coloured by effect: blue spoke for the metric, orange against it, white did nothing.

    Args:
        effects: an `attribution` Dataset, whole or a selection of its layers and heads, over which effects are summed.
        by: "key" for what was read at a token, "query" for what was given to it.
        title: heading of the figure; by default the metric.
    """
    by = choice("by", by, ("key", "query"))
    summed = effects[f"effect_by_{by}"]
    values = summed.sum([dim for dim in summed.dims if dim != by]).values.astype(np.float64)
    tokens = np.asarray([token_text(token, _LONGEST_TOKEN) for token in effects["key_token"].values], dtype=object)
    positions, start = effects[by].values, _busiest(values, _ACROSS * _DOWN)
    kept = slice(start, start + _ACROSS * _DOWN)
    values, tokens, positions = values[kept], tokens[kept], positions[kept]
    rows = -(-len(values) // _ACROSS)
    z, text = np.full(rows * _ACROSS, np.nan), np.full(rows * _ACROSS, "", dtype=object)
    at = np.full(rows * _ACROSS, -1)
    z[: len(values)], text[: len(values)], at[: len(values)] = values, tokens, positions
    figure = go.Figure(
        _signed(
            z.reshape(rows, _ACROSS).astype(np.float32),
            x=np.arange(_ACROSS),
            y=np.arange(rows),
            text=text.reshape(rows, _ACROSS),
            texttemplate="%{text}",
            customdata=at.reshape(rows, _ACROSS),
            xgap=1,
            ygap=1,
        )
    )
    figure.update_traces(
        hovertemplate="%{text} at %{customdata:,}: %{z:.4g}<extra></extra>",
        hoverongaps=False,
        colorbar={"title": {"text": label_of(summed, "effect"), "side": "right"}, **theme.BAR},
    )
    firsts = [f"{int(each):,}" for each in positions[::_ACROSS]]
    figure.update_yaxes(title="position of the first", tickvals=np.arange(rows), ticktext=firsts, autorange="reversed")
    figure.update_xaxes(title="tokens, in the order of the text", showticklabels=False, ticks="")
    figure.update_layout(xaxis_showgrid=False, yaxis_showgrid=False)
    whole = len(effects[by]) <= _ACROSS * _DOWN
    note = "" if whole else f"the {len(values):,} tokens in a row with the largest effects, of {len(effects[by]):,}"
    heads = sum(len(np.atleast_1d(effects[dim])) > 1 for dim in ("layer", "head"))
    said = ("summed over heads" if heads else "", note, str(effects.attrs.get("averaged", "")))
    note = "; ".join(part for part in said if part)
    return finish(figure, title or _about(effects), 150 + 24 * max(rows, 3), note)


@drawn
def patched(result: xr.Dataset, *, title: str | None = None, highlight: Highlight = None) -> go.Figure:
    """What patches bring back, or knock-outs cost: a map over heads or positions, or a bar for each layer.

    Args:
        result: what `activation_patching`, `attribution_patching` or `knock_out_sweep` returned.
        title: heading of the figure; by default what was done to which metric.
        highlight: heads to pick out, as (layer, head), or {(layer, head): name}.
    """
    name = "restored" if "restored" in result and np.isfinite(result["restored"]).any() else "change"
    values, note = result[name if name in result else "metric"], str(result.attrs.get("averaged", ""))
    values, title = values.assign_attrs(averaged=note), title or str(result.attrs.get("description", ""))
    if "segment" in values.dims:
        parts = {str(part): values.sel(segment=part, drop=True) for part in values["segment"].values}
        return head_scores(xr.Dataset(parts, attrs={"averaged": note}), title=title, highlight=highlight)
    if "kv_head" in values.dims:
        values = values.rename(kv_head="head")
    if "head" in values.dims or "head" in values.coords:
        return layer_head_map(values, title=title, highlight=highlight)
    values = values if "layer" in values.dims else values.expand_dims("layer")
    if "position" in values.dims:
        return _by_position(values, title)
    figure = go.Figure(go.Bar(x=[str(x) for x in values["layer"].values], y=values.values.astype(np.float32)))
    figure.update_traces(marker={"color": theme.SLIDING}, hovertemplate="layer %{x}: %{y:.4g}<extra></extra>")
    figure.update_xaxes(title="layer", type="category")
    figure.update_yaxes(title=label_of(values, name))
    return finish(figure, title, 320, note)


def _by_position(values: xr.DataArray, title: str) -> go.Figure:
    """Layers down, positions right."""
    z = values.transpose("layer", "position").values.astype(np.float32)
    figure = go.Figure(_signed(z, x=values["position"].values, y=[str(x) for x in values["layer"].values]))
    figure.update_traces(
        hovertemplate="layer %{y}, position %{x:,}: %{z:.4g}<extra></extra>",
        colorbar={"title": {"text": label_of(values, str(values.name)), "side": "right"}, **theme.BAR},
    )
    figure.update_xaxes(title="position [tokens]", tickformat=",", showgrid=False)
    figure.update_yaxes(title="layer", type="category", autorange="reversed", showgrid=False)
    return finish(figure, title, int(np.clip(130 + 20 * len(z), 240, 900)), str(values.attrs["averaged"]))


def _signed(z: np.ndarray, **options: object) -> go.Heatmap:
    """Cells in colours that go both ways from white, which is zero."""
    top = float(np.nanmax(np.abs(z), initial=0.0)) or 1.0
    return go.Heatmap(z=z, zmin=-top, zmax=top, colorscale=theme.DIVERGING_SCALE, **options)


def _busiest(values: np.ndarray, most: int) -> int:
    """Where the run of so many values begins whose absolute sum is largest."""
    if len(values) <= most:
        return 0
    total = np.concatenate([[0.0], np.cumsum(np.abs(values))])
    return int(np.argmax(total[most:] - total[:-most]))


def _about(effects: xr.Dataset) -> str:
    """The metric and its value, as a heading."""
    if "metric" not in effects.attrs:
        return "Effects"
    return f"{effects.attrs['metric']} = {float(effects.attrs['metric_value']):.4g}"
