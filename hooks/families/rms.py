"""Families of dense decoders with RMSNorm, one row each; `hooks.families.table` has the first ones and the table."""

import math
from typing import Any

from hooks.families.family import Constant, Family, GGUFLayout
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
    optional,
    rms_qk_norm,
    sliding_from,
    stacked_gate_up,
    stacked_qkv,
    switched_window,
    weights,
)
from hooks.families.rotation import RopeReader
from hooks.families.settings import Settings
from hooks.modules.activations import XIELU_BETA, XIELU_EPS


def _rotating(hf: Settings) -> list[bool]:
    """SmolLM3's no_rope_layers, where 1 says that a layer does rotate; or all but every n-th one."""
    n_layers, every = hf["num_hidden_layers"], hf["no_rope_layer_interval"]
    listed = hf.optional("no_rope_layers")
    if listed is None:
        return [(i + 1) % every != 0 for i in range(n_layers)]
    return [bool(rotates) for rotates, _ in zip(listed, range(n_layers), strict=True)]


def _nope_layers(hf: Settings) -> tuple[int, ...]:
    """Layers without rotation."""
    return tuple(i for i, rotates in enumerate(_rotating(hf)) if not rotates)


def _sliding_where_nope(hf: Settings) -> tuple[str, ...]:
    """layer_types, or sliding where nothing rotates, if there is a window."""
    slides = switched_window(hf) is not None
    kinds = ("full_attention" if rotates or not slides else "sliding_attention" for rotates in _rotating(hf))
    return tuple(hf.optional("layer_types") or kinds)


_DEFAULTS: dict[str, Any] = {**DEFAULTS, "rms_norm_eps": 1e-6}

