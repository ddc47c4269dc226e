"""Decomposing the residual stream of a model whose norms keep their gains: TransformerLens' cache, made exact for it.

A norm with its divisor s held fixed is linear, N(x) = γ ⊙ (x − mean(x)) / s (RMSNorm: without the mean; its bias is not
part of it), so what a norm makes of a sum is the sum of what it makes of the parts. TransformerLens divides and takes γ
to be folded into the next weights; here γ is applied. Post-norms (OLMo 2, Gemma) are one more such step between a head
or neuron and the residual stream.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.ActivationCache import ActivationCache as LensActivationCache
from transformer_lens.utilities.slice import Slice

from hooks.errors import InputError
from hooks.modules.norms import Norm

Components = Float[Tensor, "component *batch_pos d_model"]
LabelledComponents = Components | tuple[Components, list[str]]


@dataclass(frozen=True)
class _Path:
    """The linear way from what a part writes to what is read: norms of fixed divisor, then a projection."""

    norms: tuple[Norm, ...]
    divisor: Tensor | float
    projection: Float[Tensor, "d_model out"] | None

    def vectors(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... out"]:
        """Vectors through everything except the divisors, which differ by position."""
        for norm in self.norms:
            x = norm.centred(x) * norm.gain
        return x if self.projection is None else x @ self.projection

    def __call__(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... out"]:
        return self.vectors(x) / self.divisor


class DecomposableCache(LensActivationCache):
    """TransformerLens' ActivationCache with norms applied as the model applies them, gains and post-norms included.

    `decompose_resid`, `accumulated_resid`, `stack_head_results`, `logit_attrs` and the rest keep TransformerLens'
    arguments. `stack_head_results` and `stack_neuron_results` are the outputs before any post-norm: heads sum to
    ``attn.hook_out`` − b_O. `get_full_resid_decomposition` has them as the residual stream receives them, and always
    sums to it. Attributions are of the logit before a soft-cap, and sum to it less ``model.logit_bias(token)``.
    """

    model: Any

    def apply_ln_to_stack(
        self,
        residual_stack: Components,
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: Any = None,
        batch_slice: Any = None,
        has_batch_dim: bool = True,
        recompute_ln: bool = False,
    ) -> Components:
        """What each part of the residual stream contributes to the output of a norm, gain included.

        γ ⊙ (x − mean(x)) / s with the s of the cached run (RMSNorm: without the mean). The parts' sum is the norm's
        output less its bias. A layer that has no norm at its input (OLMo 2) leaves the stack as it is.

        Args:
            residual_stack: parts of the stream.
            layer: the layer whose input norm is meant; n_layers, −1 or None is the final norm.
            mlp_input: the norm before that layer's MLP instead of before attention.
            pos_slice: positions that the stack was cut to.
            batch_slice: batch rows to cut stack and divisor to.
            has_batch_dim: whether the stack has a batch axis.
            recompute_ln: treat each item as a whole stream and apply the final norm to it, bias included.
        """
        norm = self._norm_before(layer, mlp_input)
        if recompute_ln and norm is self.model.ln_final:
            return super().apply_ln_to_stack(
                residual_stack, layer, mlp_input, pos_slice, batch_slice, has_batch_dim, recompute_ln
            )
        rows = _as_slice(batch_slice)
        if has_batch_dim:
            residual_stack = rows.apply(residual_stack, dim=1)
        if not isinstance(norm, Norm):
            return residual_stack
        divisor = self._divisor(self._norm_name(layer, mlp_input), pos_slice)
        divisor = rows.apply(divisor) if self.has_batch_dim else divisor
        return norm.centred(residual_stack) * norm.gain / divisor

    def stack_neuron_results(
        self,
        layer: int,
        pos_slice: Any = None,
        neuron_slice: Any = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
        project_output_onto: Float[Tensor, "d_model out"] | Float[Tensor, " d_model"] | None = None,
        mlp_input: bool = False,
    ) -> LabelledComponents:
        """What each neuron writes, act · W_out, before any post-norm; arguments as in TransformerLens."""
        self._refuse_parallel(mlp_input)
        divisor: Tensor | float = 1.0
        norm = self._norm_before(layer, mlp_input)
        if apply_ln and project_output_onto is not None:
            # The norm can act on the projection instead of on every neuron's vector.
            apply_ln = False
            if isinstance(norm, Norm):
                divisor = self._divisor(self._norm_name(layer, mlp_input), pos_slice)
                divisor = divisor if project_output_onto.ndim == 2 else divisor.squeeze(-1)
                project_output_onto = _pulled_back(norm, project_output_onto)
        found: Any = super().stack_neuron_results(
            layer, pos_slice, neuron_slice, True, incl_remainder, apply_ln, project_output_onto, mlp_input
        )
        stack = found[0] / divisor
        return (stack, found[1]) if return_labels else stack

    def decompose_resid(
        self, layer: int | None = None, mlp_input: bool = False, *args: Any, **kwargs: Any
    ) -> LabelledComponents:
        """The embedding and what each attention and MLP adds to the stream; arguments as in TransformerLens.

        Raises:
            InputError: `mlp_input` on a parallel block.
        """
        self._refuse_parallel(mlp_input)
        return super().decompose_resid(layer, mlp_input, *args, **kwargs)

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: Any = None,
        return_labels: bool = False,
        project_output_onto: Float[Tensor, "d_model out"] | Float[Tensor, " d_model"] | None = None,
    ) -> LabelledComponents:
        """Every head, neuron (or MLP), the embedding and the biases, as the residual stream receives them.

        The parts always sum to the stream (with `apply_ln`, to the norm's output less its bias; with a projection, to
        the projection of that). Order: heads, neurons or MLPs, "embed", "bias".

        Args:
            layer: the layer whose input is decomposed; n_layers, −1 or None is the final stream.
            mlp_input: decompose the input of that layer's MLP instead of its attention.
            expand_neurons: one part per neuron instead of one per MLP.
            apply_ln: take the parts through the norm at that input.
            pos_slice: positions to keep.
            return_labels: give labels too: "L0H1", "L0N2" or "0_mlp_out", "embed", "bias".
            project_output_onto: replace the last axis by products with these directions; with `expand_neurons` no
                tensor of size d_mlp · d_model per position is made.

        Raises:
            InputError: `mlp_input` on a parallel block.
        """
        self._refuse_parallel(mlp_input)
        end = self._layer(layer)
        blocks, n_heads = list(self.model.blocks), self.model.cfg.n_heads
        projection = project_output_onto
        if projection is not None and projection.ndim == 1:
            projection = projection[:, None]
        reader = [self._norm_name(end, mlp_input)] if apply_ln else []

        def path(*names: str) -> _Path:
            norms = {name: self.model.get_submodule(name) for name in names}
            real = {name: norm for name, norm in norms.items() if isinstance(norm, Norm)}
            divisors = [self._divisor(name, pos_slice) for name in real]
            return _Path(tuple(real.values()), torch.stack(divisors).prod(0) if divisors else 1.0, projection)

        read = path(*reader)
        embed = read(_as_slice(pos_slice).apply(self["hook_embed"], dim=-2))
        parts, labels, bias = [], [], torch.zeros_like(embed)
        for index in range(end + mlp_input):
            through = path(f"blocks.{index}.ln1_post", *reader)
            heads = self._head_results(index, pos_slice)
            parts.append(through(heads))
            labels += [f"L{index}H{head}" for head in range(n_heads)]
            bias = bias + through(blocks[index].attn.b_O) + _written_bias(read, blocks[index].ln1_post)
        for index in range(0 if self.model.cfg.attn_only else end):
            if not expand_neurons:
                parts.append(read(_as_slice(pos_slice).apply(self["mlp_out", index], dim=-2))[None])
                labels.append(f"{index}_mlp_out")
                continue
            through = path(f"blocks.{index}.ln2_post", *reader)
            mlp = blocks[index].mlp
            acts = _as_slice(pos_slice).apply(self["post", index], dim=-2) / through.divisor
            parts.append((acts[..., None] * through.vectors(mlp.W_out)).movedim(-2, 0))
            labels += [f"L{index}N{neuron}" for neuron in range(acts.shape[-1])]
            bias = bias + through(mlp.b_out) + _written_bias(read, blocks[index].ln2_post)
        stack = torch.cat([*parts, embed[None], bias[None]])
        if project_output_onto is not None and project_output_onto.ndim == 1:
            stack = stack.squeeze(-1)
        return (stack, [*labels, "embed", "bias"]) if return_labels else stack

    def _head_results(self, layer: int, pos_slice: Any) -> Float[Tensor, "head *batch_pos d_model"]:
        """Each head's output after W_O, before any post-norm."""
        z = _as_slice(pos_slice).apply(self["z", layer], dim=-3)
        return torch.einsum("...hd,hdm->h...m", z, self.model.blocks[layer].attn.W_O)

    def _layer(self, layer: int | None) -> int:
        """A layer index; None and −1 mean after the last one."""
        return self.model.cfg.n_layers if layer is None or layer == -1 else layer

    def _norm_name(self, layer: int | None, mlp_input: bool) -> str:
        """Which norm the input of a layer passes."""
        index = self._layer(layer)
        own = mlp_input and not self.model.cfg.parallel_shared_norm
        return "ln_final" if index == self.model.cfg.n_layers else f"blocks.{index}.ln{2 if own else 1}"

    def _norm_before(self, layer: int | None, mlp_input: bool) -> nn.Module:
        """The norm that the input of a layer passes; Identity where there is none."""
        return self.model.get_submodule(self._norm_name(layer, mlp_input))

    def _divisor(self, norm_name: str, pos_slice: Any) -> Float[Tensor, "*batch_pos 1"]:
        """What a norm divided by in the cached run."""
        return _as_slice(pos_slice).apply(self[f"{norm_name}.hook_scale"], dim=-2)

    def _refuse_parallel(self, mlp_input: bool) -> None:
        """In a parallel block the MLP does not read what its attention wrote."""
        if mlp_input and self.model.cfg.parallel_attn_mlp:
            raise InputError(
                "mlp_input=True: this model's MLPs read the same stream as attention (cfg.parallel_attn_mlp); "
                "decompose with mlp_input=False, then apply_ln_to_stack(stack, layer, mlp_input=True)"
            )


def _as_slice(value: Any) -> Slice:
    """TransformerLens' Slice of whatever its methods accept as one."""
    return value if isinstance(value, Slice) else Slice(value)


def _pulled_back(norm: Norm, direction: Tensor) -> Tensor:
    """What to multiply a norm's input by to get its output times its divisor along a direction: C(γ ⊙ p)."""
    if direction.ndim == 1:
        return norm.centred(norm.gain * direction)
    return norm.centred(norm.gain * direction.T).T


def _written_bias(read: _Path, post_norm: nn.Module) -> Tensor | float:
    """What the bias of a post-norm adds to what is read."""
    bias = getattr(post_norm, "bias", None)
    return 0.0 if bias is None else read(bias)
