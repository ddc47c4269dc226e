"""Attention sinks: how much of its attention a head leaves on one of the first tokens."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from hooks.errors import InputError
from interp.analyses.position.received import queries_seeing
from interp.common.labels import described, result_of
from interp.tensors.capture_data import CaptureData
from interp.tensors.selection import layer_numbers

# The share of attention on the first token above which a head counts as a sink head (arXiv 2410.10781).
SINK_THRESHOLD = 0.3


def first_token_mass(cap: CaptureData, layers: int | Sequence[int] | None = None) -> xr.DataArray:
    """Mean attention to the first token, over (layer, head).

    mean_i p_i0 over the queries that see the first token, the first query left out because it sees nothing else.
    In a sliding layer those are the first window − 1 queries after it.

    Args:
        cap: the capture.
        layers: which of its layers; None is all of them.

    Source: the sink rate of arXiv 2410.10781 with k = 1.
    """
    chosen = cap.layers if layers is None else layer_numbers(layers)
    mass = cap.statistics(chosen)["sink_mass"].sel(sink_size=1)
    n = mass.sizes["query"]
    means = []
    for layer in chosen:
        window = cap.spec(layer).window
        seeing = slice(1, n if window is None else max(2, min(n, window)))
        means.append(mass.sel(layer=layer).isel(query=seeing).mean("query").values)
    return xr.DataArray(
        np.stack(means),
        coords={"layer": list(chosen), "head": mass["head"]},
        dims=("layer", "head"),
        name="first_token_mass",
        attrs={
            "units": "1",
            "description": "mean attention to the first token, over the queries that see it",
            "formula": "mean_i p_i0, 1 ≤ i (< window)",
        },
    )


def sink_rate(
    cap: CaptureData,
    k: int = 1,
    epsilon: float = SINK_THRESHOLD,
    *,
    layers: int | Sequence[int] | None = None,
) -> xr.Dataset:
    """Which heads use the k-th token as a sink, and their share.

    α_k = Σ_{i ≥ k} p_ik / (T − k + 1), tokens and queries counted from 1: the mean attention that token k receives
    from the queries that can see it, itself included. A head is a sink head when α_k > ε; the sink rate is the share
    of sink heads. In a sliding layer the mean is over the window, outside of which nobody sees the token.

    Args:
        cap: a capture of more than k tokens.
        k: which token, counted from 1 as in the paper.
        epsilon: the threshold ε.
        layers: which of its layers; None is all of them.

    Returns:
        Dataset: sink_score α_k and is_sink (layer, head); sink_rate, one number for all heads of these layers. k and
        epsilon are in its attributes.

    Raises:
        InputError: there are not more than k tokens, or a setting is out of range.
        StageError: no layer, or one that the capture does not hold.

    Source:
        arXiv 2410.10781; github.com/sail-sg/Attention-Sink.
    """
    n = len(cap.positions)
    if k < 1 or not 0 <= epsilon <= 1:
        raise InputError(f"k={k} counts tokens from 1, and epsilon={epsilon} lies between 0 and 1")
    if n <= k:
        raise InputError(f"{n} tokens: whether token {k} is a sink shows only after it, so capture a longer text")
    chosen = cap.layers if layers is None else layer_numbers(layers)
    received = cap.statistics(chosen)["received"]
    seen = [queries_seeing(cap.spec(layer), n)[k - 1] for layer in chosen]
    score = received.isel(key=k - 1, drop=True) / xr.DataArray(seen, dims="layer")
    out = xr.Dataset(
        {
            "sink_score": described(
                score,
                "1",
                f"mean attention to token {k} over the queries that see it, itself included",
                "α_k = Σ_{i ≥ k} p_ik / (T − k + 1)",
                "arXiv:2410.10781",
            ),
            "is_sink": described(
                score > epsilon, "", "whether the head uses the token as a sink", f"α_k > {epsilon:g}"
            ),
            "sink_rate": described(
                (score > epsilon).mean(),
                "1",
                f"share of heads that give token {k} more than {epsilon:g} of their attention",
                f"mean over heads of [α_k > {epsilon:g}]",
                "arXiv:2410.10781",
            ),
        }
    )
    return result_of("sink_rate", out.assign_attrs(k=k, epsilon=epsilon), "attention sinks by head, and their share")
