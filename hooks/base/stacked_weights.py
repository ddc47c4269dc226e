"""Every layer's weights in TransformerLens' layout, in one tensor each."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import FactoredMatrix

from hooks.config.transformer import HookedTransformerConfig
from hooks.errors import InputError
from hooks.modules.norms import Norm
from hooks.modules.weight_views import Embedding, Unembedding


class StackedWeights:
    """Every layer's weights in TransformerLens' layout, stacked (and so copied) along a leading layer axis.

    ``model.blocks[i].attn.W_Q`` and the like are views. kv heads are not expanded, except in `QK` and `OV`.
    """

    embed: Embedding
    unembed: Unembedding
    if TYPE_CHECKING:
        blocks: nn.ModuleList

        @property
        def cfg(self) -> HookedTransformerConfig:
            """The architecture."""
            ...

        ln_final: Norm
    else:
        # Protocol checks read the class (inspect.getattr_static), where torch does not show a submodule.
        blocks = property(lambda self: self._modules["blocks"])
        ln_final = property(lambda self: self._modules["ln_final"])

    def _stack(self, read: Callable[[Any], Tensor]) -> Tensor:
        """One weight of every block."""
        return torch.stack([read(block) for block in self.blocks])

    def _mlps(self, read: Callable[[Any], Tensor]) -> Tensor:
        """One MLP weight of every block.

        Raises:
            InputError: the model has no MLPs.
        """
        if self.cfg.attn_only:
            raise InputError("this model has no MLP weights (cfg.attn_only)")
        return self._stack(lambda block: read(block.mlp))

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:  # noqa: N802
        """Token embedding, before ``cfg.embed_scale``."""
        return self.embed.W_E

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:  # noqa: N802
        """Unembedding, before ``cfg.logit_scale`` and without the final norm's gain."""
        return self.unembed.W_U

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:  # noqa: N802
        """Unembedding bias, zeros where the model has none."""
        return self.unembed.b_U

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:  # noqa: N802
        """Query weights."""
        return self._stack(lambda block: block.attn.W_Q)

    @property
    def W_K(self) -> Float[Tensor, "layer kv_head d_model d_head"]:  # noqa: N802
        """Key weights."""
        return self._stack(lambda block: block.attn.W_K)

    @property
    def W_V(self) -> Float[Tensor, "layer kv_head d_model d_head"]:  # noqa: N802
        """Value weights."""
        return self._stack(lambda block: block.attn.W_V)

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:  # noqa: N802
        """Attention output weights."""
        return self._stack(lambda block: block.attn.W_O)

    @property
    def W_in(self) -> Float[Tensor, "layer d_model d_mlp"]:  # noqa: N802
        """MLP input weights; with a gate, those of the linear branch."""
        return self._mlps(lambda mlp: mlp.W_in)

    @property
    def W_gate(self) -> Float[Tensor, "layer d_model d_mlp"] | None:  # noqa: N802
        """MLP gate weights, None without a gate."""
        return self._mlps(lambda mlp: mlp.W_gate) if self.cfg.gated_mlp else None

    @property
    def W_out(self) -> Float[Tensor, "layer d_mlp d_model"]:  # noqa: N802
        """MLP output weights."""
        return self._mlps(lambda mlp: mlp.W_out)

    @property
    def b_Q(self) -> Float[Tensor, "layer head d_head"]:  # noqa: N802
        """Query biases."""
        return self._stack(lambda block: block.attn.b_Q)

    @property
    def b_K(self) -> Float[Tensor, "layer kv_head d_head"]:  # noqa: N802
        """Key biases."""
        return self._stack(lambda block: block.attn.b_K)

    @property
    def b_V(self) -> Float[Tensor, "layer kv_head d_head"]:  # noqa: N802
        """Value biases."""
        return self._stack(lambda block: block.attn.b_V)

    @property
    def b_O(self) -> Float[Tensor, "layer d_model"]:  # noqa: N802
        """Attention output biases."""
        return self._stack(lambda block: block.attn.b_O)

    @property
    def b_in(self) -> Float[Tensor, "layer d_mlp"]:
        """MLP input biases."""
        return self._mlps(lambda mlp: mlp.b_in)

    @property
    def b_out(self) -> Float[Tensor, "layer d_model"]:
        """MLP output biases."""
        return self._mlps(lambda mlp: mlp.b_out)

    @property
    def QK(self) -> FactoredMatrix:  # noqa: N802
        """W_Q W_Kᵀ per layer and query head, before biases, QK-norm and rotation."""
        return FactoredMatrix(self.W_Q, self._per_query_head(self.W_K).transpose(-2, -1))

    @property
    def OV(self) -> FactoredMatrix:  # noqa: N802
        """W_V W_O per layer and query head, before biases and any post-norm."""
        return FactoredMatrix(self._per_query_head(self.W_V), self.W_O)

    def _per_query_head(self, weights: Float[Tensor, "layer kv_head ..."]) -> Float[Tensor, "layer head ..."]:
        """Each kv head once for every query head that uses it."""
        return weights.repeat_interleave(self.cfg.n_heads // self.cfg.n_kv_heads, dim=1)
