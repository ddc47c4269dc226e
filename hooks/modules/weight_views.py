"""Weights of one layer under TransformerLens' names and in its layout: views of the parameters where they exist.

A bias that a layer does not have reads as zeros, so that sums and attributions need no special case.
"""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hooks.config.transformer import HookedTransformerConfig
from hooks.errors import WeightError


def present(weight: Tensor) -> Tensor:
    """A weight that has values now.

    Raises:
        WeightError: it is streamed, and not in memory.
    """
    if weight.is_meta:
        raise WeightError(
            "this weight is streamed and not in memory now: look at it inside `with model.resident(layer):`, or load "
            "the model with stream=False"
        )
    return weight


def scaled(tensor: Tensor, factor: float | None) -> Tensor:
    """A tensor times a factor; the tensor itself where there is none."""
    return tensor if factor is None else tensor * factor


def _bias(linear: nn.Linear) -> Float[Tensor, " out"]:
    """The bias of a projection, or zeros."""
    weight = present(linear.weight)
    return weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias


class Embedding(nn.Embedding):
    """Token embedding, whose weight is W_E."""

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:  # noqa: N802
        """Token embedding, before ``cfg.embed_scale``."""
        return present(self.weight)


class Unembedding(nn.Linear):
    """Unembedding, whose weight is W_U transposed."""

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:  # noqa: N802
        """Unembedding, before ``cfg.logit_scale`` and without the final norm's gain."""
        return present(self.weight).T

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:  # noqa: N802
        """Unembedding bias, zeros where the model has none."""
        return _bias(self)


class AttentionWeights:
    """W_Q, W_K, W_V, W_O and their biases on an attention module; kv heads are not expanded."""

    cfg: HookedTransformerConfig
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear

    def _by_head(self, projection: nn.Linear) -> Float[Tensor, "head d_model d_head"]:
        """A projection's weight, per head, input first."""
        weight = present(projection.weight)
        return rearrange(weight, "(head d_head) d_model -> head d_model d_head", d_head=self.cfg.d_head)

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:  # noqa: N802
        """Query weights."""
        return self._by_head(self.q_proj)

    @property
    def W_K(self) -> Float[Tensor, "kv_head d_model d_head"]:  # noqa: N802
        """Key weights."""
        return self._by_head(self.k_proj)

    @property
    def W_V(self) -> Float[Tensor, "kv_head d_model d_head"]:  # noqa: N802
        """Value weights."""
        return self._by_head(self.v_proj)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:  # noqa: N802
        """Output weights, ``cfg.residual_scale`` included."""
        return rearrange(
            scaled(present(self.o_proj.weight), self.cfg.residual_scale),
            "d_model (head d_head) -> head d_head d_model",
            d_head=self.cfg.d_head,
        )

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"]:  # noqa: N802
        """Query biases."""
        return _bias(self.q_proj).view(-1, self.cfg.d_head)

    @property
    def b_K(self) -> Float[Tensor, "kv_head d_head"]:  # noqa: N802
        """Key biases."""
        return _bias(self.k_proj).view(-1, self.cfg.d_head)

    @property
    def b_V(self) -> Float[Tensor, "kv_head d_head"]:  # noqa: N802
        """Value biases."""
        return _bias(self.v_proj).view(-1, self.cfg.d_head)

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:  # noqa: N802
        """Output bias, ``cfg.residual_scale`` included."""
        return scaled(_bias(self.o_proj), self.cfg.residual_scale)


class MLPWeights:
    """W_in, W_gate, W_out and the biases on an MLP; W_gate is the branch that passes the activation function."""

    gated: bool
    residual_scale: float | None
    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:  # noqa: N802
        """Input weights; with a gate, those of the linear branch."""
        return present(self.up_proj.weight).T

    @property
    def W_gate(self) -> Float[Tensor, "d_model d_mlp"] | None:  # noqa: N802
        """Gate weights, None without a gate."""
        return present(self.gate_proj.weight).T if self.gated else None

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:  # noqa: N802
        """Output weights, ``cfg.residual_scale`` included."""
        return scaled(present(self.down_proj.weight).T, self.residual_scale)

    @property
    def b_in(self) -> Float[Tensor, " d_mlp"]:
        """Input bias."""
        return _bias(self.up_proj)

    @property
    def b_gate(self) -> Float[Tensor, " d_mlp"] | None:
        """Gate bias, None without a gate."""
        return _bias(self.gate_proj) if self.gated else None

    @property
    def b_out(self) -> Float[Tensor, " d_model"]:
        """Output bias, ``cfg.residual_scale`` included."""
        return scaled(_bias(self.down_proj), self.residual_scale)
