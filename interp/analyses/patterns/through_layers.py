"""rollout: where a token's residual stream comes from once attention of several layers is multiplied."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from hooks import checks
from hooks.errors import InputError
from hooks.functional.attend import attend_fused
from hooks.functional.float64 import float64_device
from hooks.functional.head_width import same_width
from interp.analyses.patterns.schema import ROLLOUT
from interp.common.finite import check_finite
from interp.common.labels import labelled, result_of
from interp.common.progress import track
from interp.common.stacking import named_layer
from interp.tensors.capture_data import CaptureData, check_capture
from interp.tensors.selection import asked_layers


@torch.no_grad()
def rollout(cap: CaptureData, bins: int = 64, *, layers: int | Sequence[int] | None = None) -> xr.Dataset:
    """Attention rollout: ``R = Π_l (A_l + I) / 2``, A_l the mean pattern of the layer's heads.

    What R says of a group of keys is ``R · 1_group``, so the groups' indicators go through the layers like values, one
    pass of attention a layer: R itself is never held, memory is O(n · bins). Under causal attention all of it ends on
    the first token as layers are added.

    Args:
        cap: the capture.
        bins: stretches of equal length that queries and keys are merged into; no more than there are tokens.
        layers: a run of layers one behind the other; None is all of them.

    Returns:
        Dataset: first_token (layer, query), the mass on the first token up to and including a layer, and
        first_token_mean (layer), over the queries after the first; rollout (map_query, map_key) through all of these
        layers: the mass on a stretch of keys, averaged over a stretch of queries. Over keys it sums to 1 where there
        is no learned sink.

    Raises:
        InputError: layers with gaps, fewer than two tokens, a setting out of range, or q or k that are not finite.
        StageError: no layer, or one that the capture does not hold.

    Source:
        arXiv 2005.00928 (rollout); 2502.01951 (its limit under causal masks).
    """
    check_capture(cap).check_one_text("rollout")
    chosen = asked_layers(cap.layers, layers)
    if list(chosen) != list(range(chosen[0], chosen[0] + len(chosen))):
        raise InputError(f"layers={checks.shown(layers)}: rollout multiplies layers that follow one another")
    n = len(cap.positions)
    if n < 2:
        raise InputError(f"{n} token: rollout needs at least 2")
    label = np.arange(n) * min(checks.whole("bins", bins, at_least=1), n) // n
    held = torch.nn.functional.one_hot(torch.from_numpy(label)).float()
    first = torch.zeros(n, 1)
    first[0] = 1
    mass = torch.cat([first, held], dim=1)
    to_first = np.empty((len(chosen), n), dtype=np.float32)
    for at, layer in enumerate(track(chosen, "multiplying layers")):
        with named_layer(layer):
            mass = _through(cap, layer, mass)
        to_first[at] = mass[:, 0].numpy()
    edges = np.searchsorted(label, np.arange(label[-1] + 2))
    binned = np.add.reduceat(mass[:, 1:].double().numpy(), edges[:-1], axis=0) / np.diff(edges)[:, None]
    position = cap.positions.numpy()
    middle = (position[edges[:-1]] + position[edges[1:] - 1]) / 2
    values = {
        "first_token": to_first,
        "first_token_mean": to_first[:, 1:].mean(-1, dtype=np.float64),
        "rollout": binned,
    }
    out = xr.Dataset(
        {name: (ROLLOUT[name].dims, numbers) for name, numbers in values.items()},
        {"layer": list(chosen), "query": position, "map_query": middle, "map_key": middle},
    )
    return result_of("rollout", labelled(out, ROLLOUT), "attention multiplied through the layers")


def _through(cap: CaptureData, layer: int, mass: Float[Tensor, "pos group"]) -> Float[Tensor, "pos group"]:
    """(A + I) / 2 · mass."""
    q, k, spec = cap.q(layer), cap.k(layer), cap.spec(layer)
    check_finite(rows="position", q=q, k=k)
    device = float64_device(q.device)
    dtype = torch.promote_types(q.dtype, torch.float32)
    values = mass.to(device, dtype)[:, None].expand(-1, k.shape[1], -1)
    q, k, v, width = same_width(q[None].to(device, dtype), k[None].to(device, dtype), values[None])
    if spec.sinks is not None:
        spec = replace(spec, sinks=spec.sinks.to(device))
    standing = {name: at.to(device) for name, at in cap.standing.items()}
    seen = attend_fused(q, k, v, spec, **standing)[0, ..., :width].mean(1)
    return (mass + seen.to(mass)) / 2
