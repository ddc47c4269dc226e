"""Figures of many texts: each head's number with its interval, and how far texts lie apart in it."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from hooks import checks
from hooks.errors import InputError
from interp.plots import theme
from interp.plots.base import finish, heads_of, label_of, names_of, say, with_heads
from interp.plots.given import drawn, in_words
from interp.plots.highlight import Highlight, head_ticks, mark_places, named_heads

_MOST_NAMED = 40


@drawn
def head_intervals(data: xr.Dataset, name: str, *, title: str | None = None, highlight: Highlight = None) -> go.Figure:
    """One point per head with its interval: a number of many texts, or a difference of two corpora.

    Heads whose interval leaves out zero are drawn strong where the numbers are differences.

    Args:
        data: what `Corpus.mean` or `Corpus.compare` returned.
        name: a variable over (layer, head) that has an interval: ``first_token_mass``, ``entropy_difference``, …
        title: heading of the figure; by default the variable's name.
        highlight: heads to pick out, as (layer, head), or {(layer, head): name}.

    Raises:
        InputError: there is no such variable, or it has no interval.
    """
    data = with_heads(data)
    checks.text("name", name)
    stem = name.removesuffix("_difference")
    if name not in data or f"{stem}_low" not in data or set(data[name].dims) != {"layer", "head"}:
        held = [str(n).removesuffix("_low") for n in data if str(n).endswith("_low")]
        raise InputError(f"name={name!r}: no number of heads with an interval; there are {', '.join(held) or 'none'}")
    value, low, high = (_flat(data[n]) for n in (name, f"{stem}_low", f"{stem}_high"))
    heads, named = names_of(data), named_heads(highlight, data)
    figure = go.Figure()
    is_difference = name != stem
    clear = (low > 0) | (high < 0) if is_difference else np.ones(len(value), dtype=bool)
    parts = [(clear, theme.SLIDING, "interval without zero" if is_difference else "")]
    parts += [(~clear, theme.AXIS, "interval with zero")] if is_difference else []
    for part, colour, words in parts:
        at = np.flatnonzero(part & np.isfinite(value))
        if not len(at):
            continue
        figure.add_scatter(
            x=at,
            y=value[at],
            error_y={**_error(value[at], low[at], high[at]), "thickness": 1.2, "width": 0, "color": colour},
            mode="markers",
            marker={"color": colour, "size": 5},
            text=[heads[i] for i in at],
            customdata=np.stack([low[at], high[at]], axis=-1),
            hovertemplate="%{text}: %{y:.3g} (%{customdata[0]:.3g} to %{customdata[1]:.3g})<extra></extra>",
            name=words,
            showlegend=bool(words),
        )
    if not len(figure.data):  # pyright: ignore[reportArgumentType]
        say(figure, "nothing to draw: no head has a number here")
    elif is_difference:
        figure.add_hline(y=0, line={"color": theme.QUIET, "width": 1, "dash": "dot"})
    figure.update_xaxes(
        title="layer (one point per head)",
        **head_ticks(data, 30, named, across=True),
        range=[-1, len(heads)],
        showgrid=False,
    )
    mark_places(figure, data, named, across=True)
    words = name.replace("_", " ")
    figure.update_yaxes(title=label_of(data[name], words), **_shares(data[name]))
    note = str(data.attrs.get("band", "")) if np.isfinite(low).any() else "a single text has no interval"
    return finish(figure, title or words[0].upper() + words[1:], 400, f"bars: {note}" if note[:1].isdigit() else note)


@drawn
def spread_over_texts(
    spread: xr.Dataset,
    *,
    name: str | None = None,
    most: int = 24,
    title: str | None = None,
    highlight: Highlight = None,
) -> go.Figure:
    """The heads in which texts differ most, widest first: median, middle half and 5 to 95 % of the texts.

    Args:
        spread: what `Corpus.spread` returned.
        name: which score; by default the first.
        most: how many heads; those that are picked out are drawn in any case.
        title: heading of the figure.
        highlight: heads to pick out, as (layer, head), or {(layer, head): name}.

    Raises:
        InputError: there is no such score.
    """
    spread = with_heads(spread)
    checks.whole("most", most, at_least=0)
    scores = [str(n).removesuffix("_quantile") for n in spread if str(n).endswith("_quantile")]
    if not scores:
        raise InputError(
            f"plots.spread_over_texts cannot draw {in_words(spread)}: it draws what `Corpus.spread` returned"
        )
    score = scores[0] if name is None else name
    if score not in scores:
        raise InputError(f"name={name!r}: no score of this spread; there are {', '.join(scores) or 'none'}")
    quantiles, deviation = spread[f"{score}_quantile"], _flat(spread[f"{score}_sd"])
    named, heads = named_heads(highlight, spread), heads_of(spread)
    order = [int(i) for i in np.argsort(-np.nan_to_num(deviation, nan=-1.0), kind="stable")]
    chosen = [i for place, i in enumerate(order) if np.isfinite(deviation[i]) and (place < most or heads[i] in named)]
    values = quantiles.transpose("q", "layer", "head").values.reshape(quantiles.sizes["q"], -1)[:, chosen]
    names = [named.get(heads[i], names_of(spread)[i]) for i in chosen]
    figure = go.Figure()
    at = np.arange(len(chosen))
    if len(chosen):
        low, lower, middle, upper, high = values
        said = np.stack([low, lower, upper, high], axis=-1)
        colours: Any = [theme.FULL if heads[i] in named else theme.SLIDING for i in chosen]
        for edges, width, words in (((low, high), 1.2, "5 to 95 % of the texts"), ((lower, upper), 6, "middle half")):
            figure.add_scatter(
                x=at,
                y=middle,
                error_y={**_error(middle, *edges), "thickness": width, "width": 0, "color": theme.SLIDING},
                mode="markers",
                marker={"color": theme.PAPER if width > 2 else colours, "size": 4 if width > 2 else 8},
                opacity=0.9,
                text=names,
                customdata=said,
                hovertemplate="%{text}: median %{y:.3g}, half of the texts %{customdata[1]:.3g} to %{customdata[2]:.3g}"
                ", 90 % %{customdata[0]:.3g} to %{customdata[3]:.3g}<extra></extra>",
                name=words,
                showlegend=False,
            )
    else:
        say(figure, "nothing to draw: no head has a number here")
    ticks = at if len(at) <= _MOST_NAMED else at[:: -(-len(at) // _MOST_NAMED)]
    figure.update_xaxes(
        title="head, texts that differ most first",
        tickvals=ticks,
        ticktext=[names[i] for i in ticks],
        tickangle=-60,
        showgrid=False,
        range=[-1, max(len(chosen), 1)],
    )
    figure.update_yaxes(title=label_of(quantiles, score.replace("_", " ")), **_shares(quantiles))
    many = f"{spread.attrs['n_texts']:,} texts; " if "n_texts" in spread.attrs else ""
    note = f"{many}thick: the middle half of them, thin: 5 to 95 %"
    return finish(figure, title or f"Where texts differ most: {score.replace('_', ' ')}", 420, note)


def _error(value: np.ndarray, low: np.ndarray, high: np.ndarray) -> dict[str, Any]:
    """Bars from low to high around values; a percentile interval may lie to one side, and then begins at the value."""
    up, down = np.nan_to_num(np.maximum(high - value, 0)), np.nan_to_num(np.maximum(value - low, 0))
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down}


def _flat(values: xr.DataArray) -> np.ndarray:
    """A number for each head, layer by layer."""
    return values.transpose("layer", "head").values.ravel().astype(np.float64)


def _shares(values: xr.DataArray) -> dict[str, Any]:
    """How an axis writes its numbers: per cent where they are shares."""
    return {"tickformat": ".0%"} if values.attrs.get("units") == "1" else {}
