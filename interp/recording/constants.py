"""The constants of a layer, read from the model that is captured."""

from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from hooks import AttentionSpec
from hooks.attached.transformer import AttachedTransformer
from hooks.functional.float64 import float64_device
from hooks.functional.rope import attention_factor
from hooks.model import HookedTransformer
from hooks.modules.attention import Attention
from hooks.modules.qk_norm import QKNorm
from hooks.modules.rotary import Rotary
from interp.common.schedules import frequencies_of
from interp.tensors.constants import LayerConstants

_NEEDED = ("attn.o_proj.weight", "attn.q_norm.", "attn.k_norm.", "attn.sinks")


def layer_constants(model: HookedTransformer | AttachedTransformer, layer: int, n_tokens: int) -> LayerConstants:
    """The constants of one layer, detached from the graph; frequencies as they are for a text of n_tokens."""
    with model.resident(layer, _NEEDED):
        w_o = _triangular(cast(Attention, model.blocks[layer].attn).W_O)
        return replace(score_constants(model, layer, n_tokens), w_o=w_o)


def plain_constants(model: HookedTransformer | AttachedTransformer, layer: int) -> tuple[AttentionSpec, float]:
    """A layer's spec, its sinks apart, and its attention factor: what is known of it without a weight."""
    rope = model.cfg.rope_for(layer)
    native = isinstance(model, HookedTransformer)
    spec = model.cfg.attention_spec(layer) if native else cast(Attention, model.blocks[layer].attn).spec
    return replace(spec, sinks=None), 1.0 if rope is None else attention_factor(rope)


def score_constants(model: HookedTransformer | AttachedTransformer, layer: int, n_tokens: int) -> LayerConstants:
    """Those of them that decide scores, of a layer whose weights are there; cheap enough for every training step."""
    attn = cast(Attention, model.blocks[layer].attn)
    rope = model.cfg.rope_for(layer)
    frequencies, factor = (None, 1.0) if rope is None else frequencies_of(rope, model.cfg.d_head, n_tokens)
    if rope is not None and rope.learnable:
        rotary = cast(Rotary, model.get_submodule(f"rotary.{model.cfg.layer_type(layer)}"))
        frequencies = cast(Tensor, rotary.inv_freq).detach()
    gain_q, bias_q = _gain_and_bias(getattr(attn, "q_norm", None))
    gain_k, bias_k = _gain_and_bias(getattr(attn, "k_norm", None))
    # Copies: neither a training step after the capture nor another capture must reach into it.
    frequencies = None if frequencies is None else frequencies.clone()
    spec = attn.spec if attn.spec.sinks is None else replace(attn.spec, sinks=attn.spec.sinks.detach().clone())
    return LayerConstants(gain_q, gain_k, bias_q, bias_k, frequencies, factor, w_o=None, spec=spec)


def _triangular(w_o: Float[Tensor, "head d_head d_model"]) -> Float[Tensor, "head d_head rank"]:
    """L of ``W_O = L Qᵀ`` for each head, in float32 or better."""
    # Metal has neither float64 nor this factorisation.
    exact = w_o.detach().to(float64_device(w_o.device)).to(torch.promote_types(w_o.dtype, torch.float32))
    return torch.linalg.qr(exact.mT, mode="r").R.mT.contiguous()


def _gain_and_bias(norm: QKNorm | None) -> tuple[Tensor | None, Tensor | None]:
    """Gain and bias of a QK-norm for each head, its fixed scale included."""
    if norm is None:
        return None, None
    gain = norm.effective_gain().detach().clone()
    if norm.bias is None:
        return gain, None
    per_head = norm.bias.detach().float().clone().view(-1, gain.shape[-1]).expand_as(gain)
    return gain, per_head * norm.config.scale
