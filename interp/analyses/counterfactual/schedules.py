"""Which schedule and which steps a captured layer has under another rope setting."""

from collections.abc import Mapping

from hooks import RopeConfig
from hooks.config.rope_inherited import RopeSetting, inherited_rope
from hooks.config.steps import attention_steps
from interp.tensors.capture_data import CaptureData
from interp.tensors.rotation import check_rotation_seen


def schedule_of(cap: CaptureData, layer: int, rope: RopeSetting) -> RopeConfig | None:
    """The schedule of one layer under another rope setting, unset fields filled from the model's own.

    Args:
        cap: the capture.
        layer: the layer; one that the model exempts from rotation stays exempt.
        rope: as `HookedTransformer.with_config` takes it: one schedule, one for each layer type (types left out keep
            their own), or None for no rotation.

    Returns:
        A complete schedule, the model's own object where nothing differs from it; None for no rotation.

    Raises:
        StageError: the layer of a foreign model may rotate where the capture cannot see it.
        ConfigError: one schedule for a model whose layer types rotate differently, an unknown layer type, or a
            schedule that lacks a field.
    """
    cfg = cap.cfg
    setting = inherited_rope(cfg, rope)
    check_rotation_seen(cap, layer)
    new = setting[cfg.layer_type(layer)] if isinstance(setting, Mapping) else setting
    if new is None or _exempt(cap, layer):
        return None
    own = cfg.rope_for(layer)
    if own is not None and new in (own, own.inherit(own, n_ctx=cfg.n_ctx)):
        return own
    new.check_complete(cfg.d_head)
    return new


def steps_under(cap: CaptureData, layer: int, rope: RopeConfig | None) -> tuple[str, ...]:
    """The steps of a captured layer's q and k when it rotates by this schedule, or not at all."""
    own = cap.steps(layer)
    if rope is None:
        return tuple(step for step in own if step != "rope")
    return own if "rope" in own else attention_steps(cap.cfg.replace(rope=rope), layer, "q")


def _exempt(cap: CaptureData, layer: int) -> bool:
    """Whether the model rotates in other layers and not in this one."""
    if layer in cap.cfg.nope_layers:
        return True
    # An attached model whose schedule is not known names no exempt layers; its steps show them.
    others = any("rope" in cap.steps(other) for other in cap.layers)
    return cap.cfg.rope is None and "rope" not in cap.steps(layer) and others
