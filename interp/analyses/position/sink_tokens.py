"""find_sinks: which tokens take attention from everybody who sees them, wherever they stand."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from hooks import checks
from interp.analyses.position.received import queries_seeing
from interp.analyses.position.schema import FIND_SINKS
from interp.analyses.position.sinks import SINK_THRESHOLD
from interp.common.labels import labelled, result_of
from interp.tensors.capture_data import CaptureData, check_capture
from interp.tensors.selection import asked_layers

_AUDIENCE = 64


def find_sinks(
    cap: CaptureData,
    epsilon: float = SINK_THRESHOLD,
    *,
    audience: int | None = None,
    layers: int | Sequence[int] | None = None,
) -> xr.Dataset:
    """The tokens that are attention sinks of some head, at any position, and of which heads.

    ``α_j = Σ_i p_ij / |{i sees j}|``, the mean attention that key j gets from the queries that see it, itself included.
    A key is a sink of a head when α_j > ε. `sink_rate` asks this of one place; here every place is asked.

    Args:
        cap: the capture.
        epsilon: the threshold ε.
        audience: only keys that so many queries see can be sinks, since the last keys are seen by themselves and few
            others. By default 64, or more than half of the most that any key has, where that is less.
        layers: which of its layers; None is all of them.

    Returns:
        Dataset: sink_score α (layer, head, sink) of every key that is a sink somewhere, with its index as the
        coordinate sink, and position and token; heads (sink), of how many heads it is one, the most first; sinks and
        sink_mass (layer, head), how many a head has and the attention that it leaves on them; sink_rate, the share of
        heads that have one.

    Raises:
        InputError: a setting is out of range.
        StageError: no layer, or one that the capture does not hold.

    Source:
        arXiv 2410.10781; tokens other than the first: arXiv 2402.17762.
    """
    chosen = asked_layers(check_capture(cap).layers, layers)
    epsilon = checks.share("epsilon", epsilon)
    n = len(cap.positions)
    audience = None if audience is None else checks.whole("audience", audience, at_least=1, at_most=n)
    received = cap.statistics(chosen)["received"].transpose("layer", "head", "key").values
    seen = np.stack([queries_seeing(cap.spec(layer), n, cap.documents) for layer in chosen])
    least = np.minimum(_AUDIENCE, seen.max(-1) // 2 + 1) if audience is None else np.full(len(chosen), audience)
    score = received / seen[:, None]
    is_sink = (score > epsilon) & (seen >= least[:, None])[:, None]
    heads = is_sink.sum((0, 1))
    keys = np.flatnonzero(heads)
    keys = keys[np.argsort(-heads[keys], kind="stable")]
    values = {
        "sink_score": score[:, :, keys],
        "heads": heads[keys],
        "sinks": is_sink.sum(-1),
        "sink_mass": np.where(is_sink, received, 0).sum(-1) / n,
        "sink_rate": is_sink.any(-1).mean(),
    }
    strings = cap.str_tokens or [""] * n
    tokens = [strings[key].encode("utf-8", "backslashreplace").decode() for key in keys]
    out = xr.Dataset(
        {name: (FIND_SINKS[name].dims, numbers) for name, numbers in values.items()},
        {
            "layer": list(chosen),
            "head": np.arange(score.shape[1]),
            "sink": keys,
            "position": ("sink", cap.positions.numpy()[keys]),
            "token": ("sink", np.array(tokens, dtype=object)),
        },
    )
    out = result_of("find_sinks", labelled(out, FIND_SINKS, epsilon=f"{epsilon:g}"), "which tokens are attention sinks")
    return out.assign_attrs(epsilon=epsilon, audience=int(least.min()))
