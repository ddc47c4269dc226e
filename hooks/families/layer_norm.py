"""Families of dense decoders with LayerNorm, one row each; `hooks.families.table` has the table."""

from typing import Any

from hooks.config.rope import RopeConfig
from hooks.families.family import Family
from hooks.families.readers import (
    ATTENTION_BIAS,
    DEFAULTS,
    LAYER_NORM,
    LAYER_NORM_SIZES,
    PRE_NORMS,
    QK_NORMS,
    SIZES,
    activation,
    even_heads,
    full_every,
    headwise_qkv,
    layer_qk_norm,
    norm_per_head,
    optional,
    weights,
)
from hooks.families.rotation import RopeReader
from hooks.families.settings import Settings

_GPTJ_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
_DEFAULTS: dict[str, Any] = {**DEFAULTS, "layer_norm_eps": 1e-5}
# These split q into a rotated part of a fixed width, which a proportional schedule does not have.
_NOT_PROPORTIONAL = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")

OLMO = Family(
    model_type="olmo",
    source="configuration_olmo.py",
    fixed={**LAYER_NORM, "norm_affine": False, "eps": 1e-5, "gated_mlp": True, "rope_in_float32": True},
    settings={**SIZES, **ATTENTION_BIAS, "clip_qkv": optional("clip_qkv")},
    defaults={**DEFAULTS, "attention_bias": False},
    weights=weights(),
)
STABLELM = Family(
    model_type="stablelm",
    source="configuration_stablelm.py",
    fixed={**LAYER_NORM, "norm_bias": True, "gated_mlp": True},
    settings={
        **LAYER_NORM_SIZES,
        "d_head": even_heads,
        "attn_bias": "use_qkv_bias",
        "qk_norm": layer_qk_norm("qk_layernorm", scope="per_head"),
        "parallel_attn_mlp": "use_parallel_residual",
        "parallel_shared_norm": "use_parallel_residual",
    },
    defaults={
        **_DEFAULTS,
        "num_key_value_heads": 32,
        "use_qkv_bias": False,
        "qk_layernorm": False,
        "use_parallel_residual": False,
        "partial_rotary_factor": 0.25,
    },
    weights=weights(
        {"attn.q_norm": norm_per_head("self_attn.q_layernorm"), "attn.k_norm": norm_per_head("self_attn.k_layernorm")},
        PRE_NORMS,
    ),
    rope=RopeReader(share="partial_rotary_factor", types=_NOT_PROPORTIONAL),
)
_COHERE: dict[str, Any] = {
    **LAYER_NORM,
    "gated_mlp": True,
    "parallel_attn_mlp": True,
    "parallel_shared_norm": True,
    "rope_in_float32": True,
    "round_cos_sin": True,
}
COHERE = Family(
    model_type="cohere",
    source="configuration_cohere.py",
    fixed=_COHERE,
    settings={
        **LAYER_NORM_SIZES,
        **ATTENTION_BIAS,
        "logit_scale": "logit_scale",
        "qk_norm": layer_qk_norm("use_qk_norm", scope="per_head"),
    },
    defaults={
        **_DEFAULTS,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "logit_scale": 0.0625,
        "use_qk_norm": False,
        "rope_theta": 500_000.0,
    },
    ignored=frozenset({"model_max_length"}),
    weights=weights({"ln1": "input_layernorm"}, QK_NORMS),
    rope=RopeReader(interleaved=True),
)
COHERE2 = Family(
    model_type="cohere2",
    source="configuration_cohere2.py",
    fixed=_COHERE,
    settings={
        **LAYER_NORM_SIZES,
        **ATTENTION_BIAS,
        "d_head": even_heads,
        "logit_scale": "logit_scale",
        "window_size": optional("sliding_window"),
        "layer_types": full_every("sliding_window_pattern", saved="_sliding_window_pattern"),
    },
    defaults={
        **_DEFAULTS,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "logit_scale": 0.0625,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
    },
    only={
        "use_qk_norm": False,
        "use_gated_activation": True,
        "use_parallel_block": True,
        "use_embedding_sharing": True,
        "rotary_pct": 1.0,
        "position_embedding_type": "rope_gptj",
    },
    ignored=frozenset(
        {"head_dim", "layer_switch", "order_of_interleaved_layers", "model_max_length", "use_parallel_embedding"}
    ),
    weights=weights({"ln1": "input_layernorm"}),
    rope=RopeReader(interleaved=True, nope_on_full=True),
)
GPT_NEOX = Family(
    model_type="gpt_neox",
    source="configuration_gpt_neox.py",
    fixed={**LAYER_NORM, "norm_bias": True, "gated_mlp": False, "mlp_bias": True},
    settings={
        **LAYER_NORM_SIZES,
        **ATTENTION_BIAS,
        "d_head": even_heads,
        "n_key_value_heads": "num_attention_heads",
        "parallel_attn_mlp": "use_parallel_residual",
    },
    defaults={
        "hidden_act": "gelu",
        "tie_word_embeddings": False,
        "layer_norm_eps": 1e-5,
        "attention_bias": True,
        "use_parallel_residual": True,
        "rotary_emb_base": 10_000.0,
        "rotary_pct": 0.25,
    },
    weights=weights(
        {
            "attn.o_proj": "attention.dense",
            "mlp.up_proj": "mlp.dense_h_to_4h",
            "mlp.down_proj": "mlp.dense_4h_to_h",
        },
        PRE_NORMS,
        headwise_qkv("attention.query_key_value"),
        embed="embed_in",
        final="final_layer_norm",
    ),
    prefixes=("gpt_neox.", ""),
    renamed={"embed_out.weight": "lm_head.weight"},
    # Older files keep the causal mask beside the weights.
    ignored_weights=("*.attention.bias", "*.attention.masked_bias"),
    rope=RopeReader(share="rotary_pct"),
)
PHI = Family(
    model_type="phi",
    source="configuration_phi.py",
    fixed={
        **LAYER_NORM,
        "norm_bias": True,
        "gated_mlp": False,
        "attn_bias": True,
        "attn_out_bias": True,
        "mlp_bias": True,
        "unembed_bias": True,
        "parallel_attn_mlp": True,
        "parallel_shared_norm": True,
    },
    settings={
        **LAYER_NORM_SIZES,
        "d_head": even_heads,
        "qk_norm": layer_qk_norm("qk_layernorm", bias=True),
    },
    defaults={**_DEFAULTS, "hidden_act": "gelu_new", "qk_layernorm": False, "partial_rotary_factor": 0.5},
    weights=weights(
        {
            "ln1": "input_layernorm",
            "attn.q_norm": "self_attn.q_layernorm",
            "attn.k_norm": "self_attn.k_layernorm",
            "attn.o_proj": "self_attn.dense",
            "mlp.up_proj": "mlp.fc1",
            "mlp.down_proj": "mlp.fc2",
        },
        final="final_layernorm",
    ),
    rope=RopeReader(share="partial_rotary_factor", types=_NOT_PROPORTIONAL),
)

