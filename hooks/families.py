"""Model families, one row each, as data (`hooks.family` says what a row means).

Facts are those of transformers 5.23.0: for each row ``configuration_*.py`` and ``modeling_*.py`` of its model_type.
"""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from hooks.config import HookedTransformerConfig, QKNormConfig
from hooks.errors import ConfigError, UnknownModelError
from hooks.family import Constant, Family, GGUFLayout, Part, Read, Settings

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
}


def _activation(key: str) -> Callable[[Settings], str]:
    """The MLP's activation, by a name that both sides know."""

    def read(hf: Settings) -> str:
        if hf[key] not in _ACTIVATIONS:
            raise ConfigError(f"{key}={hf[key]!r} is not supported; allowed are {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[hf[key]]

    return read


def _head_dim(hf: Settings) -> int:
    """head_dim, or the model's width divided among its heads."""
    return hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]


def _qk_norm(**fixed: Any) -> Callable[[Settings], QKNormConfig]:
    """A QK-norm of the family's kind with the model's own eps."""
    return lambda hf: QKNormConfig(eps=hf["rms_norm_eps"], **fixed)


def _qwen3_window(hf: Settings) -> int | None:
    """The window, which counts only where use_sliding_window is set."""
    window = hf.get("sliding_window")
    return window if hf["use_sliding_window"] else None


def _qwen3_layers(hf: Settings) -> tuple[str, ...]:
    """layer_types, or sliding from max_window_layers on."""
    first = hf["max_window_layers"] if _qwen3_window(hf) is not None else hf["num_hidden_layers"]
    hf.read.add("max_window_layers")
    kinds = ("sliding_attention" if i >= first else "full_attention" for i in range(hf["num_hidden_layers"]))
    return tuple(hf.get("layer_types") or kinds)


def _gemma3_layers(hf: Settings) -> tuple[str, ...]:
    """layer_types, or every sliding_window_pattern-th layer full."""
    hf.read.update({"sliding_window_pattern", "_sliding_window_pattern"})
    if hf.get("layer_types"):
        return tuple(hf["layer_types"])
    every = hf.get("sliding_window_pattern") or hf["_sliding_window_pattern"]
    return tuple("sliding_attention" if (i + 1) % every else "full_attention" for i in range(hf["num_hidden_layers"]))


def _weights(**inside: str) -> dict[str, str | Part]:
    """Names of a Llama-shaped decoder; `inside` names the norms of a layer (ours with ``__`` for the dot)."""
    names = {f"attn.{t}_proj": f"self_attn.{t}_proj" for t in "qkvo"}
    names |= {f"mlp.{t}_proj": f"mlp.{t}_proj" for t in ("gate", "up", "down")}
    names |= {ours.replace("__", "."): theirs for ours, theirs in inside.items()}
    layer = {
        f"blocks.{{i}}.{ours}.{leaf}": f"{{p}}layers.{{i}}.{theirs}.{leaf}"
        for ours, theirs in names.items()
        for leaf in ("weight", "bias")
    }
    ends = {
        "embed.weight": "{p}embed_tokens.weight",
        "ln_final.weight": "{p}norm.weight",
        "unembed.weight": "lm_head.weight",
    }
    return {**ends, **layer}


_SETTINGS: dict[str, Read] = {
    "d_model": "hidden_size",
    "d_head": _head_dim,
    "d_mlp": "intermediate_size",
    "d_vocab": "vocab_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_key_value_heads": lambda hf: hf.get("num_key_value_heads") or hf["num_attention_heads"],
    "n_ctx": "max_position_embeddings",
    "act_fn": _activation("hidden_act"),
    "eps": "rms_norm_eps",
    "attn_bias": "attention_bias",
    "attn_out_bias": "attention_bias",
    "tie_word_embeddings": "tie_word_embeddings",
}
_DEFAULTS: dict[str, Any] = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
}
_DECODER: dict[str, Any] = {"normalization_type": "RMS", "gated_mlp": True}

