"""The weights of a layer that an analysis needs once q, k and v are known, so that it never needs the model."""

from dataclasses import dataclass, fields, replace

from jaxtyping import Float
from torch import Tensor

from hooks.config.attention_spec import AttentionSpec


@dataclass(frozen=True)
class LayerConstants:
    """What is kept of a layer's weights; None where there are none or none are known.

    Attributes:
        gain_q: gain of the QK-norm of queries, its fixed scale included.
        gain_k: gain of the QK-norm of keys.
        bias_q: bias of the QK-norm of queries.
        bias_k: bias of the QK-norm of keys.
        inv_freq: rotary frequencies, rad/token.
        attention_factor: what cos and sin are multiplied by.
        w_o: W_O of each head up to a rotation of its output: the triangular L of ``W_O = L Qᵀ``. Lengths are all that
            is asked of it, ``‖v L‖ = ‖v W_O‖``, and L is a fraction of its size.
        spec: how q and k become a pattern.
    """

    gain_q: Float[Tensor, "head d_head"] | None
    gain_k: Float[Tensor, "kv_head d_head"] | None
    bias_q: Float[Tensor, "head d_head"] | None
    bias_k: Float[Tensor, "kv_head d_head"] | None
    inv_freq: Float[Tensor, " pair"] | None
    attention_factor: float
    w_o: Float[Tensor, "head d_head rank"] | None
    spec: AttentionSpec

    def on_cpu(self) -> "LayerConstants":
        """The same where a capture on disk is read."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: x.cpu() for name, x in held.items() if isinstance(x, Tensor)})
