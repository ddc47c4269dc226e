"""TransformerLens' flat flags for settings that are nested here: written into the nested form and read back.

Given without the nested form they build the same model; afterwards each reads what the nested form says.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from hooks.config.qk_norm import QKNormConfig
from hooks.config.rope import RopeConfig
from hooks.errors import ConfigError

Settings = dict[str, Any]

_LLAMA3_FLAGS = {
    "NTK_by_parts_low_freq_factor": ("low_freq_factor", 1.0),
    "NTK_by_parts_high_freq_factor": ("high_freq_factor", 4.0),
    "NTK_by_parts_factor": ("factor", 8.0),
    "NTK_original_ctx_len": ("original_max_position_embeddings", 8192),  # as TransformerLens 3 has it
}
_ROTARY_BASE = 10000  # TransformerLens' documented default, for a config that only says "rotary"

_ROPE_FLAGS = frozenset(_LLAMA3_FLAGS) | {
    "positional_embedding_type",
    "rotary_base",
    "rotary_dim",
    "rotary_adjacent_pairs",
    "use_NTK_by_parts_rope",
}
_HOMES: dict[str, frozenset[str]] = {
    "rope": _ROPE_FLAGS,
    "qk_norm": frozenset({"use_qk_norm", "qk_norm_after_rope"}),
    "layer_types": frozenset({"attn_types", "use_local_attn"}),
    "block_norms": frozenset({"use_normalization_before_and_after"}),
    "normalization_type": frozenset({"uses_rms_norm", "final_rms"}),
}
FLAGS = frozenset().union(*_HOMES.values())

_LOCAL_NAMES = {"full_attention": "global", "sliding_attention": "local"}
_LAYER_TYPES = {local: layer_type for layer_type, local in _LOCAL_NAMES.items()}


def apply_flags(settings: Settings, flags: Mapping[str, Any], fixed: set[str]) -> None:
    """Write flags into the nested settings, in place.

    Args:
        settings: The nested form: rope, qk_norm, layer_types, block_norms, normalization_type, ….
        flags: TransformerLens' names and values.
        fixed: Nested settings that were given themselves; flags are only checked against those.

    Raises:
        ConfigError: A flag's value is wrong, or a rotary flag is set where rope differs by layer type.
    """
    writers = {
        "rope": _write_rope,
        "qk_norm": _write_qk_norm,
        "layer_types": _write_layer_types,
        "block_norms": _write_block_norms,
        "normalization_type": _write_normalization,
    }
    for home, write in writers.items():
        given = {name: flags[name] for name in sorted(_HOMES[home] & flags.keys())}
        if given and home not in fixed:
            try:
                write(settings, given)
            except ConfigError as error:
                said = ", ".join(f"{name}={value!r}" for name, value in given.items())
                raise ConfigError(f"{said}: {error}") from error


def check_flags(flags: Mapping[str, Any], settings: Settings) -> None:
    """Raise unless each flag given says what the nested form says.

    Raises:
        ConfigError: Naming the flag, its value, the nested setting and what it reads.
    """
    now = read_flags(settings)
    for name, value in flags.items():
        if name == "attn_types" and value is not None and now[name] is None:
            now[name] = ["global"] * settings["n_layers"]
        if value is not None and value != now[name] and not (name == "attn_types" and list(value) == now[name]):
            home = next(home for home, names in _HOMES.items() if name in names)
            raise ConfigError(
                f"{name}={value!r} contradicts {home}={settings[home]!r}, which makes it {now[name]!r}; "
                f"drop {name} or change {home}"
            )


def read_flags(settings: Settings) -> Settings:
    """Every flag as the nested form has it.

    Args:
        settings: The nested form.

    Returns:
        Flag values; where rope differs by layer type, those of full attention (or the first that rotates).
    """
    rope = _representative(settings["rope"])
    qk_norm: QKNormConfig | None = settings["qk_norm"]
    layer_types = settings["layer_types"]
    llama3 = rope is not None and rope.rope_type == "llama3"
    rms = settings["normalization_type"] == "RMS"
    flags: Settings = {
        name: getattr(rope, field) if llama3 else default for name, (field, default) in _LLAMA3_FLAGS.items()
    }
    return flags | {
        "positional_embedding_type": _embedding_type(settings),
        "rotary_base": None if rope is None else rope.rope_theta,
        "rotary_dim": None if rope is None else rope.width(settings["d_head"]),
        "rotary_adjacent_pairs": bool(rope and rope.interleaved),
        "use_NTK_by_parts_rope": llama3,
        "use_qk_norm": qk_norm is not None,
        "qk_norm_after_rope": qk_norm is not None and qk_norm.position == "after_rope",
        "attn_types": None if layer_types is None else [_LOCAL_NAMES[name] for name in layer_types],
        "use_local_attn": layer_types is not None and "sliding_attention" in layer_types,
        "use_normalization_before_and_after": settings["block_norms"] == "sandwich",
        "uses_rms_norm": rms,
        "final_rms": rms,
    }


def said_elsewhere(name: str) -> str | None:
    """Where to say what TransformerLens 3's ``use_yarn_rope``, ``yarn_factor``, … say, which have no reading here."""
    if "yarn" not in name.lower():
        return None
    return (
        ": YaRN is rope=RopeConfig('yarn', factor=…, original_max_position_embeddings=…, beta_fast=…, beta_slow=…, "
        "attention_factor=…)"
    )


