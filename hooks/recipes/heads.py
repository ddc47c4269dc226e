"""Interventions on what heads give, ready to hook on ``blocks.*.attn.hook_z``: ablation and patching, O(n) memory.

    heads = [(5, 2), (7, 0)]  # (layer, head)
    model.run_with_hooks(tokens, fwd_hooks=[("blocks.*.attn.hook_z", recipes.ablate_heads(heads, "mean"))])

A hook edits the heads of the layer that it sits on, and leaves those of other layers, whose names it was given too,
alone. It keeps no state, is differentiable, and returns a new tensor.
"""

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooks.checks import shown
from hooks.errors import ConfigError, InputError
from hooks.recipes.arguments import heads_by_layer, index_set, on_device
from hooks.recipes.sources import Source, check_source, from_source

if TYPE_CHECKING:
    from transformer_lens.hook_points import HookPoint

_POINT = re.compile(r"blocks\.(\d+)\.attn\.hook_z$")
# What takes the place of the z of some heads, given these, the whole z, the point and its layer.
Edit = Callable[[Tensor, Tensor, Int[Tensor, " n"], "HookPoint", int], Tensor]


class HeadsHook(Protocol):
    """A hook function for ``hook_z``."""

    def __call__(
        self, z: Float[Tensor, "batch pos head d_head"], /, *, hook: "HookPoint"
    ) -> Float[Tensor, "batch pos head d_head"]:
        """The edited outputs of the heads."""
        ...


def ablate_heads(heads: Iterable[tuple[int, int]], value: Literal["zero", "mean"] | Source = "zero") -> HeadsHook:
    """Take what some heads tell apart out of a run: their z becomes zero, its mean, or that of another text.

    Args:
        heads: (layer, head) pairs.
        value: "zero": z = 0, and W_O's bias stays.
            "mean": each head's mean z over the tokens of the same text, ``z̄ = Σ_i z_i / n``, at every one of them; the
            texts of a batch, and documents packed into one row, each have their own mean, and padding is left out and
            as it is. It needs the whole text at once, later tokens included.
            A cache or a capture of another text: z at the same place there (resample ablation).

    Raises:
        ConfigError: no (layer, head) pairs, or another value.
        InputError: at run time, a head that the layer does not have, a point other than ``hook_z``, a mean where the
            pass goes on from earlier tokens, a source without this layer or with another number of tokens.

    Source: zero and mean: Wang et al. 2022 (arXiv:2211.00593), section 2; resample: Chan et al. 2022, Causal Scrubbing.
    """
    if value == "zero":
        return _recipe(heads, lambda part, z, index, hook, layer: torch.zeros_like(part))
    if value == "mean":
        return _recipe(heads, lambda part, z, index, hook, layer: _mean(part, hook))
    if isinstance(value, str):
        raise ConfigError(f"value={shown(value)}: give 'zero', 'mean', or a cache or capture of another text")
    return patch_heads(value, heads)


def patch_heads(
    source: Source, heads: Iterable[tuple[int, int]], positions: Iterable[int] | Int[Tensor, " n"] | None = None
) -> HeadsHook:
    """Put what some heads gave in another run in the place of what they give in this one (activation patching).

    Args:
        source: a cache with ``hook_z`` of these layers, or a capture, whose z is computed from its q, k and v. Both
            runs read the same number of tokens; one sequence serves every row of a batch.
        heads: (layer, head) pairs.
        positions: places in the sequence, counted from 0 with any padding; all when None.

    Raises:
        ConfigError: no (layer, head) pairs, an empty set or a negative position, no source.
        InputError: at run time, a head or position that is not there, a point other than ``hook_z``, a source without
            this layer or with another number of tokens.

    Source: Vig et al. 2020 (arXiv:2004.12265); Meng et al. 2022 (arXiv:2202.05262), section 2.
    """
    check_source(source, heads=True)
    put = replacing(positions)

    def patch(part: Tensor, z: Tensor, index: Tensor, hook: "HookPoint", layer: int) -> Tensor:
        return put(part, from_source(source, z, hook, layer).index_select(2, index), hook)

    return _recipe(heads, patch)


def replacing(positions: Iterable[int] | Tensor | None) -> Callable[[Tensor, Tensor, "HookPoint"], Tensor]:
    """A function that puts one tensor, [batch pos …], in another's place, at some positions or at all of them."""
    if positions is None:
        return lambda x, other, hook: other
    chosen = index_set("positions", positions)
    last, index_on = int(chosen.max()), on_device(chosen)

    def put(x: Tensor, other: Tensor, hook: "HookPoint") -> Tensor:
        if last >= x.shape[1]:
            raise InputError(f"{hook.name} has no position {last}: its {x.shape[1]} tokens count from 0")
        index = index_on(x.device)
        return x.index_copy(1, index, other.index_select(1, index))

    return put


def _recipe(heads: Iterable[tuple[int, int]], edit: Edit) -> HeadsHook:
    """A hook that applies an edit to the chosen heads of the layer it sits on."""
    chosen = {layer: (int(found[-1]), on_device(found)) for layer, found in heads_by_layer(heads).items()}

    def recipe(z: Tensor, /, *, hook: "HookPoint") -> Tensor:
        place = _POINT.search(str(hook.name))
        if place is None:
            raise InputError(f"{hook.name} does not hold what heads give: put the recipe on blocks.*.attn.hook_z")
        layer = int(place[1])
        if layer not in chosen:
            return z
        last, index_on = chosen[layer]
        if last >= z.shape[2]:
            raise InputError(f"{hook.name} has no head {last}: its {z.shape[2]} heads count from 0")
        index = index_on(z.device)
        return z.index_copy(2, index, edit(z.index_select(2, index), z, index, hook, layer))

    return recipe


def _mean(z: Float[Tensor, "batch pos head d_head"], hook: "HookPoint") -> Float[Tensor, "batch pos head d_head"]:
    """At each token the mean over the tokens of its text; padding as it is."""
    texts = hook.ctx.get("texts")
    if texts is None:
        raise InputError(
            f"{hook.name}: a mean over positions needs the whole text in one pass, and this one goes on from earlier "
            "tokens; give ablate_heads 'zero', or run the whole text again"
        )
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    # Padding, −1, is summed up under 0 and not used.
    index = (texts.expand(z.shape[:2]) + 1)[:, :, None, None].expand_as(wide)
    none = wide.new_zeros((z.shape[0], z.shape[1] + 1, *z.shape[2:]))
    sums, counts = none.scatter_add(1, index, wide), none.scatter_add(1, index, torch.ones_like(wide))
    mean = sums.gather(1, index) / counts.gather(1, index)
    return torch.where(index > 0, mean, wide).to(z.dtype)
