"""Rotary settings as config.json files spell them, from ``rope_scaling`` to nested ``rope_parameters``.

Sources: transformers 5.23.0, ``modeling_rope_utils.RotaryEmbeddingConfigMixin``; ``convert_rope_params_to_dict`` of
Gemma 3, OLMo 3, GPT-NeoX and Phi-3; ``compute_ntk_alpha_rope_parameters`` of HunYuan.
"""

from collections.abc import Mapping
from typing import Any

from hooks.errors import ConfigError

Settings = dict[str, Any]
"""Fields of one schedule by name."""


class LayerSettings(dict[str, Settings | None]):
    """Fields of one schedule (or None: no rotation) for each layer type."""


Reading = Settings | LayerSettings

# One setting, several names over time; at the top level and beside the schedule's own fields.
_THETA = ("rope_theta", "rotary_emb_base")
_SHARE = ("partial_rotary_factor", "rotary_pct", "rope_pct")
_LOCAL_THETA = "rope_local_base_freq"
_RENAMED = {"su": "longrope"}
_NO_ROTATION = ("nope", "none", "alibi")
# Families whose flat rope_scaling is meant for full attention only.
_SCALES_FULL_ONLY = ("gemma3", "gemma3_text", "gemma3n_text", "olmo3")
_SCHEDULE_FIELDS = frozenset(
    {
        "factor",
        "original_max_position_embeddings",
        "low_freq_factor",
        "high_freq_factor",
        "beta_fast",
        "beta_slow",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "short_factor",
        "long_factor",
    }
)
# HunYuan writes these beside alpha, and its model reads none of them.
_BESIDE_ALPHA = frozenset({"factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"})


def rope_readings(config: Mapping[str, Any]) -> list[Reading]:
    """What each block of a raw config.json says of rotation; see ``RopeConfig.from_hf``.

    Args:
        config: The parsed file (of the text model, where there are several).

    Returns:
        One reading for each block that is there (they must agree), or none: no rotation.

    Raises:
        ConfigError: A setting is missing, unknown, contradictory or cannot be expressed.
    """
    if config.get("position_embedding_type") in _NO_ROTATION or config.get("alibi") is True:
        return []
    blocks = [name for name in ("rope_scaling", "rope_parameters") if config.get(name)]
    return [_read(config[name], config, name) for name in blocks] or [_read({}, config, "rope_parameters")]


def _read(rope: Any, config: Mapping[str, Any], where: str) -> Reading:
    """One of the two blocks, flat or nested by layer type, with the top level around it."""
    if not isinstance(rope, Mapping):
        raise ConfigError(f"{where}={rope!r} must be a mapping or null")
    if any(isinstance(value, Mapping) for value in rope.values()):
        local = {**config, "rope_theta": config.get(_LOCAL_THETA) or config.get("rope_theta")}
        outer = {name: local if name == "sliding_attention" else config for name in rope}
        return LayerSettings({name: _nested(each, outer[name], f"{where}.{name}") for name, each in rope.items()})
    scaled = _schedule(rope, config, where)
    full_only = config.get("model_type") in _SCALES_FULL_ONLY
    if config.get(_LOCAL_THETA) is not None:
        local = _schedule({}, {**config, "rope_theta": config[_LOCAL_THETA]}, where)
        return LayerSettings(sliding_attention=local, full_attention=scaled)
    if full_only and scaled["rope_type"] != "default":
        plain = {name: rope[name] for name in _THETA if rope.get(name) is not None}
        return LayerSettings(sliding_attention=_schedule(plain, config, where), full_attention=scaled)
    return scaled


def _nested(rope: Any, config: Mapping[str, Any], where: str) -> Settings | None:
    """The entry of one layer type; its own values count before those of the top level."""
    if rope is None:
        return None
    if not isinstance(rope, Mapping):
        raise ConfigError(f"{where}={rope!r} stands beside layer types; it must be the settings of one, or null")
    own = {name for name, value in rope.items() if value is not None}
    outer = {name: value for name, value in config.items() if name not in own}
    if own & set(_SHARE):
        outer = {name: value for name, value in outer.items() if name not in _SHARE}
    return _schedule(rope, outer, where)


