"""QKNormConfig: how queries and keys are normalised, as a frozen, validated value."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from hooks.checks import instance, shown
from hooks.errors import ConfigError

_CHOICES = {
    "kind": ("rms", "layer", "l2"),
    "scope": ("head", "per_head", "full"),
    "position": ("before_rope", "after_rope"),
}


@dataclass(frozen=True)
class QKNormConfig:
    """The norm of q and k; the same for both, with weights of their own.

    Args:
        kind: RMSNorm, LayerNorm or division by the L2 norm.
        scope: What is normalised together and who owns a gain: each head with one gain for all ("head"),
            each head with its own ("per_head"), or all heads as one vector ("full").
        position: Before or after the rotation.
        eps: Added to the mean square (rms, layer); the floor of the norm (l2).
        affine: Whether there is a learned gain.
        bias: LayerNorm's β.
        unit_offset: The gain is 1 + w (Gemma).
        scale_before_cast: Multiply by the gain in float32, then cast (OLMo 2); otherwise cast first (Llama).
        scale: A fixed factor after the norm, on q and on k: √10 each where x-transformers' l2 scales the score by 10.

    Raises:
        ConfigError: Naming the field, its value and what is allowed.
    """

    kind: Literal["rms", "layer", "l2"] = "rms"
    scope: Literal["head", "per_head", "full"] = "head"
    position: Literal["before_rope", "after_rope"] = "before_rope"
    eps: float = 1e-6
    affine: bool = True
    bias: bool = False
    unit_offset: bool = False
    scale_before_cast: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if not isinstance(getattr(self, name), str) or getattr(self, name) not in allowed:
                raise ConfigError(f"qk_norm {name}={shown(getattr(self, name))} must be one of {', '.join(allowed)}")
        for name, least in (("eps", 0.0), ("scale", math.ulp(0.0))):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < math.inf:
                raise ConfigError(
                    f"qk_norm {name}={shown(value)} must be a finite number, {'above' if least else 'at least'} 0"
                )
        for name in ("affine", "bias", "unit_offset", "scale_before_cast"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"qk_norm {name}={shown(getattr(self, name))} must be True or False")
        if self.bias and (self.kind != "layer" or not self.affine):
            raise ConfigError(f"qk_norm bias=True needs kind='layer' and affine=True, got {self!r}")
        if self.unit_offset and not self.affine:
            raise ConfigError("qk_norm unit_offset=True needs affine=True: without a gain there is nothing to offset")

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-able."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Build from ``to_dict``'s form.

        Raises:
            ConfigError: A key is not a field.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for name in instance(
            "settings", settings, Mapping, "a mapping of fields, as to_dict gives it", error=ConfigError
        ):
            if name not in known:
                raise ConfigError(f"{name!r} is not a field of {cls.__name__}; its fields are {', '.join(known)}")
        return cls(**settings)
