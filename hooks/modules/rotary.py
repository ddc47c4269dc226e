"""cos and sin of one schedule as a module with hook points."""

from collections.abc import Callable
from typing import Self, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hooks.config.rope import RopeConfig
from hooks.config.transformer import HookedTransformerConfig
from hooks.functional.rope import attention_factor, cos_and_sin, inv_freq, length_dependent, same_frequencies
from hooks.modules.hook_point import HookPoint


class Rotary(nn.Module):
    """cos and sin for positions under one schedule; keeps no state between calls.

    ``inv_freq`` is a float32 parameter when the schedule is learnable, else None: the frequencies are then
    recomputed for each forward, so no cast or move of the model can change them.

    Args:
        rope: A complete schedule.
        d_head: Size of one head.
    """

    def __init__(self, rope: RopeConfig, d_head: int) -> None:
        super().__init__()
        self.rope = rope
        self.d_head = d_head
        self.hook_cos = HookPoint()
        self.hook_sin = HookPoint()
        frequencies, _ = inv_freq(rope, d_head)
        self.inv_freq = nn.Parameter(frequencies.float()) if rope.learnable else None

    def frequencies(self, length: int | None = None) -> tuple[Float[Tensor, " pair"], float]:
        """The frequencies and attention factor in use at an input of this length."""
        if self.inv_freq is None:
            return inv_freq(self.rope, self.d_head, length)
        return self.inv_freq, attention_factor(self.rope)

    def forward(
        self, positions: Int[Tensor, "batch pos"], *, length: int | None = None, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "batch pos pair"], Float[Tensor, "batch pos pair"]]:
        """m·cos(p·f_i) and m·sin(p·f_i), m the attention factor.

        Args:
            positions: Position of every token.
            length: Length of the whole input, for schedules that depend on it (default: last position + 1).
            dtype: Type of the result; the angles are taken in float32 or float64 as ``rope.precision`` says.

        Returns:
            cos and sin, one value per pair.
        """
        if length is None and length_dependent(self.rope):
            length = int(positions.max()) + 1
        frequencies, factor = self.frequencies(length)
        cos, sin = cos_and_sin(positions, frequencies, factor, precision=self.rope.precision, dtype=dtype)
        return self.hook_cos(cos), self.hook_sin(sin)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move with the model but stay float32: bfloat16 frequencies are off by radians at position 4,096."""

        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, recurse)

    def extra_repr(self) -> str:
        """The schedule, in the module's repr."""
        return f"{self.rope!r}, d_head={self.d_head}"


def rotation_dtype(cfg: HookedTransformerConfig, dtype: torch.dtype) -> torch.dtype:
    """Type of cos and sin in a model that computes in this one."""
    exact = cfg.rope_in_float32 and not cfg.round_cos_sin
    return torch.promote_types(dtype, torch.float32) if exact else dtype


def rescheduled(parameter: str, own: nn.ModuleDict, new: nn.ModuleDict) -> bool:
    """Whether a parameter is learned frequencies, and the new schedule starts from others than the own one did.

    Args:
        parameter: its name in the model.
        own: the rotations that it belongs to, by layer type.
        new: those of the other model.
    """
    if not parameter.startswith("rotary."):
        return False
    layer_type = parameter.split(".")[1]
    if layer_type not in new:
        return False
    before, after = (cast(Rotary, rotary[layer_type]) for rotary in (own, new))
    return not same_frequencies(before.rope, after.rope, after.d_head)