LLAMA = Family(
    model_type="llama",
    source="configuration_llama.py",
    fixed=_DECODER,
    settings={**_SETTINGS, "mlp_bias": "mlp_bias"},
    defaults={**_DEFAULTS, "mlp_bias": False},
    only={"rope_interleaved": False},
    ignored=frozenset({"is_llama_config"}),
    weights=_weights(ln1="input_layernorm", ln2="post_attention_layernorm"),
    gguf=GGUFLayout("llama", interleaved=True),
)
QWEN3 = Family(
    model_type="qwen3",
    source="configuration_qwen3.py",
    fixed=_DECODER,
    settings={
        **_SETTINGS,
        "d_head": "head_dim",
        "qk_norm": _qk_norm(),
        "window_size": _qwen3_window,
        "layer_types": _qwen3_layers,
    },
    defaults={**_DEFAULTS, "head_dim": 128, "use_sliding_window": False, "max_window_layers": 28},
    weights=_weights(
        ln1="input_layernorm",
        ln2="post_attention_layernorm",
        attn__q_norm="self_attn.q_norm",
        attn__k_norm="self_attn.k_norm",
    ),
    gguf=GGUFLayout("qwen3"),
)
OLMO2 = Family(
    model_type="olmo2",
    source="configuration_olmo2.py",
    fixed={**_DECODER, "block_norms": "post", "norm_scale_before_cast": True, "rope_in_float32": True},
    settings={**_SETTINGS, "qk_norm": _qk_norm(scope="full", scale_before_cast=True)},
    defaults={**_DEFAULTS, "rms_norm_eps": 1e-5},
    weights=_weights(
        ln1_post="post_attention_layernorm",
        ln2_post="post_feedforward_layernorm",
        attn__q_norm="self_attn.q_norm",
        attn__k_norm="self_attn.k_norm",
    ),
    gguf=GGUFLayout("olmo2"),
)
_LLAMA_CPP = "llama.cpp, src/llama-model.cpp, LLM_ARCH_GEMMA3; also transformers' configuration_gemma3.py"
GEMMA3_TEXT = Family(
    model_type="gemma3_text",
    source="configuration_gemma3.py",
    fixed={
        **_DECODER,
        "block_norms": "sandwich",
        "rmsnorm_uses_offset": True,
        "norm_scale_before_cast": True,
    },
    settings={
        **_SETTINGS,
        "d_head": "head_dim",
        "act_fn": _activation("hidden_activation"),
        "qk_norm": _qk_norm(unit_offset=True, scale_before_cast=True),
        "attn_scale": lambda hf: math.sqrt(hf["query_pre_attn_scalar"]),
        "embed_scale": lambda hf: hf["hidden_size"] ** 0.5,
        "window_size": "sliding_window",
        "layer_types": _gemma3_layers,
        "output_logits_soft_cap": lambda hf: hf.get("final_logit_softcapping", -1.0),
    },
    defaults={
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "_sliding_window_pattern": 6,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
    },
    only={"use_bidirectional_attention": False},
    # attn_logit_softcapping is stored by Gemma 3 and reaches no score: modeling_gemma3.py passes no softcap on.
    ignored=frozenset({"attn_logit_softcapping", "hidden_act", "rope_local_base_freq"}),
    weights=_weights(
        ln1="input_layernorm",
        ln1_post="post_attention_layernorm",
        ln2="pre_feedforward_layernorm",
        ln2_post="post_feedforward_layernorm",
        attn__q_norm="self_attn.q_norm",
        attn__k_norm="self_attn.k_norm",
    ),
    gguf=GGUFLayout(
        "gemma3",
        norm_plus_one=True,
        constants={
            "rope_local_base_freq": Constant(10_000.0, _LLAMA_CPP),
            "_sliding_window_pattern": Constant(6, _LLAMA_CPP),
            # The 27B model, alone with 62 layers, divides by its width per head instead of by head_dim.
            "query_pre_attn_scalar": Constant(
                lambda hf: (
                    hf["hidden_size"] // hf["num_attention_heads"] if hf["num_hidden_layers"] == 62 else hf["head_dim"]
                ),
                _LLAMA_CPP,
            ),
        },
    ),
)
# The language model inside the multimodal checkpoints; images are not read.
GEMMA3 = replace(
    GEMMA3_TEXT,
    model_type="gemma3",
    nested="text_config",
    ignored=GEMMA3_TEXT.ignored
    | {"vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index"},
    prefixes=("model.language_model.", "language_model.model.", "model."),
    ignored_weights=(
        "model.vision_tower.",
        "vision_tower.",
        "model.multi_modal_projector.",
        "multi_modal_projector.",
    ),
    gguf=None,
)
_HUNYUAN_IGNORED = """
    attention_head_dim cla_share_factor class_num dense_list eod_token_id im_end_id im_newline_id im_start_id
    mask_init_id org_vocab_size pad_id pool_type text_end_id text_start_id
"""
HUNYUAN_V1_DENSE = Family(
    model_type="hunyuan_v1_dense",
    source="configuration_hunyuan_v1_dense.py",
    fixed=_DECODER,
    settings={**_SETTINGS, "qk_norm": _qk_norm(position="after_rope")},
    defaults={**_DEFAULTS, "rms_norm_eps": 1e-5},
    only={
        "use_qk_norm": True,
        "use_cla": False,
        "use_rotary_pos_emb": True,
        "mlp_bias": False,
        "norm_type": "rms",
        "add_classification_head": False,
    },
    ignored=frozenset(_HUNYUAN_IGNORED.split()),
    weights=_weights(
        ln1="input_layernorm",
        ln2="post_attention_layernorm",
        attn__q_norm="self_attn.query_layernorm",
        attn__k_norm="self_attn.key_layernorm",
    ),
    gguf=GGUFLayout("hunyuan-dense"),
)

FAMILIES: dict[str, Family] = {
    row.model_type: row for row in (LLAMA, QWEN3, OLMO2, GEMMA3_TEXT, GEMMA3, HUNYUAN_V1_DENSE)
}


def family_of(hf: Mapping[str, Any]) -> Family:
    """The row for a parsed config.json.

    Raises:
        ConfigError: the config names no model_type.
        UnknownModelError: the family has no row.
    """
    model_type = hf.get("model_type")
    if not isinstance(model_type, str):
        raise ConfigError(f"model_type={model_type!r} in the config; it must be one of {', '.join(FAMILIES)}")
    if model_type not in FAMILIES:
        near = difflib.get_close_matches(model_type, FAMILIES, n=1)
        hint = f" (nearest: {near[0]})" if near else ""
        raise UnknownModelError(
            f"no model family {model_type!r} here{hint}; known: {', '.join(FAMILIES)} (hooks/families.py has the rows)"
        )
    return FAMILIES[model_type]


def config_from_hf(hf: Mapping[str, Any]) -> HookedTransformerConfig:
    """Our config for a parsed config.json, or for ``config.to_dict()`` of a live transformers model.

    Args:
        hf: the settings under transformers' names, ``model_type`` included.

    Returns:
        The config; what the file left to transformers' defaults stands in its ``provenance``.

    Raises:
        ConfigError: a key that the family's row does not know, a missing one, or a value that it cannot honour.
        UnknownModelError: the family has no row.
    """
    return family_of(hf).config(hf)
