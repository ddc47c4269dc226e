"""Figures of parts of the text: attention between segments, and the tokens that are sinks."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from hooks import checks
from interp.common.words import token_text
from interp.plots.given import drawn
from interp.plots.highlight import Highlight
from interp.plots.maps import head_scores

_MOST_TOKENS = 7


@drawn
def segment_mass(
    parts: xr.Dataset, *, queries: str | None = None, title: str | None = None, highlight: Highlight = None
) -> go.Figure:
    """A layer × head map for each part of the text: the attention that the queries of one part spend on it.

    Args:
        parts: a `segment_mass` Dataset.
        queries: the part whose queries are drawn; by default the last that was named.
        title: heading of the figure.
        highlight: heads to frame, as (layer, head), or {(layer, head): name}.
    """
    mass = parts["segment_mass"]
    if "query_segment" in mass.dims:
        names = [str(name) for name in mass["query_segment"].values]
        named = [name for name in names if name != "rest"] or names
        queries = checks.choice("queries", named[-1] if queries is None else queries, names)
        mass = mass.sel(query_segment=queries)
    mass = mass if "key_segment" in mass.dims else mass.expand_dims("key_segment")
    of = str(mass["query_segment"].item()) if "query_segment" in mass.coords else ""
    panels = {f"to {token_text(name)}": mass.sel(key_segment=name, drop=True) for name in mass["key_segment"].values}
    said = f"Attention of the queries of {token_text(of)}, by part of the text"
    return head_scores(xr.Dataset(panels, attrs=parts.attrs), title=title or said, highlight=highlight)


@drawn
def find_sinks(sinks: xr.Dataset, *, title: str | None = None, highlight: Highlight = None) -> go.Figure:
    """A layer × head map of what each head leaves on its sinks, and one for each token that is most heads' sink.

    Args:
        sinks: a `find_sinks` Dataset.
        title: heading of the figure; by default how many tokens are sinks, and of how many heads.
        highlight: heads to frame, as (layer, head), or {(layer, head): name}.
    """
    score = sinks["sink_score"] if "sink" in sinks["sink_score"].dims else sinks["sink_score"].expand_dims("sink")
    heads, there = np.atleast_1d(sinks["heads"].values), score.sizes["sink"]
    panels = {"left on all sinks": sinks["sink_mass"]}
    for at in range(min(there, _MOST_TOKENS)):
        one = score.isel(sink=at, drop=True)
        token = token_text(np.atleast_1d(sinks["token"].values)[at], 14)
        position = int(np.atleast_1d(sinks["position"].values)[at])
        count = f"{heads[at]:.0f} {'head' if heads[at] == 1 else 'heads'}"
        panels[f"{token} at {position:,}: {count}"] = one
    rate, epsilon = float(sinks["sink_rate"]), sinks.attrs["epsilon"]
    tokens = "token is a sink" if there == 1 else "tokens are sinks"
    said = f"{there:,} {tokens} (above {epsilon:g}), of {rate:.0%} of heads"
    said = said if there else f"No token is a sink: none is above {epsilon:g} in any head"
    return head_scores(xr.Dataset(panels, attrs=sinks.attrs), title=title or said, highlight=highlight)
