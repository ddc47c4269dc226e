"""RMSNorm and LayerNorm of the residual stream, with hooks on the divisor and on the normalised tensor."""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooks.config.transformer import HookedTransformerConfig
from hooks.modules.chunks import by_position, positions_at_once
from hooks.modules.hook_point import HookPoint


def hooked_rsqrt(mean_square: Tensor, hook_scale: HookPoint) -> Tensor:
    """1 / sqrt(mean_square), with the divisor on a hook; bit-equal to torch.rsqrt unless a hook edits the divisor.

    transformers multiplies by rsqrt, so looking at the divisor must not change the last bit of the output: an unedited
    divisor makes the ratio exactly 1. The hook gets a copy, so that an edit in place counts too.
    """
    inverse = torch.rsqrt(mean_square)
    if not hook_scale.has_hooks():
        return inverse
    divisor = mean_square.sqrt()
    return inverse * (divisor / hook_scale(divisor.clone()))


class Norm(nn.Module):
    """RMSNorm x/√(mean(x²)+eps)·w or LayerNorm (x−mean)/√(var+eps)·w+b over the last axis, in float32 or better.

    Args:
        cfg: reads normalization_type ("RMS" | "LN"), eps, norm_affine, norm_bias, rmsnorm_uses_offset (gain 1+w; of
            LayerNorm too) and norm_scale_before_cast (multiply by the gain before the cast to the model's dtype).
        width: size of the normalised axis.
    """

    def __init__(self, cfg: HookedTransformerConfig, width: int):
        super().__init__()
        self.cfg = cfg
        self.offset = 1.0 if cfg.rmsnorm_uses_offset else 0.0
        gain = torch.full((width,), 1.0 - self.offset, dtype=cfg.dtype)
        self.weight = nn.Parameter(gain) if cfg.norm_affine else None
        self.bias = nn.Parameter(torch.zeros(width, dtype=cfg.dtype)) if cfg.norm_bias else None
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()

    @property
    def gain(self) -> Float[Tensor, " d_model"] | float:
        """What each normalised feature is multiplied by, offset included; 1 without a gain."""
        return 1.0 if self.weight is None else self.offset + self.weight

    @property
    def w(self) -> Float[Tensor, " d_model"] | None:
        """The gain as it is stored, which is TransformerLens' name for it: without the offset, None without a gain."""
        return self.weight

    @property
    def b(self) -> Float[Tensor, " d_model"] | None:
        """LayerNorm's β under TransformerLens' name, None without one."""
        return self.bias

    def centred(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """What is squared and divided: x − mean(x) for LayerNorm, x for RMSNorm."""
        return x - x.mean(-1, keepdim=True) if self.cfg.normalization_type == "LN" else x

    def forward(
        self, x: Float[Tensor, "batch pos *head d_model"], *, hooked: bool = True
    ) -> Float[Tensor, "batch pos *head d_model"]:
        """Normalise, then apply gain and bias in the configured cast order.

        Args:
            x: the residual stream, or one copy of it per head.
            hooked: False passes the hook points by, for copies that are not the stream itself.
        """
        if x.ndim < 3:
            return self._normalised(x, hooked=hooked)
        at_once = positions_at_once(x.shape[2:].numel(), x, itemsize=4)
        points = (self.hook_scale, self.hook_normalized) if hooked else ()
        return by_position(partial(self._normalised, hooked=hooked), x, at_once=at_once, unless_watched=points)

    def _normalised(self, x: Tensor, *, hooked: bool) -> Tensor:
        """The whole of x, past the hook points or not."""
        wide = self.centred(x.to(torch.promote_types(x.dtype, torch.float32)))
        mean_square = wide.pow(2).mean(-1, keepdim=True) + self.cfg.eps
        if hooked:
            normed = self.hook_normalized(wide * hooked_rsqrt(mean_square, self.hook_scale))
        else:
            normed = wide * torch.rsqrt(mean_square)
        if not self.cfg.norm_scale_before_cast:
            normed = normed.to(x.dtype)
        if self.weight is not None:
            # Nemotron's LayerNorm adds the 1 in the weight's own type, Gemma's RMSNorm in float32.
            early = self.cfg.normalization_type == "LN" and self.offset
            gain = (self.offset + self.weight if early else self.weight).to(normed.dtype)
            normed = normed * (self.offset + gain if self.offset and not early else gain)
        if self.bias is not None:
            normed = normed + self.bias.to(normed.dtype)
        return normed.to(x.dtype)
