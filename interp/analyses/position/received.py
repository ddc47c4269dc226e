"""Attention received by position: the profile from begin to end in which a middle can be lost."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from hooks import AttentionSpec, checks
from hooks.errors import InputError
from interp.analyses.position.schema import RECEIVED_BY_POSITION
from interp.common.binning import ratio
from interp.common.labels import labelled, result_of
from interp.tensors.capture_data import CaptureData, check_capture
from interp.tensors.selection import asked_layers

PARTS = ("begin", "middle", "end")


def received_by_position(
    cap: CaptureData, layers: int | Sequence[int] | None = None, *, bins: int = 64, edge: float = 0.1
) -> xr.Dataset:
    """How much attention the tokens of each stretch of the text receive, plain and weighted by what it moves.

    A key's mean is taken over the queries that can see it, ``Σ_i p_ij / |{i sees j}|``. Late keys are seen by near
    queries only and early ones share their rows with few others, so even a head without preferences has a profile:
    that of uniform attention stands beside the measured one, and a share above its uniform_share is a preference.

    The value-weighted twins weigh p_ij by ‖v_j W_O‖: a sink that takes attention and moves nothing drops out of them.

    Args:
        cap: a capture of at least three tokens.
        layers: which of its layers; None is all of them.
        bins: stretches of equal length to average over; no more than there are tokens.
        edge: part of the text that counts as its begin, and as its end.

    Returns:
        Dataset: received_mean and received_value_mean (layer, head, position_bin), uniform_mean (layer, position_bin);
        received_share and received_value_share (layer, head, part), uniform_share (layer, part) for the parts begin,
        middle and end; coordinates first_position and last_position of each bin. The value-weighted variables are
        there when the capture holds v.

    Raises:
        InputError: fewer than three tokens, a setting out of range, or a capture of packed documents.
        StageError: no layer, or one that the capture does not hold.

    Source:
        arXiv 2307.03172 (lost in the middle), 2004.10102 (value-weighted attention).
    """
    check_capture(cap).check_one_text("received_by_position")
    n = len(cap.positions)
    if n < 3:
        raise InputError(f"{n} tokens have no begin, middle and end: capture a longer text")
    bins, edge = checks.whole("bins", bins, at_least=1), checks.number("edge", edge, above=0, below=0.5)
    chosen = asked_layers(cap.layers, layers)
    stats = cap.statistics(chosen)
    starts = np.unique(np.linspace(0, n, min(bins, n) + 1).astype(int))[:-1]
    width = min(max(round(edge * n), 1), (n - 1) // 2)
    parts = np.asarray([0, width, n - width])
    seen = np.stack([queries_seeing(cap.spec(layer), n) for layer in chosen])
    uniform = np.stack([_uniform(cap.spec(layer), n) for layer in chosen])
    measured: dict[str, np.ndarray] = {}
    for name in ("received", "received_value"):
        if name in stats:
            received = stats[name].transpose("layer", "head", "key").values
            measured[f"{name}_mean"], measured[f"{name}_share"] = _profile(received, seen[:, None], starts, parts)
    measured["uniform_mean"], measured["uniform_share"] = _profile(uniform, seen, starts, parts)
    position = cap.positions.numpy()
    out = xr.Dataset(
        {name: (RECEIVED_BY_POSITION[name].dims, values) for name, values in measured.items()},
        coords={
            "layer": stats["layer"],
            "head": stats["head"],
            "part": list(PARTS),
            "first_position": ("position_bin", position[starts]),
            "last_position": ("position_bin", position[np.append(starts[1:], n) - 1]),
        },
        attrs={"parts": f"begin and end are {width} of {n} tokens each"},
    )
    what = "attention received by position, beside that of uniform attention"
    return result_of("received_by_position", labelled(out, RECEIVED_BY_POSITION), what)


def queries_seeing(spec: AttentionSpec, n: int, documents: Int[Tensor, " document"] | None = None) -> np.ndarray:
    """How many of n queries see each of n keys."""
    first, stop = _visible(spec, n, documents)
    # Every query opens at its first key and closes after its last one.
    return np.cumsum(np.bincount(first, minlength=n + 1) - np.bincount(stop, minlength=n + 1))[:n]


def _uniform(spec: AttentionSpec, n: int) -> np.ndarray:
    """Attention that each key receives when every query spreads its own evenly."""
    first, stop = _visible(spec, n)
    weight = 1 / (stop - first)
    opened = np.bincount(first, weight, minlength=n + 1)
    return np.cumsum(opened - np.bincount(stop, weight, minlength=n + 1))[:n]


def _visible(
    spec: AttentionSpec, n: int, documents: Int[Tensor, " document"] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """First visible key of each query of a whole text, and one past the last."""
    first, stop = spec.seen(torch.arange(n), n, documents)
    return first.numpy(), stop.numpy()


def _profile(
    received: np.ndarray, seen: np.ndarray, starts: np.ndarray, parts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean over each bin of the attention per query, and the share of each part (NaN of nothing), on the last axis."""
    per_query = np.add.reduceat(received / seen, starts, axis=-1) / np.diff(np.append(starts, received.shape[-1]))
    return per_query, ratio(np.add.reduceat(received, parts, axis=-1), received.sum(-1, keepdims=True))
