"""Model families, one row each, as data (`hooks.family` says what a row means).

Facts are those of transformers 5.23.0: for each row ``configuration_*.py`` and ``modeling_*.py`` of its model_type.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hooks.config.transformer import HookedTransformerConfig
from hooks.errors import ConfigError, UnknownModelError
from hooks.families import layer_norm, rms, rms_variants
from hooks.families.family import Constant, Family, GGUFLayout, Read
from hooks.families.limits import LIMITS
from hooks.families.readers import (
    ATTENTION_BIAS,
    DEFAULTS,
    POST_NORMS,
    PRE_NORMS,
    QK_NORMS,
    RMS,
    RMS_SIZES,
    SANDWICH_NORMS,
    activation,
    full_every,
    rms_qk_norm,
    sliding_from,
    switched_window,
    weights,
)
from hooks.families.rotation import RopeReader

__all__ = ["FAMILIES", "LIMITS", "config_from_hf", "family_of"]

_SETTINGS: dict[str, Read] = {**RMS_SIZES, **ATTENTION_BIAS}
_DEFAULTS: dict[str, Any] = {**DEFAULTS, "rms_norm_eps": 1e-6, "attention_bias": False}

LLAMA = Family(
    model_type="llama",
    source="configuration_llama.py",
    fixed=RMS,
    settings={**_SETTINGS, "mlp_bias": "mlp_bias"},
    defaults={**_DEFAULTS, "mlp_bias": False},
    only={"rope_interleaved": False},
    ignored=frozenset({"is_llama_config"}),
    weights=weights(PRE_NORMS),
    gguf=GGUFLayout("llama", interleaved=True),
)
QWEN3 = Family(
    model_type="qwen3",
    source="configuration_qwen3.py",
    fixed=RMS,
    settings={
        **_SETTINGS,
        "d_head": "head_dim",
        "qk_norm": rms_qk_norm(),
        "window_size": switched_window,
        "layer_types": sliding_from,
    },
    defaults={
        **_DEFAULTS,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "use_sliding_window": False,
        "max_window_layers": 28,
        "sliding_window": 4096,
    },
    weights=weights(PRE_NORMS, QK_NORMS),
    gguf=GGUFLayout("qwen3"),
)
OLMO2 = Family(
    model_type="olmo2",
    source="configuration_olmo2.py",
    fixed={**RMS, "block_norms": "post", "norm_scale_before_cast": True, "rope_in_float32": True},
    settings={**_SETTINGS, "qk_norm": rms_qk_norm(scope="full", scale_before_cast=True)},
    defaults={**_DEFAULTS, "rms_norm_eps": 1e-5},
    weights=weights(POST_NORMS, QK_NORMS),
    gguf=GGUFLayout("olmo2"),
)
_LLAMA_CPP = "llama.cpp, src/llama-model.cpp, LLM_ARCH_GEMMA3; also transformers' configuration_gemma3.py"
GEMMA3_TEXT = Family(
    model_type="gemma3_text",
    source="configuration_gemma3.py",
    fixed={
        **RMS,
        "block_norms": "sandwich",
        "rmsnorm_uses_offset": True,
        "norm_scale_before_cast": True,
    },
    settings={
        **_SETTINGS,
        "d_head": "head_dim",
        "act_fn": activation("hidden_activation"),
        "qk_norm": rms_qk_norm(unit_offset=True, scale_before_cast=True),
        "attn_scale": lambda hf: math.sqrt(hf["query_pre_attn_scalar"]),
        "embed_scale": lambda hf: hf["hidden_size"] ** 0.5,
        "window_size": "sliding_window",
        "layer_types": full_every("sliding_window_pattern", "_sliding_window_pattern"),
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
    weights=weights(SANDWICH_NORMS, QK_NORMS),
    rope=RopeReader(local_theta="rope_local_base_freq"),
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
    inner_type="gemma3_text",
    ignored=GEMMA3_TEXT.ignored
    | {"vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index"},
    prefixes=("model.language_model.", "language_model.model.", "model."),
    ignored_weights=(
        "model.vision_tower.*",
        "vision_tower.*",
        "model.multi_modal_projector.*",
        "multi_modal_projector.*",
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
    fixed=RMS,
    settings={**_SETTINGS, "qk_norm": rms_qk_norm(position="after_rope")},
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
    weights=weights({"attn.q_norm": "self_attn.query_layernorm", "attn.k_norm": "self_attn.key_layernorm"}, PRE_NORMS),
    rope=RopeReader(alpha=True),
    gguf=GGUFLayout("hunyuan-dense"),
)

FAMILIES: dict[str, Family] = {
    row.model_type: row
    for row in (
        *(LLAMA, QWEN3, OLMO2, GEMMA3_TEXT, GEMMA3, HUNYUAN_V1_DENSE),
        *rms.ROWS,
        *rms_variants.ROWS,
        *layer_norm.ROWS,
    )
}


def family_of(hf: Mapping[str, Any]) -> Family:
    """The row for a parsed config.json.

    Raises:
        ConfigError: the config names no model_type.
        UnknownModelError: the family has no row; for those in `LIMITS`, why.
    """
    model_type = hf.get("model_type")
    if not isinstance(model_type, str):
        raise ConfigError(f"model_type={model_type!r} in the config; it must be one of {', '.join(FAMILIES)}")
    if model_type in LIMITS:
        raise UnknownModelError(f"{model_type} has no row here: {LIMITS[model_type]}")
    if model_type not in FAMILIES:
        near = difflib.get_close_matches(model_type, FAMILIES, n=1)
        hint = f" (nearest: {near[0]})" if near else ""
        raise UnknownModelError(
            f"no model family {model_type!r} here{hint}; known: {', '.join(FAMILIES)} (rows of hooks.families.table). "
            "HookedTransformer.attach(model) hooks a live transformers model of most others"
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
        UnknownModelError: the family has no row; for those in `LIMITS`, why.
    """
    return family_of(hf).config(hf)
