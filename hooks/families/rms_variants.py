"""Families of dense decoders with RMSNorm that are Llama with one or two things changed, one row each."""

from dataclasses import replace

from hooks.families.family import Family
from hooks.families.readers import (
    ATTENTION_BIAS,
    DEFAULTS,
    PRE_NORMS,
    RMS,
    RMS_SIZES,
    activation,
    stacked_gate_up,
    weights,
)
from hooks.families.rms import GLM4, MISTRAL
from hooks.families.rotation import RopeReader
from hooks.families.settings import Settings


def _gemma_activation(hf: Settings) -> str:
    """The tanh form of gelu, which Gemma's first files call gelu."""
    found = activation("hidden_act")(hf)
    return "gelu_pytorch_tanh" if found == "gelu" else found


_DEFAULTS = {**DEFAULTS, "rms_norm_eps": 1e-6, "attention_bias": False}

GEMMA = Family(
    model_type="gemma",
    source="configuration_gemma.py",
    fixed={**RMS, "rmsnorm_uses_offset": True, "norm_scale_before_cast": True},
    settings={
        **RMS_SIZES,
        **ATTENTION_BIAS,
        "d_head": "head_dim",
        "act_fn": _gemma_activation,
        "embed_scale": lambda hf: hf["hidden_size"] ** 0.5,
    },
    defaults={
        **_DEFAULTS,
        "hidden_act": "gelu_pytorch_tanh",
        "num_key_value_heads": 16,
        "head_dim": 256,
        "tie_word_embeddings": True,
    },
    only={"use_bidirectional_attention": False},
    ignored=frozenset({"hidden_activation"}),
    weights=weights(PRE_NORMS),
)
GRANITE = Family(
    model_type="granite",
    source="configuration_granite.py",
    fixed=RMS,
    settings={
        **RMS_SIZES,
        **ATTENTION_BIAS,
        "mlp_bias": "mlp_bias",
        "embed_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "attn_scale": lambda hf: 1 / hf["attention_multiplier"],
        "logit_scale": lambda hf: 1 / hf["logits_scaling"],
    },
    defaults={
        **_DEFAULTS,
        "mlp_bias": False,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "logits_scaling": 1.0,
    },
    weights=weights(PRE_NORMS),
)
ERNIE4_5 = Family(
    model_type="ernie4_5",
    source="configuration_ernie4_5.py",
    fixed={**RMS, "rope_in_float32": True},
    settings={**RMS_SIZES, **dict.fromkeys(("attn_bias", "attn_out_bias", "mlp_bias"), "use_bias")},
    defaults={
        **DEFAULTS,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "use_bias": False,
        "tie_word_embeddings": True,
        "rope_theta": 500_000.0,
    },
    weights=weights(PRE_NORMS),
    rope=RopeReader(interleaved=True),
)
SEED_OSS = Family(
    model_type="seed_oss",
    source="configuration_seed_oss.py",
    fixed=RMS,
    settings={
        **RMS_SIZES,
        "attn_bias": "attention_bias",
        "attn_out_bias": "attention_out_bias",
        "mlp_bias": "mlp_bias",
    },
    defaults={
        **_DEFAULTS,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "attention_bias": True,
        "attention_out_bias": False,
        "mlp_bias": False,
    },
    ignored=frozenset({"residual_dropout"}),
    weights=weights(PRE_NORMS),
)
ARCEE = Family(
    model_type="arcee",
    source="configuration_arcee.py",
    fixed={**RMS, "gated_mlp": False},
    settings={**RMS_SIZES, **ATTENTION_BIAS, "mlp_bias": "mlp_bias"},
    defaults={**_DEFAULTS, "hidden_act": "relu2", "rms_norm_eps": 1e-5, "mlp_bias": False},
    weights=weights(PRE_NORMS),
)
HELIUM = Family(
    model_type="helium",
    source="configuration_helium.py",
    fixed={**RMS, "norm_scale_before_cast": True},
    settings={**RMS_SIZES, "d_head": "head_dim", "attn_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    defaults={
        **_DEFAULTS,
        "rms_norm_eps": 1e-8,
        "num_key_value_heads": 20,
        "head_dim": 128,
        "mlp_bias": False,
        "rope_theta": 100_000.0,
    },
    weights=weights(PRE_NORMS),
    rope=RopeReader(interleaved=True),
)
# GLM-4 came after it, and put a second norm behind attention and MLP.
GLM = replace(
    GLM4,
    model_type="glm",
    source="configuration_glm.py",
    fixed=RMS,
    weights=weights(PRE_NORMS, stacked_gate_up("mlp.gate_up_proj")),
)
# The language model inside the multimodal checkpoints; images are not read.
MISTRAL3 = replace(
    MISTRAL,
    model_type="mistral3",
    nested="text_config",
    inner_type="mistral",
    ignored=frozenset(
        {
            *("vision_config", "image_token_index", "image_token_id", "projector_hidden_act", "spatial_merge_size"),
            *("vision_feature_layer", "multimodal_projector_bias"),
        }
    ),
    prefixes=("model.language_model.", "language_model.model.", "model."),
    ignored_weights=(
        *("model.vision_tower.*", "vision_tower.*"),
        *("model.multi_modal_projector.*", "multi_modal_projector.*"),
    ),
    renamed={"language_model.lm_head.weight": "lm_head.weight"},
)

ROWS = (GEMMA, GRANITE, ERNIE4_5, SEED_OSS, ARCEE, HELIUM, GLM, MISTRAL3)
