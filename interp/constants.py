"""The weights of a layer that an analysis needs once q, k and v are known, so that it never needs the model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from jaxtyping import Float
from torch import Tensor

from hooks.rope import inv_freq

if TYPE_CHECKING:
    from hooks import AttentionSpec, HookedTransformer
    from hooks.attention import Attention
    from hooks.qk_norm import QKNorm
    from hooks.rope import Rotary


@dataclass(frozen=True)
class LayerConstants:
    """Gains and biases of the QK-norm (None where there are none), inv_freq, W_O, and how the layer attends."""

    gain_q: Float[Tensor, "head d_head"] | None
    gain_k: Float[Tensor, "kv_head d_head"] | None
    bias_q: Float[Tensor, "head d_head"] | None
    bias_k: Float[Tensor, "kv_head d_head"] | None
    inv_freq: Float[Tensor, " pair"] | None
    attention_factor: float
    w_o: Float[Tensor, "head d_head d_model"]
    spec: "AttentionSpec"


def layer_constants(model: "HookedTransformer", layer: int, n_tokens: int) -> LayerConstants:
    """The constants of one layer, detached from the graph; frequencies as they are for a text of n_tokens."""
    attn = cast("Attention", model.blocks[layer].attn)
    rope = model.cfg.rope_for(layer)
    frequencies, factor = (None, 1.0) if rope is None else inv_freq(rope, model.cfg.d_head, n_tokens)
    if rope is not None and rope.learnable:
        rotary = cast("Rotary", model.rotary[model.cfg.layer_type(layer)])
        frequencies = cast(Tensor, rotary.inv_freq).detach()
    gain_q, bias_q = _gain_and_bias(getattr(attn, "q_norm", None))
    gain_k, bias_k = _gain_and_bias(getattr(attn, "k_norm", None))
    return LayerConstants(gain_q, gain_k, bias_q, bias_k, frequencies, factor, w_o=attn.W_O.detach(), spec=attn.spec)


def _gain_and_bias(norm: "QKNorm | None") -> tuple[Tensor | None, Tensor | None]:
    """Gain and bias of a QK-norm for each head, its fixed scale included."""
    if norm is None:
        return None, None
    gain = norm.effective_gain().detach()
    if norm.bias is None:
        return gain, None
    per_head = norm.bias.detach().float().view(-1, gain.shape[-1]).expand_as(gain)
    return gain, per_head * norm.config.scale
