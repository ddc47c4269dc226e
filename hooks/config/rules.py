"""The rules that the settings of a HookedTransformerConfig keep, alone and together."""

import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from hooks.checks import number, shown
from hooks.config.qk_norm import QKNormConfig
from hooks.config.rope import RopeConfig
from hooks.errors import ConfigError

LAYER_TYPES = ("full_attention", "sliding_attention")

_CHOICES = {
    "clip_position": ("projection", "norm", "rope"),
    "block_norms": ("pre", "post", "sandwich"),
    "normalization_type": ("RMS", "LN"),
    "act_fn": ("silu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "relu2", "xielu"),
    "attention_dir": ("causal", "bidirectional"),
    "init_mode": ("gpt2",),  # normal weights of std initializer_range
}
_AT_LEAST_ONE = (
    "d_model",
    "d_head",
    "n_layers",
    "n_ctx",
    "n_heads",
    "d_mlp",
    "n_key_value_heads",
    "window_size",
    "d_vocab",
)
MOST_LAYERS = 10_000
# More than any model has by orders of magnitude, and so little that a product of two of them is a size.
_AT_MOST = {"n_layers": MOST_LAYERS, "d_vocab": 2**31, "n_ctx": 2**53, "window_size": 2**53}
_WIDEST = 2**24
_LARGEST_MATRIX = 2**40  # elements
_ABOVE_ZERO = ("clip_qkv", "embed_scale", "residual_scale", "logit_scale", "eps")
_ABOVE_ZERO_OR_OFF = ("attn_scale", "attn_scores_soft_cap", "output_logits_soft_cap")
_BOOLEANS = (
    "norm_scale_before_cast",
    "norm_affine",
    "norm_bias",
    "parallel_shared_norm",
    "attn_bias",
    "attn_out_bias",
    "mlp_bias",
    "unembed_bias",
    "rope_in_float32",
    "round_cos_sin",
    "learned_sinks",
    "attn_only",
    "gated_mlp",
    "tie_word_embeddings",
    "parallel_attn_mlp",
    "rmsnorm_uses_offset",
    "use_attn_scale",
    "use_attn_in",
    "use_attn_result",
    "use_hook_mlp_in",
    "use_split_qkv_input",
)
# Fields of the parent class that would change the model in a way that this one does not implement.
_NOT_BUILT = (
    "layer_norm_folding",
    "num_experts",
    "experts_per_token",
    "scale_attn_by_inverse_layer_idx",
    "post_embedding_ln",
    "rotary_interleaved_cos_sin",
    "per_layer_head_dim",
    "per_layer_num_key_value_heads",
    "relative_attention_max_distance",
    "relative_attention_num_buckets",
    "decoder_start_token_id",
    "scale_embedding",
    "load_in_4bit",
    "is_audio_model",
    "is_visual_model",
    "is_stateful",
    "is_multimodal",
    "vision_hidden_size",
    "vision_num_layers",
    "vision_num_heads",
    "mm_tokens_per_image",
    "n_devices",
    "use_hook_tokens",
)
_INSTEAD = {
    "n_devices": "the model lives on one device: model.to(device)",
    "use_hook_tokens": "edit the tokens before they go in, or blocks.0.hook_resid_pre",
}


def check_each(settings: Mapping[str, Any]) -> None:
    """Raise for the first setting that is wrong whatever the others are.

    Args:
        settings: Every setting as given; n_heads=-1 stands for d_model / d_head.

    Raises:
        ConfigError: Naming the setting, its value and what is allowed.
    """
    for name, allowed in _CHOICES.items():
        if not isinstance(settings[name], str) or settings[name] not in allowed:
            raise ConfigError(f"{name}={shown(settings[name])} must be one of {', '.join(allowed)}")
    for name in _AT_LEAST_ONE:
        value = settings[name]
        unset = name in ("n_key_value_heads", "window_size", "d_mlp") and value is None
        if unset or (name in ("n_heads", "d_vocab") and type(value) is int and value == -1):
            continue
        most = _AT_MOST.get(name, _WIDEST)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ConfigError(f"{name}={shown(value)} must be a whole number of at least 1, and at most {most:,}")
    for name in _ABOVE_ZERO:
        if settings[name] is not None and not _is_positive(settings[name]):
            raise ConfigError(f"{name}={shown(settings[name])} must be a finite number above 0")
    for name in _ABOVE_ZERO_OR_OFF:
        off = isinstance(settings[name], int | float) and settings[name] == -1
        if not off and not _is_positive(settings[name]):
            raise ConfigError(f"{name}={shown(settings[name])} must be a finite number above 0, or -1.0 for none")
    if number("initializer_range", settings["initializer_range"], error=ConfigError) != -1:  # −1 is GPT-2's
        number("initializer_range", settings["initializer_range"], at_least=0, error=ConfigError)
    for name in ("layer_types", "nope_layers", "alibi_slopes"):
        unset = settings[name] is None and name != "nope_layers"
        if not unset and not isinstance(settings[name], list | tuple | range):
            raise ConfigError(f"{name}={shown(settings[name])} must be a list or a tuple")
    if any(isinstance(layer, bool) or not isinstance(layer, int) for layer in settings["nope_layers"] or ()):
        raise ConfigError(f"nope_layers={shown(settings['nope_layers'])} must be whole numbers")
    if any(isinstance(slope, bool) or not isinstance(slope, int | float) for slope in settings["alibi_slopes"] or ()):
        raise ConfigError(f"alibi_slopes={shown(settings['alibi_slopes'])} must be numbers")
    for name in _BOOLEANS:
        if not isinstance(settings[name], bool):
            raise ConfigError(f"{name}={shown(settings[name])} must be True or False")


def _is_positive(value: Any) -> bool:
    """Whether a value is a finite number above 0."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


def check_together(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raise for the first rule between settings that they break.

    Args:
        settings: Every setting in its stored form.
        defaults: Their defaults.

    Raises:
        ConfigError: Naming the settings, their values and what is allowed.
    """
    for name in _NOT_BUILT:
        if settings[name] != defaults[name]:
            refuse(name, settings[name])
    _check_heads(settings)
    _check_layers(settings)
    _check_rope(settings)
    _check_norms(settings)


def refuse(name: str, value: Any) -> NoReturn:
    """Raise for a setting that would change nothing here, or what is not built."""
    instead = f"; {_INSTEAD[name]}" if name in _INSTEAD else ""
    raise ConfigError(f"{name}={shown(value)} is not implemented by HookedTransformer; leave it out{instead}")


def _check_heads(settings: Mapping[str, Any]) -> None:
    """Rules on heads and vocabulary."""
    heads, kv_heads = settings["n_heads"], settings["n_key_value_heads"]
    for name, width in (("n_heads * d_head", heads * settings["d_head"]), ("d_vocab", settings["d_vocab"])):
        if settings["d_model"] * width > _LARGEST_MATRIX:
            raise ConfigError(
                f"d_model={settings['d_model']:,} and {name}={width:,} make a matrix of more than 2^40 elements"
            )
    if kv_heads is not None and heads % kv_heads:
        raise ConfigError(f"n_heads={heads} must be a multiple of n_key_value_heads={kv_heads}")
    if settings["d_vocab_out"] not in (-1, settings["d_vocab"]):
        raise ConfigError(f"d_vocab_out={settings['d_vocab_out']} must be d_vocab={settings['d_vocab']} or left out")
    slopes = settings["alibi_slopes"]
    if slopes is not None and len(slopes) != heads:
        raise ConfigError(f"alibi_slopes has {len(slopes)} values; n_heads={heads} needs one for each head")


def _check_layers(settings: Mapping[str, Any]) -> None:
    """Rules on layer_types, window_size and nope_layers."""
    n_layers, layer_types = settings["n_layers"], settings["layer_types"]
    if layer_types is not None:
        unknown = [name for name in layer_types if not isinstance(name, str) or name not in LAYER_TYPES]
        if unknown:
            raise ConfigError(f"layer_types has {shown(unknown[0])}; allowed are {', '.join(LAYER_TYPES)}")
        if len(layer_types) != n_layers:
            raise ConfigError(
                f"layer_types has {len(layer_types)} values; n_layers={n_layers} needs one for each layer"
            )
        if "sliding_attention" in layer_types and settings["window_size"] is None:
            raise ConfigError("layer_types has 'sliding_attention', which needs window_size")
    nope = settings["nope_layers"]
    if any(layer not in range(n_layers) for layer in nope) or len(set(nope)) != len(nope):
        raise ConfigError(f"nope_layers={shown(nope)} must be different layers from 0 to {n_layers - 1}")


def _check_rope(settings: Mapping[str, Any]) -> None:
    """Rules on rope: its type, its layer types, and each schedule against d_head."""
    rope = settings["rope"]
    if not isinstance(rope, Mapping):
        ropes = {"rope": rope}
    else:
        unknown = [name for name in rope if name not in LAYER_TYPES]
        if unknown or not rope:
            raise ConfigError(f"rope has the layer types {list(rope)!r}; allowed are {', '.join(LAYER_TYPES)}")
        missing = set(settings["layer_types"] or ("full_attention",)) - set(rope)
        if missing:
            raise ConfigError(f"rope has no entry for {', '.join(sorted(missing))}; None there means no rotation")
        ropes = {f"rope[{name!r}]": each for name, each in rope.items()}
    for name, each in ropes.items():
        if each is None:
            continue
        if not isinstance(each, RopeConfig):
            raise ConfigError(f"{name}={shown(each)} must be a RopeConfig or None (for a dict, RopeConfig.from_dict)")
        each.check_complete(settings["d_head"])
    if all(each is None for each in ropes.values()) and settings["nope_layers"]:
        raise ConfigError(
            f"nope_layers={settings['nope_layers']!r} exempts layers from a rotation that rope=None lacks"
        )


def _check_norms(settings: Mapping[str, Any]) -> None:
    """Rules on norms, clipping and positions."""
    if settings["qk_norm"] is not None and not isinstance(settings["qk_norm"], QKNormConfig):
        raise ConfigError(f"qk_norm={shown(settings['qk_norm'])} must be a QKNormConfig or None")
    if settings["clip_qkv"] is not None and settings["clip_position"] == "norm" and settings["qk_norm"] is None:
        raise ConfigError("clip_position='norm' needs qk_norm; without one use 'projection'")
    if settings["norm_bias"] and (settings["normalization_type"] != "LN" or not settings["norm_affine"]):
        raise ConfigError("norm_bias=True needs normalization_type='LN' and norm_affine=True")
    if settings["rmsnorm_uses_offset"] and not settings["norm_affine"]:
        raise ConfigError("rmsnorm_uses_offset=True needs norm_affine=True: without a gain there is nothing to offset")
    if settings["parallel_shared_norm"] and not (settings["parallel_attn_mlp"] and settings["block_norms"] == "pre"):
        raise ConfigError("parallel_shared_norm=True needs parallel_attn_mlp=True and block_norms='pre'")
    if settings["round_cos_sin"] and not settings["rope_in_float32"]:
        raise ConfigError("round_cos_sin=True needs rope_in_float32=True; without it they are rounded anyway")
