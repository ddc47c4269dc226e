"""Attention sinks: how much of its attention a head leaves on one of the first tokens."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from hooks import checks
from hooks.errors import InputError
from interp.analyses.position.received import queries_seeing
from interp.analyses.position.schema import FIRST_TOKEN_MASS, SINK_RATE
from interp.common.labels import labelled, result_of
from interp.tensors.capture_data import CaptureData, check_capture
from interp.tensors.selection import asked_layers

# The share of attention on the first token above which a head counts as a sink head (arXiv 2410.10781).
SINK_THRESHOLD = 0.3


def first_token_mass(cap: CaptureData, layers: int | Sequence[int] | None = None) -> xr.DataArray:
    """Mean attention to the first token, over (layer, head).

    mean_i p_i0 over the queries that see the first token, the first query left out because it sees nothing else.
    In a sliding layer those are the first window − 1 queries after it. Each of several packed documents has its own
    first token.

    Args:
        cap: the capture.
        layers: which of its layers; None is all of them.

    Source: the sink rate of arXiv 2410.10781 with k = 1.
    """
    chosen = asked_layers(check_capture(cap).layers, layers)
    mass = cap.statistics(chosen)["sink_mass"].sel(sink_size=1)
    n = mass.sizes["query"]
    index = torch.arange(n)
    means = []
    for layer in chosen:
        first, _ = cap.spec(layer).seen(index, n, cap.documents)
        seeing = (first == index - cap.places) & (cap.places > 0)
        seeing = (seeing if bool(seeing.any()) else cap.places == 1).nonzero()[:, 0].numpy()
        means.append(mass.sel(layer=layer).isel(query=seeing).mean("query").values)
    said = FIRST_TOKEN_MASS["first_token_mass"]
    coords = {"layer": list(chosen), "head": mass["head"]}
    return xr.DataArray(np.stack(means), coords, said.dims, "first_token_mass", said.attrs)


def sink_rate(
    cap: CaptureData,
    k: int = 1,
    epsilon: float = SINK_THRESHOLD,
    *,
    layers: int | Sequence[int] | None = None,
) -> xr.Dataset:
    """Which heads use the k-th token as a sink, and their share.

    α_k = Σ_{i ≥ k} p_ik / (T − k + 1), tokens and queries counted from 1: the mean attention that token k receives
    from the queries that can see it, itself included; in packed documents, that the k-th token of each receives. A head
    is a sink head when α_k > ε; the sink rate is the share of sink heads. In a sliding layer the mean is over the
    window, outside of which nobody sees the token.

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
    n = len(check_capture(cap).positions)
    k, epsilon = checks.whole("k", k, at_least=1), checks.share("epsilon", epsilon)
    if cap.longest <= k:
        raise InputError(
            f"{cap.longest} tokens: whether token {k} is a sink shows only after it, so capture a longer text"
        )
    chosen = asked_layers(cap.layers, layers)
    received = cap.statistics(chosen)["received"]
    token = (cap.places == k - 1).nonzero()[:, 0].numpy()
    seen = [queries_seeing(cap.spec(layer), n, cap.documents)[token].sum() for layer in chosen]
    score = received.isel(key=token).sum("key") / xr.DataArray(seen, dims="layer")
    is_sink = score > epsilon
    out = xr.Dataset({"sink_score": score, "is_sink": is_sink, "sink_rate": is_sink.mean()})
    what = "attention sinks by head, and their share"
    out = result_of("sink_rate", labelled(out, SINK_RATE, k=k, epsilon=f"{epsilon:g}"), what)
    return out.assign_attrs(k=k, epsilon=epsilon)
