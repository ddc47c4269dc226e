"""Which layers a forward pass runs, and the residual stream that it starts from."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooks import checks
from hooks.errors import InputError


def layer_run(
    n_layers: int,
    start_at_layer: Any = None,
    stop_at_layer: Any = None,
    *,
    return_type: Any = "logits",
    past: Any = None,
) -> range:
    """The layers from one up to another, as TransformerLens counts them.

    Args:
        n_layers: how many there are.
        start_at_layer: the first that runs; below 0 counted from the end.
        stop_at_layer: the first that does not run any more; below 0 counted from the end.
        return_type: what the pass is to return.
        past: a cache of earlier tokens, None without one.

    Raises:
        InputError: no such layer, the stop before the start, or what cannot be had from a part of the layers.
    """
    ends = []
    for name, value, default in (("start_at_layer", start_at_layer, 0), ("stop_at_layer", stop_at_layer, n_layers)):
        index = default if value is None else checks.whole(name, value, at_least=-n_layers, at_most=n_layers)
        ends.append(index + n_layers if index < 0 else index)
    if ends[0] > ends[1]:
        raise InputError(f"start_at_layer={start_at_layer} lies behind stop_at_layer={stop_at_layer}")
    if return_type in ("loss", "both") and not (start_at_layer is None and stop_at_layer is None):
        raise InputError(
            f"return_type={return_type!r} needs the tokens and all layers: leave it out, and "
            "model.residual_loss(resid, tokens) gives the loss of a residual stream after the last block"
        )
    if past is not None and ends != [0, n_layers]:
        raise InputError(
            f"past needs a pass through all {n_layers} layers, so that each of them keeps the tokens: leave "
            "start_at_layer and stop_at_layer out"
        )
    return range(*ends)


def residual_stream(
    resid: Any, d_model: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "batch pos d_model"]:
    """A residual stream that was given in place of tokens, on the model's device.

    Raises:
        InputError: another shape or type.
    """
    fits = isinstance(resid, Tensor) and resid.ndim == 3 and resid.shape[2] == d_model and 0 not in resid.shape
    if not fits or resid.dtype != dtype:
        raise InputError(
            f"start_at_layer takes a residual stream [batch, pos, {d_model}] of {dtype} in place of tokens, not "
            f"{checks.shown(resid)}"
        )
    return resid.to(device)
