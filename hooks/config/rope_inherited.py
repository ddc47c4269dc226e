"""A rotary setting given in place of a model's own: what it inherits."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hooks.checks import shown
from hooks.config.rope import RopeConfig
from hooks.errors import ConfigError

if TYPE_CHECKING:
    from hooks.config.transformer import HookedTransformerConfig

RopeSetting = RopeConfig | Mapping[str, RopeConfig | None] | None
"""One schedule for all layers, one (or None) for each layer type, or None: no rotation."""


def inherited_rope(cfg: "HookedTransformerConfig", rope: RopeSetting) -> RopeSetting:
    """A rope setting whose unset fields come from the model's own, as `HookedTransformer.with_config` reads it.

    Args:
        cfg: the model's configuration.
        rope: one schedule, a mapping from layer type to one (types left out keep the model's own), or None.

    Returns:
        The setting, one for each layer type where it was given so; schedules may still lack fields that no one set.

    Raises:
        ConfigError: another kind of value, a layer type that the model has not, or one schedule for a model whose layer
            types rotate differently.
    """
    if rope is None:
        return None
    for schedule in rope.values() if isinstance(rope, Mapping) else [rope]:
        if not isinstance(schedule, RopeConfig | None):
            raise ConfigError(
                f"rope={shown(rope)} is neither a RopeConfig nor a mapping from layer type to RopeConfig or None; "
                "RopeConfig.from_dict reads a dictionary of settings"
            )
    own = _by_layer_type(cfg)
    if isinstance(rope, RopeConfig):
        if isinstance(cfg.rope, Mapping):
            raise ConfigError(
                f"this model's layer types rotate differently: give rope as a mapping with any of the keys "
                f"{', '.join(map(repr, own))}; types left out keep their own schedule"
            )
        return rope.inherit(cfg.rope or RopeConfig(), n_ctx=cfg.n_ctx)
    if not set(rope) <= set(own):
        raise ConfigError(f"rope has the layer types {list(rope)!r}; this model's are {', '.join(map(repr, own))}")
    return own | {t: new and new.inherit(own[t] or RopeConfig(), n_ctx=cfg.n_ctx) for t, new in rope.items()}


def _by_layer_type(cfg: "HookedTransformerConfig") -> dict[str, RopeConfig | None]:
    """The model's own schedule of each layer type."""
    if isinstance(cfg.rope, Mapping):
        return dict(cfg.rope)
    return dict.fromkeys(map(cfg.layer_type, range(cfg.n_layers)), cfg.rope)
