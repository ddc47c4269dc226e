"""QK-norm: RMSNorm, LayerNorm or L2 normalisation of queries and keys, with the divisor on a hook."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooks.config.qk_norm import QKNormConfig
from hooks.errors import InputError
from hooks.modules.chunks import by_position, positions_at_once
from hooks.modules.hook_point import HookPoint
from hooks.modules.norms import hooked_rsqrt


class QKNorm(nn.Module):
    """Normalise each head's features, or all heads' together, then apply a gain.

    rms: ``x / sqrt(mean(x²) + eps)``; layer: the same after subtracting the mean; l2: ``x / max(‖x‖, eps)``.
    The statistics run in float32 or better, in transformers' order of operations.

    Args:
        config: Kind, scope and numerics of the norm.
        n_heads: Number of heads of the tensor to be normalised (kv heads for keys).
        d_head: Features per head.
        dtype: Of the gain and bias.

    Attributes:
        weight: Gain, [d_head] for scope "head", [n_heads d_head] for "per_head", [n_heads·d_head] for "full";
            None without ``affine``. Starts as the identity.
        bias: Same shape, None unless ``bias``.
        hook_scale: The divisor, [batch pos head 1], or [batch pos 1 1] for scope "full". An edited divisor changes
            the output; looking at it changes no bit.
    """

    def __init__(self, config: QKNormConfig, n_heads: int, d_head: int, *, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.config, self.n_heads, self.d_head = config, n_heads, d_head
        shapes = {"head": (d_head,), "per_head": (n_heads, d_head), "full": (n_heads * d_head,)}
        shape = shapes[config.scope]
        identity = 0.0 if config.unit_offset else 1.0
        self.weight = nn.Parameter(torch.full(shape, identity, dtype=dtype)) if config.affine else None
        self.bias = nn.Parameter(torch.zeros(shape, dtype=dtype)) if config.affine and config.bias else None
        self.hook_scale = HookPoint()

    def forward(self, x: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos head d_head"]:
        """Normalise queries or keys.

        Args:
            x: Projected queries or keys, in any floating type.

        Returns:
            The same shape and type.

        Raises:
            InputError: The heads are not those the norm was made for.
        """
        if x.shape[-2:] != (self.n_heads, self.d_head):
            raise InputError(f"QKNorm is made for {self.n_heads} heads of {self.d_head}, got {tuple(x.shape)}")
        if x.ndim != 4:
            return self._normed(x)
        at_once = positions_at_once(self.n_heads * self.d_head, x, itemsize=4)
        return by_position(self._normed, x, at_once=at_once, unless_watched=(self.hook_scale,))

    def _normed(self, x: Tensor) -> Tensor:
        """The whole of x."""
        vectors = x.flatten(-2).unsqueeze(-2) if self.config.scope == "full" else x
        normed = self._normalize(vectors.to(torch.promote_types(x.dtype, torch.float32)))
        if not self.config.scale_before_cast:
            normed = normed.to(x.dtype)
        return self._apply_gain(normed).to(x.dtype).reshape(x.shape)

    def effective_gain(self) -> Float[Tensor, "head d_head"]:
        """The factor on each normalised feature, offset and ``scale`` included, in float32.

        Returns:
            One row per head, ones without ``affine``.
        """
        if self.weight is None:
            gain = torch.ones(self.d_head)
        else:
            gain = self.weight.float() + (1.0 if self.config.unit_offset else 0.0)
        if self.config.scope == "full" and self.weight is not None:
            gain = gain.view(self.n_heads, self.d_head)
        return (gain * self.config.scale).expand(self.n_heads, self.d_head)

    def _normalize(self, x: Tensor) -> Tensor:
        """Divide by the hooked scale."""
        if self.config.kind == "l2":
            return x / self.hook_scale(x.norm(dim=-1, keepdim=True).clamp_min(self.config.eps))
        if self.config.kind == "layer":
            x = x - x.mean(-1, keepdim=True)
        return x * hooked_rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config.eps, self.hook_scale)

    def _apply_gain(self, normed: Tensor) -> Tensor:
        """Gain, bias and fixed scale, in the type that ``normed`` has."""
        if self.weight is not None:
            gain = self.weight.to(normed.dtype)
            normed = normed * (1.0 + gain if self.config.unit_offset else gain)
        if self.bias is not None:
            normed = normed + self.bias.to(normed.dtype)
        return normed if self.config.scale == 1.0 else normed * self.config.scale
