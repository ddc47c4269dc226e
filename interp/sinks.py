"""Attention sinks: how much of its attention a head leaves on the first token."""

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

if TYPE_CHECKING:
    from interp.captures import Capture

# The share of attention on the first token above which a head counts as a sink head (arXiv 2410.10781).
SINK_THRESHOLD = 0.3


def first_token_mass(cap: "Capture") -> xr.DataArray:
    """Mean attention to the first token, over (layer, head).

    mean_i p_i0 over the queries that see the first token, the first query left out because it sees nothing else.
    In a sliding layer those are the first window − 1 queries after it.

    Source: the sink rate of arXiv 2410.10781 with k = 1.
    """
    mass = cap.statistics()["sink_mass"].sel(sink_size=1)
    n = mass.sizes["query"]
    means = []
    for layer in cap.layers:
        window = cap.spec(layer).window
        seeing = slice(1, n if window is None else max(2, min(n, window)))
        means.append(mass.sel(layer=layer).isel(query=seeing).mean("query").values)
    return xr.DataArray(
        np.stack(means),
        coords={"layer": list(cap.layers), "head": mass["head"]},
        dims=("layer", "head"),
        name="first_token_mass",
        attrs={
            "units": "1",
            "description": "mean attention to the first token, over the queries that see it",
            "formula": "mean_i p_i0, 1 ≤ i (< window)",
        },
    )
