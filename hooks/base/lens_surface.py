"""The surface that TransformerLens' tools use on a model: stacked weights, token directions, accumulated biases.

TransformerLens assumes that the gain of every norm is folded into the next weights. Nothing is folded here: gains stay
in the norms, `ActivationCache` applies them where it applies a norm, and the directions below are those of W_U itself.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens import FactoredMatrix

from hooks.config.transformer import HookedTransformerConfig
from hooks.errors import InputError
from hooks.modules.norms import Norm
from hooks.modules.weight_views import present

Tokens = str | int | Int[Tensor, "*batch_pos"]


class StackedWeights:
    """Every layer's weights in TransformerLens' layout, stacked (and so copied) along a leading layer axis.

    ``model.blocks[i].attn.W_Q`` and the like are views. kv heads are not expanded, except in `QK` and `OV`.
    """

    embed: nn.Embedding
    unembed: nn.Linear
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
        return present(self.embed.weight)

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:  # noqa: N802
        """Unembedding, before ``cfg.logit_scale`` and without the final norm's gain."""
        return present(self.unembed.weight).T

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:  # noqa: N802
        """Unembedding bias, zeros where the model has none."""
        bias = self.unembed.bias
        return present(self.unembed.weight).new_zeros(self.unembed.out_features) if bias is None else bias

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


class LensMixin(StackedWeights):
    """What TransformerLens' cache, patching, lens and detection tools call on a model."""

    to_single_token: Callable[[str], int]

    def tokens_to_residual_directions(self, tokens: Tokens) -> Float[Tensor, "*batch_pos d_model"]:
        """What the final norm's output is multiplied by to give the tokens' logits: logit_scale · W_U[:, token].

        The final norm's gain is not in it: `ActivationCache.apply_ln_to_stack`, and with it `logit_attrs`, applies the
        norm as the model does. With a soft-cap on the logits these are directions of the logit before the cap.

        Args:
            tokens: a token's text, its id, or a tensor of ids; a tensor of one id counts as that id.
        """
        return present(self.unembed.weight)[self._token_ids(tokens)] * (self.cfg.logit_scale or 1.0)

    def logit_bias(self, tokens: Tokens) -> Float[Tensor, "*batch_pos"]:
        """The part of the tokens' logits that no component of the residual stream gives.

        logit_scale · (β · W_U[:, token] + b_U[token]), β the bias of the final norm. A token's logit before the
        soft-cap is the sum of `ActivationCache.logit_attrs` over all components, plus this.

        Args:
            tokens: as in `tokens_to_residual_directions`.
        """
        bias = self.b_U[self._token_ids(tokens)] * (self.cfg.logit_scale or 1.0)
        if self.ln_final.bias is not None:
            bias = bias + self.tokens_to_residual_directions(tokens) @ self.ln_final.bias
        return bias

    def _token_ids(self, tokens: Tokens) -> Int[Tensor, "*batch_pos"]:
        """Ids on the model's device; one id has no axes, as in TransformerLens."""
        ids = self.to_single_token(tokens) if isinstance(tokens, str) else tokens
        ids = torch.as_tensor(ids, device=present(self.unembed.weight).device)
        return ids.reshape(()) if ids.numel() == 1 else ids

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """The constant that biases have added to the residual stream before a layer.

        Args:
            layer: biases of the layers before this one count.
            mlp_input: count this layer's attention too.
            include_mlp_biases: count the MLPs, not only attention.

        Raises:
            InputError: an output bias passes a post-norm, so that it is no constant.
        """
        total = present(self.unembed.weight).new_zeros(self.cfg.d_model)
        with_own_attention = mlp_input and not self.cfg.parallel_attn_mlp
        for index in range(layer + with_own_attention):
            block: Any = self.blocks[index]
            written = [(block.attn.b_O if self.cfg.attn_out_bias else None, block.ln1_post)]
            if include_mlp_biases and index < layer and block.mlp is not None:
                written.append((block.mlp.b_out if self.cfg.mlp_bias else None, block.ln2_post))
            for bias, post_norm in written:
                total = total + _constant(bias, post_norm)
        return total

    def apply_output_logits_transform(self, logits: Float[Tensor, "... d_vocab"]) -> Float[Tensor, "... d_vocab"]:
        """What follows the unembedding: logit_scale, then the soft-cap c·tanh(x/c)."""
        if self.cfg.logit_scale is not None:
            logits = logits * self.cfg.logit_scale
        cap = self.cfg.output_logits_soft_cap
        return torch.tanh(logits / cap) * cap if cap > 0 else logits

    @property
    def adapter(self) -> "LensMixin":
        """Where TransformerLens' logit lens looks for `apply_output_logits_transform`."""
        return self

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        """Nothing to switch: ``hook_{q,k,v}_input`` are computed when they are watched; keeps cfg in step."""
        self.cfg.use_split_qkv_input = use_split_qkv_input

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """Nothing to switch: ``hook_result`` is computed when it is watched; keeps cfg in step."""
        self.cfg.use_attn_result = use_attn_result


def _constant(bias: Tensor | None, post_norm: nn.Module) -> Tensor | float:
    """What a bias adds to the residual stream at every position alike."""
    if not isinstance(post_norm, Norm):
        return 0.0 if bias is None else bias
    if bias is not None:
        raise InputError(
            "output biases pass a post-norm in this model, which divides them by another number at each position; "
            "cache.get_full_resid_decomposition gives their share per position"
        )
    return 0.0 if post_norm.bias is None else post_norm.bias
