"""The surface that TransformerLens' tools use on a model: token directions, accumulated biases, switches.

TransformerLens assumes that the gain of every norm is folded into the next weights. Nothing is folded here: gains stay
in the norms, `ActivationCache` applies them where it applies a norm, and the directions below are those of W_U itself.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hooks.base.bridge_members import BridgeMembers
from hooks.base.inputs import any_ids
from hooks.base.registry import NO_ATTN_IN
from hooks.checks import flag, whole
from hooks.errors import InputError
from hooks.modules.norms import Norm
from hooks.modules.weight_views import present

Tokens = str | int | Int[Tensor, "*batch_pos"]


class LensMixin(BridgeMembers):
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
        given = self.to_single_token(tokens) if isinstance(tokens, str) else tokens
        weight = present(self.unembed.weight)
        ids = any_ids(given, weight.shape[0], weight.device)
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
        layer = whole("layer", layer, at_least=0, at_most=self.cfg.n_layers)
        mlp_input = flag("mlp_input", mlp_input) and layer < self.cfg.n_layers
        include_mlp_biases = flag("include_mlp_biases", include_mlp_biases)
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
        self.cfg.use_split_qkv_input = flag("use_split_qkv_input", use_split_qkv_input)

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """Nothing to switch: ``hook_result`` is computed when it is watched; keeps cfg in step."""
        self.cfg.use_attn_result = flag("use_attn_result", use_attn_result)

    def set_use_attn_in(self, use_attn_in: bool) -> None:
        """Nothing to switch: ``hook_attn_in`` is computed when it is watched; keeps cfg in step.

        Raises:
            InputError: switched on for a model whose query heads share kv heads, which has no such point.
        """
        if flag("use_attn_in", use_attn_in) and self.cfg.n_kv_heads != self.cfg.n_heads:
            raise InputError(f"use_attn_in=True: {NO_ATTN_IN}")
        self.cfg.use_attn_in = use_attn_in

    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        """Nothing to switch: ``hook_mlp_in`` is computed when it is watched; keeps cfg in step."""
        self.cfg.use_hook_mlp_in = flag("use_hook_mlp_in", use_hook_mlp_in)


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