STARCODER2 = Family(
    model_type="starcoder2",
    source="configuration_starcoder2.py",
    fixed={**LAYER_NORM, "norm_bias": True, "gated_mlp": False},
    settings={
        **SIZES,
        **dict.fromkeys(("attn_bias", "attn_out_bias", "mlp_bias"), "use_bias"),
        "eps": "norm_epsilon",
        "window_size": optional("sliding_window"),
    },
    defaults={
        **DEFAULTS,
        "hidden_act": "gelu_pytorch_tanh",
        "norm_epsilon": 1e-5,
        "num_key_value_heads": 2,
        "sliding_window": None,
        "use_bias": True,
        "tie_word_embeddings": True,
    },
    only={"mlp_type": "default", "norm_type": "layer_norm", "scale_attn_weights": True},
    ignored=frozenset(
        {
            *("activation_function", "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"),
            *("residual_dropout", "embedding_dropout", "layer_norm_epsilon"),
        }
    ),
    weights=weights({"mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"}, PRE_NORMS),
)
NEMOTRON = Family(
    model_type="nemotron",
    source="configuration_nemotron.py",
    fixed={**LAYER_NORM, "norm_bias": True, "rmsnorm_uses_offset": True, "gated_mlp": False},
    settings={**SIZES, **ATTENTION_BIAS, "mlp_bias": "mlp_bias", "eps": "norm_eps"},
    defaults={
        **DEFAULTS,
        "hidden_act": "relu2",
        "norm_eps": 1e-5,
        "attention_bias": False,
        "mlp_bias": False,
        "partial_rotary_factor": 0.5,
    },
    weights=weights(PRE_NORMS),
    rope=RopeReader(share="partial_rotary_factor"),
)


def _gptj_rope(hf: Settings) -> RopeConfig:
    """The one schedule of GPT-J, whose base is written in its code."""
    width = hf["rotary_dim"]
    return RopeConfig(
        rope_theta=10_000.0, rotary_dim=width, max_position_embeddings=hf["n_positions"], interleaved=True
    )


GPTJ = Family(
    model_type="gptj",
    source="configuration_gptj.py",
    fixed={
        **LAYER_NORM,
        "norm_bias": True,
        "gated_mlp": False,
        "mlp_bias": True,
        "unembed_bias": True,
        "parallel_attn_mlp": True,
        "parallel_shared_norm": True,
    },
    settings={
        "d_model": "n_embd",
        "d_head": lambda hf: hf["n_embd"] // hf["n_head"],
        "d_mlp": lambda hf: hf.optional("n_inner") or 4 * hf["n_embd"],
        "d_vocab": "vocab_size",
        "n_layers": "n_layer",
        "n_heads": "n_head",
        "n_ctx": "n_positions",
        "act_fn": activation("activation_function"),
        "eps": "layer_norm_epsilon",
        "tie_word_embeddings": "tie_word_embeddings",
    },
    defaults={
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "rotary_dim": 64,
        "tie_word_embeddings": False,
    },
    only={"rotary": True, "scale_attn_weights": True},
    ignored=frozenset(
        {
            *("attn_pdrop", "gradient_checkpointing", "summary_activation", "summary_first_dropout"),
            *("summary_proj_to_labels", "summary_type", "summary_use_proj", "n_ctx"),
        }
    ),
    weights=weights(
        {"ln1": "ln_1", "mlp.up_proj": "mlp.fc_in", "mlp.down_proj": "mlp.fc_out"},
        {f"attn.{t}_proj": f"attn.{name}" for t, name in zip("qkvo", _GPTJ_PROJECTIONS, strict=True)},
        embed="wte",
        final="ln_f",
        layers="h",
    ),
    prefixes=("transformer.", ""),
    # Older files keep the causal mask beside the weights.
    ignored_weights=("*.attn.bias", "*.attn.masked_bias"),
    rope=_gptj_rope,
)

ROWS = (OLMO, STABLELM, COHERE, COHERE2, GPT_NEOX, PHI, STARCODER2, NEMOTRON, GPTJ)
