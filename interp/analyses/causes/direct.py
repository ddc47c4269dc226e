"""What each head writes towards a token's logit by itself, by the token that it read."""

from typing import Any, cast

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from hooks import HookedTransformer, checks
from hooks.errors import InputError, PositionError
from hooks.modules.block import Block
from hooks.modules.norms import Norm
from interp.analyses.causes.schema import DIRECT_LOGIT_ATTRIBUTION
from interp.analyses.patterns.head_rows import HeadRows
from interp.common.labels import labelled, result_of
from interp.common.progress import track
from interp.tensors.capture_data import CaptureData, check_capture


@torch.no_grad()
def direct_logit_attribution(
    cap: CaptureData, token: str | int, position: int = -1, *, model: HookedTransformer | None = None
) -> xr.Dataset:
    """How much each head adds to a token's logit directly, by the token that it reads: ``p_ij v_j W_O · direction``.

    The direction is the token's unembedding, back through the final norm and, where a block has one, its post-norm,
    whose divisors are those of the run. What later layers make of a head is not in it: that is what `attribution` has.
    The sum over everything that writes to the stream, biases included, is the logit before a soft-cap.

    Args:
        cap: a capture with v.
        token: its text, or its id.
        position: where the logit is, below 0 from the end; as in `interp.metrics.logit`.
        model: the model that the capture is of, native. None takes the one that it was made of in this process.

    Returns:
        Dataset over (layer, head, key): logit.

    Raises:
        InputError: no model, an attached one, or another than the capture is of.
        PositionError: no such position.
        StageError: a capture without v.
        TokenizerError: a text that is no token or several.

    Source:
        Elhage et al. 2021, A Mathematical Framework for Transformer Circuits; arXiv 2211.00593.
    """
    n = len(check_capture(cap).positions)
    at = checks.whole("position", position)
    if not -n <= at < n:
        raise PositionError(f"no position {at} in a capture of {n:,} tokens")
    at %= n
    found = _model_of(cap, model)
    divisors, last = _divisors(found, cap, at)
    token_id = found.to_single_token(token) if isinstance(token, str) else checks.whole("token", token, at_least=0)
    if token_id >= found.cfg.d_vocab:
        raise InputError(f"token id {token_id} is outside the vocabulary of {found.cfg.d_vocab:,}")
    direction = _back(found.ln_final, found.tokens_to_residual_directions(token_id).double(), last)
    logits = np.zeros((len(cap.layers), cap.cfg.n_heads, n), dtype=np.float64)
    for row, layer in enumerate(track(cap.layers, "following heads to the logit")):
        block = cast(Block, found.blocks[layer])
        own = direction
        if isinstance(block.ln1_post, Norm):
            own = _back(block.ln1_post, direction, divisors[layer])
        with found.resident(layer, ("attn.o_proj.weight",)):
            towards = block.attn.W_O.double() @ own  # [head d_head]
        logits[row] = _by_key(cap, layer, at, towards.cpu())
    tokens = ("key", cap.str_tokens or [""] * n)
    coords: dict[str, Any] = {"layer": list(cap.layers), "head": np.arange(cap.cfg.n_heads), "key_token": tokens}
    out = xr.Dataset({"logit": (("layer", "head", "key"), logits)}, coords | {"key": cap.labels.cpu().numpy()})
    out = labelled(out, DIRECT_LOGIT_ATTRIBUTION).assign_attrs(token=str(token), position=at)
    return result_of("direct_logit_attribution", out, f"what heads add to the logit of {token!r} at position {at}")


def _model_of(cap: CaptureData, model: Any) -> HookedTransformer:
    """The model whose weights are asked."""
    held = cap._model() if model is None and cap._model is not None else model
    if held is None:
        raise InputError("the weights from head to logit are not in a capture: give model=, the one that it is of")
    if not isinstance(held, HookedTransformer):
        raise InputError(
            f"model={checks.shown(held)}: give a HookedTransformer, whose norms and weights are known; of an attached "
            "model they are not"
        )
    if not cap.cfg.computes_like(held.cfg) or not len(cap.tokens):
        raise InputError(f"the capture is of {cap.model_id}, and without its tokens or of another model than was given")
    return held


def _divisors(model: HookedTransformer, cap: CaptureData, at: int) -> tuple[dict[int, Tensor], Tensor]:
    """What each post-norm of attention, and the final norm, divided by at a position."""
    kept: dict[str, Tensor] = {}

    def keep(divisor: Tensor, hook: Any) -> None:
        kept[hook.name] = divisor[0, -1 if hook.name.startswith("ln_final") else at].double()

    names = [f"blocks.{n}.ln1_post" for n in cap.layers if isinstance(cast(Block, model.blocks[n]).ln1_post, Norm)]
    hooks = [(f"{name}.hook_scale", keep) for name in (*names, "ln_final")]
    ids = cap.tokens[None].to(model.device)
    packed = None if cap.documents is None else cap.positions[None].to(model.device)
    with model.hooks(fwd_hooks=hooks):
        resid = model.forward(ids, position_ids=packed, stop_at_layer=model.cfg.n_layers)
        model.unembed_residual(resid[:, at : at + 1])
    return {int(name.split(".")[1]): x for name, x in kept.items() if name.startswith("blocks")}, kept[
        "ln_final.hook_scale"
    ]


def _back(norm: Norm, direction: Tensor, divisor: Tensor) -> Float[Tensor, " d_model"]:
    """A direction at a norm's output as one at its input, the divisor held fixed."""
    gain = norm.gain
    return norm.centred((gain.double() if isinstance(gain, Tensor) else gain) * direction) / divisor


def _by_key(cap: CaptureData, layer: int, at: int, towards: Float[Tensor, "head d_head"]) -> np.ndarray:
    """p_ij (v_j · towards) of one query in every head, [head key]."""
    v, row, keys = cap.v(layer).cpu().double(), torch.tensor([at]), torch.arange(len(cap.positions))
    group = cap.cfg.n_heads // v.shape[1]
    found = []
    for head in range(cap.cfg.n_heads):
        pattern = torch.cat([p for _, _, p in HeadRows.of(cap, layer, head).blocks(row, keys)])[0]
        found.append(pattern * (v[:, head // group] @ towards[head, : v.shape[-1]]))
    return torch.stack(found).numpy()
