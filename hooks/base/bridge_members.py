"""What TransformerBridge has beside hooks and caches: counts, labels, weights by name, composition scores.

Of weights as they are: nothing is folded, so a head reads and writes the stream without its norms' gains.
"""

from typing import TYPE_CHECKING, Any, Literal, cast

from torch import Tensor, nn

from hooks.base.stacked_weights import StackedWeights
from hooks.checks import choice

if TYPE_CHECKING:
    from transformer_lens.model_bridge.composition_scores import CompositionScores

_BY_KV_HEAD = ("W_K", "W_V", "b_K", "b_V")


class BridgeMembers(StackedWeights):
    """Members of TransformerBridge that its tools call."""

    @property
    def n_params_total(self) -> int:
        """Number of all weights, embeddings, norms and biases included; a tied matrix counts once."""
        return sum(parameter.numel() for parameter in cast(nn.Module, self).parameters())

    @property
    def all_head_labels(self) -> list[str]:
        """L0H0, L0H1, …: every head, layer by layer."""
        return [f"L{layer}H{head}" for layer in range(self.cfg.n_layers) for head in range(self.cfg.n_heads)]

    def blocks_with(self, submodule: str) -> list[tuple[int, nn.Module]]:
        """The blocks that have a part, and their indices.

        Args:
            submodule: "attn", "mlp", "ln1", "ln1_post", "ln2" or "ln2_post".
        """
        parts = [(index, block._modules.get(submodule)) for index, block in enumerate(self.blocks)]
        return [
            (index, self.blocks[index])
            for index, part in parts
            if part is not None and not isinstance(part, nn.Identity)
        ]

    def tl_parameters(self) -> dict[str, Tensor]:
        """Weights under TransformerLens' names and in its layout, views where they exist.

        Each kv head stands once for every query head that uses it, which copies it, and a gain is the one that is
        stored: where ``cfg.rmsnorm_uses_offset`` a norm multiplies by 1 + it.
        """
        group = self.cfg.n_heads // self.cfg.n_kv_heads
        found = {"embed.W_E": self.W_E, "unembed.W_U": self.W_U, "unembed.b_U": self.b_U}
        for layer, block in enumerate(cast(Any, self.blocks)):
            for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
                weight = getattr(block.attn, name)
                shared = name in _BY_KV_HEAD and group > 1
                found[f"blocks.{layer}.attn.{name}"] = weight.repeat_interleave(group, dim=0) if shared else weight
            for name in ("W_in", "W_gate", "W_out", "b_in", "b_gate", "b_out") if block.mlp is not None else ():
                found[f"blocks.{layer}.mlp.{name}"] = getattr(block.mlp, name)
            norms = {f"blocks.{layer}.{name}": getattr(block, name) for name in ("ln1", "ln2")}
            found |= {f"{name}.{x}": getattr(norm, x, None) for name, norm in norms.items() for x in "wb"}
        found |= {"ln_final.w": self.ln_final.w, "ln_final.b": self.ln_final.b}
        return {name: weight for name, weight in found.items() if weight is not None}

    def all_composition_scores(self, mode: Literal["Q", "K", "V"]) -> "CompositionScores":
        """How far what a head writes is what a later head reads, ``‖W_OV W‖_F / (‖W_OV‖_F ‖W‖_F)`` of any two heads.

        Args:
            mode: what is read by: "Q" (W = W_QK), "K" (its transpose) or "V" (W_OV).

        Returns:
            Scores, [layer head layer head], 0 unless the second layer is behind the first.

        Source: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits.
        """
        from transformer_lens.model_bridge.composition_scores import CompositionScores
        from transformer_lens.utilities.matrix import composition_scores

        choice("mode", mode, ("Q", "K", "V"))
        reads = {"Q": lambda: self.QK, "K": lambda: self.QK.T, "V": lambda: self.OV}[mode]()
        scores = composition_scores(self.OV, reads, broadcast_dims=True)
        behind = scores.new_ones(2 * (self.cfg.n_layers,)).triu(1)[:, None, :, None]
        return CompositionScores(scores * behind, list(range(self.cfg.n_layers)), self.all_head_labels)