MISTRAL = Family(
    model_type="mistral",
    source="configuration_mistral.py",
    fixed=RMS,
    settings={**RMS_SIZES, "window_size": optional("sliding_window")},
    defaults={**_DEFAULTS, "num_key_value_heads": 8, "sliding_window": 4096},
    weights=weights(PRE_NORMS),
)
QWEN2 = Family(
    model_type="qwen2",
    source="configuration_qwen2.py",
    fixed={**RMS, "attn_bias": True},
    settings={**RMS_SIZES, "window_size": switched_window, "layer_types": sliding_from},
    defaults={
        **_DEFAULTS,
        "num_key_value_heads": 32,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    only={"use_mrope": False},
    weights=weights(PRE_NORMS),
    gguf=GGUFLayout("qwen2"),
)
OLMO3 = Family(
    model_type="olmo3",
    source="configuration_olmo3.py",
    fixed={**RMS, "block_norms": "post", "norm_scale_before_cast": True, "rope_in_float32": True},
    settings={
        **RMS_SIZES,
        **ATTENTION_BIAS,
        "qk_norm": rms_qk_norm(scope="full", scale_before_cast=True),
        "window_size": optional("sliding_window"),
        "layer_types": full_every(each=4),
    },
    defaults={
        **_DEFAULTS,
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "sliding_window": 4096,
        "rope_theta": 500_000.0,
    },
    weights=weights(POST_NORMS, QK_NORMS),
    rope=RopeReader(local_theta="rope_theta"),
)
GEMMA2 = Family(
    model_type="gemma2",
    source="configuration_gemma2.py",
    fixed={**RMS, "block_norms": "sandwich", "rmsnorm_uses_offset": True, "norm_scale_before_cast": True},
    settings={
        **RMS_SIZES,
        **ATTENTION_BIAS,
        "d_head": "head_dim",
        "act_fn": activation("hidden_activation"),
        "attn_scale": lambda hf: math.sqrt(hf["query_pre_attn_scalar"]),
        "embed_scale": lambda hf: hf["hidden_size"] ** 0.5,
        "window_size": optional("sliding_window"),
        "layer_types": full_every(each=2),
        "attn_scores_soft_cap": optional("attn_logit_softcapping", -1.0),
        "output_logits_soft_cap": optional("final_logit_softcapping", -1.0),
    },
    defaults={
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "rope_theta": 10_000.0,
    },
    only={"use_bidirectional_attention": False},
    ignored=frozenset({"hidden_act", "sliding_window_size"}),
    weights=weights(SANDWICH_NORMS),
    gguf=GGUFLayout(
        "gemma2",
        norm_plus_one=True,
        constants={
            # The 27B model, alone with 46 layers, divides by its width per head instead of by head_dim.
            "query_pre_attn_scalar": Constant(
                lambda hf: (
                    hf["hidden_size"] // hf["num_attention_heads"] if hf["num_hidden_layers"] == 46 else hf["head_dim"]
                ),
                "llama.cpp, src/llama-model.cpp, LLM_ARCH_GEMMA2; also transformers' configuration_gemma2.py",
            ),
        },
    ),
)
SMOLLM3 = Family(
    model_type="smollm3",
    source="configuration_smollm3.py",
    fixed=RMS,
    settings={
        **RMS_SIZES,
        **ATTENTION_BIAS,
        "mlp_bias": "mlp_bias",
        "window_size": switched_window,
        "layer_types": _sliding_where_nope,
        "nope_layers": _nope_layers,
    },
    defaults={
        **_DEFAULTS,
        "num_key_value_heads": 4,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "no_rope_layer_interval": 4,
        "rope_theta": 2_000_000.0,
    },
    ignored=frozenset({"max_window_layers"}),
    weights=weights(PRE_NORMS),
)
PHI3 = Family(
    model_type="phi3",
    source="configuration_phi3.py",
    fixed=RMS,
    settings={**RMS_SIZES, "window_size": optional("sliding_window")},
    defaults={
        **_DEFAULTS,
        "rms_norm_eps": 1e-5,
        "partial_rotary_factor": 1.0,
        "original_max_position_embeddings": 4096,
    },
    only={
        "attention_bias": False,
        "mlp_bias": False,
        "lm_head_bias": False,
        "full_attn_mod": 1,
        "interpolate_factor": 1,
    },
    weights=weights(PRE_NORMS, stacked_qkv("self_attn.qkv_proj"), stacked_gate_up("mlp.gate_up_proj")),
    rope=RopeReader(share="partial_rotary_factor", types=("default", "longrope")),
    gguf=GGUFLayout("phi3"),
)
EXAONE4 = Family(
    model_type="exaone4",
    source="configuration_exaone4.py",
    fixed={**RMS, "block_norms": "post"},
    settings={
        **RMS_SIZES,
        "qk_norm": rms_qk_norm(),
        "window_size": optional("sliding_window"),
        "layer_types": full_every("sliding_window_pattern"),
    },
    defaults={
        **_DEFAULTS,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
    },
    weights=weights(POST_NORMS, QK_NORMS),
    rope=RopeReader(nope_on_full=True),
)
APERTUS = Family(
    model_type="apertus",
    source="configuration_apertus.py",
    fixed={**RMS, "gated_mlp": False},
    settings={
        **RMS_SIZES,
        **ATTENTION_BIAS,
        "act_fn": activation("hidden_act", "xielu"),
        "qk_norm": rms_qk_norm(),
    },
    defaults={
        "hidden_act": "xielu",
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 12_000_000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
        "rope_theta": 12_000_000.0,
    },
    only={"mlp_bias": False, "post_norm": False, "qk_norm": True},
    weights={
        **weights({"ln1": "attention_layernorm", "ln2": "feedforward_layernorm"}, QK_NORMS),
        "blocks.{i}.mlp.act.alpha_p": "{p}layers.{i}.mlp.act_fn.alpha_p",
        "blocks.{i}.mlp.act.alpha_n": "{p}layers.{i}.mlp.act_fn.alpha_n",
    },
    fixed_weights={"*.mlp.act_fn.beta": XIELU_BETA, "*.mlp.act_fn.eps": XIELU_EPS},
)
GLM4 = Family(
    model_type="glm4",
    source="configuration_glm4.py",
    fixed={**RMS, "block_norms": "sandwich"},
    settings={**RMS_SIZES, "d_head": "head_dim", "attn_bias": "attention_bias"},
    defaults={
        **_DEFAULTS,
        "rms_norm_eps": 1.5625e-07,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "attention_bias": True,
        "partial_rotary_factor": 0.5,
    },
    weights=weights(
        {"ln1_post": "post_self_attn_layernorm", "ln2_post": "post_mlp_layernorm"},
        PRE_NORMS,
        stacked_gate_up("mlp.gate_up_proj"),
    ),
    rope=RopeReader(share="partial_rotary_factor", interleaved=True),
)

ROWS = (MISTRAL, QWEN2, OLMO3, GEMMA2, SMOLLM3, PHI3, EXAONE4, APERTUS, GLM4)
