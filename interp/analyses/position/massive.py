"""massive_values: the few features of q, k and v that are far larger than a head's others."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from hooks import checks
from hooks.errors import StageError
from hooks.functional.float64 import float64_device
from interp.analyses.position.frequencies import pairs_of
from interp.analyses.position.schema import MASSIVE_VALUES
from interp.common.finite import check_finite
from interp.common.labels import labelled, result_of
from interp.common.progress import track
from interp.common.stacking import named_layer
from interp.tensors.capture_data import CaptureData, check_capture
from interp.tensors.selection import asked_layers

FACTOR = 5.0


def massive_values(
    cap: CaptureData, factor: float = FACTOR, *, layers: int | Sequence[int] | None = None
) -> xr.Dataset:
    """Which features of q, k and v are massive: far larger over the whole text than the head's features on average.

    ``‖x_{:,h,d}‖ > factor · mean_d ‖x_{:,h,d}‖``, the norm over all positions, of q and k as they enter the score and
    of v. q and k have them in the same low-frequency pairs of RoPE, v has few.

    Args:
        cap: the capture.
        factor: how many times the mean counts as massive.
        layers: which of its layers; None is all of them.

    Returns:
        Dataset: q_norm and q_ratio (layer, head, feature), the norm and its multiple of the head's mean, q_massive
        (layer, head), how many are massive; the same of k over kv_head and, where the capture holds v, of v over
        value_feature; pair (layer, feature), the RoPE pair that a feature turns in, −1 for none; coordinate kv_head
        of each head.

    Raises:
        InputError: a factor that is none, or NaN or infinity in q, k or v.
        StageError: no layer, or one that the capture does not hold.

    Source:
        arXiv 2502.01563, definition 3.1.
    """
    chosen = asked_layers(check_capture(cap).layers, layers)
    factor = checks.number("factor", factor, above=0)
    found: dict[str, list[np.ndarray]] = {name: [] for name in "qkv"}
    for layer in track(chosen, "measuring features"):
        tensors = {"q": cap.q(layer), "k": cap.k(layer), "v": values_if_held(cap, layer)}
        with named_layer(layer):
            check_finite(rows="position", **tensors)
        for name, x in tensors.items():
            if x is not None:
                found[name].append(_norms(x))
    values: dict[str, np.ndarray] = {}
    for name, norms in found.items():
        if len(norms) < len(chosen):
            continue
        norm = np.stack(norms)
        mean = norm.mean(-1, keepdims=True)
        ratio = np.divide(norm, mean, out=np.zeros_like(norm), where=mean > 0)
        values |= {f"{name}_norm": norm, f"{name}_ratio": ratio, f"{name}_massive": (ratio > factor).sum(-1)}
    values["pair"] = np.stack([_pair_of_feature(cap, layer) for layer in chosen])
    heads, kv_heads = values["q_norm"].shape[1], values["k_norm"].shape[1]
    out = xr.Dataset(
        {name: (MASSIVE_VALUES[name].dims, numbers) for name, numbers in values.items()},
        {
            "layer": list(chosen),
            "head": np.arange(heads),
            "kv_head": np.arange(kv_heads),
            "kv_head_of": ("head", np.arange(heads) // (heads // kv_heads)),
            "feature": np.arange(values["pair"].shape[-1]),
        },
    )
    said = labelled(out, MASSIVE_VALUES, factor=f"{factor:g}")
    return result_of("massive_values", said, "how large each feature of q, k and v is").assign_attrs(factor=factor)


def values_if_held(cap: CaptureData, layer: int) -> Float[Tensor, "pos kv_head d_head"] | None:
    """V of a layer; None where the capture was made without."""
    try:
        return cap.v(layer)
    except StageError:
        return None


def _norms(x: Float[Tensor, "pos any_head d_head"]) -> np.ndarray:
    """Norm over positions of each feature, [head feature]."""
    x = x.to(float64_device(x.device))
    return torch.linalg.vector_norm(x, dim=0, dtype=torch.float64).cpu().numpy()


def _pair_of_feature(cap: CaptureData, layer: int) -> np.ndarray:
    """Number of the pair that each feature turns in, −1 for those that do not turn."""
    out = np.full(cap.q(layer).shape[-1], -1)
    try:
        features = pairs_of(cap, layer).features.numpy()
    except StageError:  # it does not rotate, or nobody knows how
        return out
    out[features] = np.arange(len(features))[:, None]
    return out