def _schedule(rope: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Settings:
    """One schedule from its block and the top level."""
    rope = {name: value for name, value in rope.items() if value is not None}
    if "mrope_section" in rope or rope.get("type") == "mrope" or rope.get("rope_type") == "mrope":
        raise ConfigError(f"{where} has mrope_section: positions on several axes are not implemented")
    rope_type = _rope_type(rope, config, where)
    theta = _one_of(_THETA, rope, config, where)
    if theta is None:
        raise ConfigError(
            f"rope_theta is missing: neither {where} nor the top level has it (nor rotary_emb_base); add rope_theta"
        )
    fields: Settings = {"rope_theta": theta, "partial_rotary_factor": _one_of(_SHARE, rope, config, where)}
    fields["max_position_embeddings"] = config.get("max_position_embeddings")
    fields["rotary_dim"] = config.get("rotary_dim")
    rest = {name: value for name, value in rope.items() if name not in (*_THETA, *_SHARE, "type", "rope_type")}
    if "alpha" in rest:
        fields["rope_theta"] = _alpha_theta(theta, rope_type, rest, config, where)
        return {"rope_type": "default", **fields}
    if rope_type == "yarn":
        rest.pop("finetuned", None)  # a note of the first YaRN checkpoints; their yarn does not read it either
    for name in rest:
        if name not in _SCHEDULE_FIELDS:
            raise ConfigError(f"{where} has the unknown key {name!r}={rest[name]!r}; remove it if it means nothing")
    if rope_type in ("llama3", "yarn", "longrope"):
        rest["original_max_position_embeddings"] = _original_length(rest, config)
    return {"rope_type": rope_type, **fields, **rest}


def _rope_type(rope: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Any:
    """The schedule's name, old names translated."""
    names = [rope[name] for name in ("rope_type", "type") if name in rope]
    if "yarn" in names and "short_factor" in rope and config.get("model_type") == "phi3":
        names = ["longrope" if name == "yarn" else name for name in names]  # the first Phi-3 files
    found = {_RENAMED.get(name, name) for name in names}
    if len(found) > 1:
        raise ConfigError(f"{where} has rope_type={rope['rope_type']!r} and type={rope['type']!r}; keep one")
    if "ntk" in found:
        raise ConfigError(
            f"{where} has type='ntk', which means different schedules in different models; use 'dynamic', or "
            "'default' with rope_theta multiplied by factor ** (r / (r - 2))"
        )
    return found.pop() if found else "default"


def _one_of(names: tuple[str, ...], rope: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Any:
    """The one value that a setting has under any of its names, in the block or at the top level."""
    found = {name: rope[name] for name in names if name in rope}
    found |= {f"top-level {name}": config[name] for name in names if config.get(name) is not None}
    if any(value != next(iter(found.values())) for value in found.values()):
        said = " and ".join(f"{name}={value!r}" for name, value in found.items())
        raise ConfigError(f"{where} and the top level contradict each other: {said}; keep one of them")
    return next(iter(found.values()), None)


def _original_length(rest: Settings, config: Mapping[str, Any]) -> Any:
    """L0: at the top level (Phi-3), in the block, or else Lmax, as transformers has it."""
    for length in (
        config.get("original_max_position_embeddings"),
        rest.get("original_max_position_embeddings"),
    ):
        if length is not None:
            return length
    return config.get("max_position_embeddings")


def _alpha_theta(theta: float, rope_type: str, rest: Settings, config: Mapping[str, Any], where: str) -> float:
    """HunYuan's static base θ·α^(h/(h−2)), which its files label "dynamic"."""
    alpha, d_head = rest["alpha"], config.get("head_dim")
    extra = sorted(rest.keys() - _BESIDE_ALPHA - {"alpha"})
    if rope_type != "dynamic" or extra or not isinstance(alpha, (int, float)) or alpha <= 0:
        raise ConfigError(f"{where} has alpha={alpha!r} with type={rope_type!r} and {extra}, a form that is not known")
    if d_head is None:
        raise ConfigError(f"{where} has alpha={alpha!r}: the base theta * alpha ** (d / (d - 2)) needs head_dim = d")
    return theta * alpha ** (d_head / (d_head - 2))