def _representative(rope: RopeConfig | Mapping[str, RopeConfig | None] | None) -> RopeConfig | None:
    """The one schedule that flags read."""
    if not isinstance(rope, Mapping):
        return rope
    return rope.get("full_attention") or next((each for each in rope.values() if each is not None), None)


def _embedding_type(settings: Settings) -> str:
    """positional_embedding_type: rotary, alibi or none."""
    if _representative(settings["rope"]) is not None:
        return "rotary"
    return "none" if settings["alibi_slopes"] is None else "alibi"


def _write_rope(settings: Settings, flags: Settings) -> None:
    """Build or change the one RopeConfig."""
    rope = settings["rope"]
    if isinstance(rope, Mapping):
        raise ConfigError(
            f"read-only, because rope differs by layer type ({', '.join(rope)}); assign a mapping to rope instead"
        )
    kind = flags.get("positional_embedding_type")
    if kind in ("none", "alibi"):
        settings["rope"] = None
        return
    adjacent, by_parts = flags.get("rotary_adjacent_pairs"), flags.get("use_NTK_by_parts_rope")
    sized = "rotary_base" in flags or flags.get("rotary_dim") is not None
    if rope is None and not (kind == "rotary" or sized or adjacent or by_parts):
        return
    changes = _llama3_changes(rope, flags)
    if "rotary_base" in flags:
        changes["rope_theta"] = flags["rotary_base"]
    if "rotary_dim" in flags:
        width = flags["rotary_dim"]
        changes |= {
            "rotary_dim": None if width == settings["d_head"] else width,
            "partial_rotary_factor": None,
        }
    if adjacent is not None:
        changes["interleaved"] = bool(adjacent) or None
    settings["rope"] = dataclasses.replace(rope or RopeConfig(rope_theta=_ROTARY_BASE), **changes)


def _llama3_changes(rope: RopeConfig | None, flags: Settings) -> Settings:
    """The changes that TransformerLens' NTK-by-parts flags make: its name for llama3."""
    was = rope is not None and rope.rope_type == "llama3"
    if not flags.get("use_NTK_by_parts_rope", was):
        fields = (field for field, _ in _LLAMA3_FLAGS.values())
        return {"rope_type": "default"} | dict.fromkeys(fields) if was else {}
    return {"rope_type": "llama3"} | {
        field: flags.get(name, getattr(rope, field) if was else default)
        for name, (field, default) in _LLAMA3_FLAGS.items()
    }


def _write_qk_norm(settings: Settings, flags: Settings) -> None:
    """Add, drop or move the QK-norm; a new one is TransformerLens': RMS per head with the model's eps."""
    qk_norm: QKNormConfig | None = settings["qk_norm"]
    use = flags.get("use_qk_norm", qk_norm is not None)
    if not use:
        settings["qk_norm"] = None
        return
    qk_norm = qk_norm or QKNormConfig(eps=settings["eps"])
    if "qk_norm_after_rope" in flags:
        position = "after_rope" if flags["qk_norm_after_rope"] else "before_rope"
        qk_norm = dataclasses.replace(qk_norm, position=position)
    settings["qk_norm"] = qk_norm


def _write_layer_types(settings: Settings, flags: Settings) -> None:
    """Turn "global" and "local" into layer types."""
    if flags.get("attn_types") is not None:
        unknown = [name for name in flags["attn_types"] if name not in _LAYER_TYPES]
        if unknown:
            raise ConfigError(f"attn_types has {unknown[0]!r}; allowed are 'global' and 'local'")
        settings["layer_types"] = tuple(_LAYER_TYPES[name] for name in flags["attn_types"])
    elif "use_local_attn" in flags:
        kind = "sliding_attention" if flags["use_local_attn"] else "full_attention"
        settings["layer_types"] = (kind,) * settings["n_layers"]


def _write_block_norms(settings: Settings, flags: Settings) -> None:
    """Before and after is the sandwich."""
    settings["block_norms"] = "sandwich" if flags["use_normalization_before_and_after"] else "pre"


def _write_normalization(settings: Settings, flags: Settings) -> None:
    """RMSNorm or LayerNorm."""
    settings["normalization_type"] = "RMS" if any(flags.values()) else "LN"
