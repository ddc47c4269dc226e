"""The variants of a layer's steps that score_ranges compares: as run, without norm or rotation, in the other order."""

from dataclasses import replace
from typing import Any, NamedTuple

from hooks import HookedTransformerConfig
from hooks.config.steps import attention_steps
from interp.tensors.capture_data import CaptureData

VARIANTS = ("as_run", "no_norm", "no_rope", "swapped_order")

_OTHER_SIDE = {"before_rope": "after_rope", "after_rope": "before_rope"}
_LACKS = {
    "no_norm": "this layer has no QK-norm to leave out",
    "no_rope": "this layer has no rotation to leave out",
    "swapped_order": "this layer does not both normalise and rotate, so there is no order to swap",
}
_NEEDS = {"no_norm": {"norm"}, "no_rope": {"rope"}, "swapped_order": {"norm", "rope"}}
_UNKNOWN = (
    "the capture does not know this layer's norm and rotation well enough to do them again: capture the model itself "
    "with interp.capture"
)


class StepVariant(NamedTuple):
    """Settings of norm, rotation and clip, and the order in which a layer applies them to q and k."""

    cfg: HookedTransformerConfig
    steps: tuple[str, ...]


def step_variant(cap: CaptureData, layer: int, name: str) -> tuple[StepVariant | None, str]:
    """One of `VARIANTS` for a captured layer; None, and why, where there is no such variant."""
    steps = cap.steps(layer)
    if name == "as_run":
        return StepVariant(cap.cfg, steps), ""
    if not _NEEDS[name] <= set(steps):
        return None, _LACKS[name]
    if not _described(cap, layer):
        return None, _UNKNOWN
    changed = _CHANGES[name](cap.cfg)
    return StepVariant(changed, attention_steps(changed, layer, "q")), ""


def _described(cap: CaptureData, layer: int) -> bool:
    """Whether the capture's configuration says everything that was done to q and k of a layer.

    It does for our own models; a cache's or a foreign model's may lack the norm, its gains or the rotation.
    """
    constants = cap.constants(layer)
    known = cap.cfg.qk_norm is None or (constants.gain_q is not None and constants.gain_k is not None)
    return known and attention_steps(cap.cfg, layer, "q") == cap.steps(layer)


def _without_norm(cfg: HookedTransformerConfig) -> HookedTransformerConfig:
    """The configuration without its QK-norm, a clip behind it moved to where it stood."""
    return cfg.replace(qk_norm=None, clip_position="projection" if cfg.clip_position == "norm" else cfg.clip_position)


def _without_rope(cfg: HookedTransformerConfig) -> HookedTransformerConfig:
    """The configuration with no rotation."""
    return cfg.replace(rope=None, nope_layers=())


def _swapped(cfg: HookedTransformerConfig) -> HookedTransformerConfig:
    """The configuration with norm and rotation in the other order."""
    assert cfg.qk_norm is not None
    settings: dict[str, Any] = {"position": _OTHER_SIDE[cfg.qk_norm.position]}
    return cfg.replace(qk_norm=replace(cfg.qk_norm, **settings))


_CHANGES = {"no_norm": _without_norm, "no_rope": _without_rope, "swapped_order": _swapped}
