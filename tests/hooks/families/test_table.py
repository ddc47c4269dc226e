"""Reading config.json by a family's row: what it takes, what it records, and that it refuses everything else."""

import math

import pytest
from tiny import CLASSES, Shape, tiny_config

from hooks import ConfigError
from hooks.errors import UnknownModelError
from hooks.families.table import FAMILIES, config_from_hf

# As on the Hub: HuggingFaceTB/SmolLM2-135M-Instruct, google/gemma-3-270m, tencent/Hy-MT2-7B.
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 49152,
}
GEMMA3 = {
    "_sliding_window_pattern": 6,
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 640,
    "initializer_range": 0.02,
    "intermediate_size": 2048,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": 512,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.55.0.dev0",
    "use_bidirectional_attention": False,
    "use_cache": True,
    "vocab_size": 262144,
}
HUNYUAN = {
    "add_classification_head": False,
    "architectures": ["HunYuanDenseV1ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.1,
    "attention_head_dim": 128,
    "bos_token_id": 127958,
    "cla_share_factor": 2,
    "class_num": 0,
    "dense_list": [4096, 0],
    "torch_dtype": "bfloat16",
    "eos_token_id": 127960,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "im_end_id": 5,
    "im_newline_id": 11,
    "im_start_id": 4,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "mask_init_id": 12,
    "max_position_embeddings": 262144,
    "mlp_bias": False,
    "model_type": "hunyuan_v1_dense",
    "norm_type": "rms",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "org_vocab_size": 128167,
    "pad_id": 127961,
    "pad_token_id": 127961,
    "pool_type": "last",
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "alpha": 1000.0,
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "type": "dynamic",
    },
    "rope_theta": 10000.0,
    "sep_token_id": 127962,
    "text_end_id": 7,
    "text_start_id": 6,
    "tie_word_embeddings": True,
    "transformers_version": "4.57.6",
    "use_cache": True,
    "use_cla": False,
    "use_qk_norm": True,
    "use_rotary_pos_emb": True,
    "vocab_size": 128167,
}


def test_smollm2_from_the_hub():
    cfg = config_from_hf(SMOLLM2)
    assert (cfg.d_model, cfg.n_layers, cfg.n_heads, cfg.n_kv_heads, cfg.d_head) == (576, 30, 9, 3, 64)
    assert (cfg.rope.rope_type, cfg.rope.rope_theta, cfg.n_ctx) == ("default", 100000, 8192)
    assert cfg.qk_norm is None
    assert cfg.tie_word_embeddings
    assert cfg.provenance == {}


def test_gemma3_from_the_hub():
    cfg = config_from_hf(GEMMA3)
    assert {kind: rope.rope_theta for kind, rope in cfg.rope.items()} == {
        "sliding_attention": 10_000.0,
        "full_attention": 1_000_000.0,
    }
    assert [i for i in range(18) if cfg.window(i) is None] == [5, 11, 17]
    assert cfg.window(0) == 512
    assert cfg.scale == 1 / 16
    assert cfg.embed_scale == math.sqrt(640)
    assert cfg.qk_norm.unit_offset
    assert cfg.qk_norm.scale_before_cast
    assert set(cfg.provenance) == {"tie_word_embeddings"}


def test_gemma3_without_what_it_leaves_to_defaults():
    """The multimodal files say little about their language model; what is filled in stands in the provenance."""
    outer = {
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "vision_config": {"model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 256,
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "image_token_index": 262144,
    }
    cfg = config_from_hf(outer)
    assert cfg.rope["full_attention"].factor == 8.0
    assert cfg.rope["sliding_attention"].rope_type == "default"
    assert (cfg.n_heads, cfg.n_kv_heads, cfg.d_head, cfg.d_vocab) == (8, 4, 256, 262_208)
    for key in ("head_dim", "query_pre_attn_scalar", "rope_theta", "rope_local_base_freq", "_sliding_window_pattern"):
        assert "configuration_gemma3.py" in cfg.provenance[key]


def test_gemma3_softcap_follows_what_the_model_computes():
    cfg = config_from_hf({**GEMMA3, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0})
    assert cfg.softcap is None
    assert cfg.output_logits_soft_cap == 30.0


def test_hunyuan_from_the_hub():
    cfg = config_from_hf(HUNYUAN)
    assert cfg.rope.rope_type == "default"
    assert cfg.rope.rope_theta == pytest.approx(10000.0 * 1000.0 ** (128 / 126))
    assert cfg.qk_norm.position == "after_rope"


@pytest.mark.parametrize("pattern", [{"sliding_window_pattern": 3}, {"_sliding_window_pattern": 3}])
def test_gemma3_layer_pattern(pattern):
    without = {k: v for k, v in GEMMA3.items() if k not in ("layer_types", "_sliding_window_pattern")}
    cfg = config_from_hf({**without, **pattern})
    assert [i for i in range(18) if cfg.window(i) is None] == [2, 5, 8, 11, 14, 17]


def test_qwen3_window_counts_only_when_switched_on():
    base = tiny_config("qwen3", Shape(layers=5)).to_dict()
    del base["layer_types"]
    off = config_from_hf({**base, "sliding_window": 16, "max_window_layers": 2})
    on = config_from_hf({**base, "sliding_window": 16, "max_window_layers": 2, "use_sliding_window": True})
    assert [off.window(i) for i in range(5)] == [None] * 5
    assert [on.window(i) for i in range(5)] == [None, None, 16, 16, 16]


def test_null_head_sizes_follow_from_the_width():
    config = {**SMOLLM2, "head_dim": None, "num_key_value_heads": None}
    cfg = config_from_hf(config)
    assert (cfg.d_head, cfg.n_kv_heads) == (64, 9)


def test_absent_base_is_a_default_on_record():
    config = {k: v for k, v in SMOLLM2.items() if k != "rope_theta"}
    cfg = config_from_hf(config)
    assert cfg.rope.rope_theta == 10_000.0
    assert "configuration_llama.py" in cfg.provenance["rope_theta"]


@pytest.mark.parametrize("family", CLASSES)
def test_defaults_are_those_of_transformers(family):
    """A config class made of nothing has the value that the row fills in."""
    row, config_class = FAMILIES[family], CLASSES[family][0]
    switched_on = {"use_sliding_window": True} if "use_sliding_window" in row.defaults else {}
    made = {**config_class(num_hidden_layers=6, **switched_on).to_dict(), "use_sliding_window": False}
    rope = made.get("rope_parameters", {"rope_theta": None})
    made["rope_theta"] = made["rotary_emb_base"] = rope.get("full_attention", rope)["rope_theta"]
    made["rope_local_base_freq"] = rope.get("sliding_attention", rope)["rope_theta"]
    made["partial_rotary_factor"] = made["rotary_pct"] = rope.get("partial_rotary_factor")
    if "layer_types" in made:
        made.setdefault("sliding_window_pattern", made["layer_types"].index("full_attention") + 1)
    for key, value in row.defaults.items():
        if key != "num_hidden_layers":
            assert made[key] == value, key


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("key", ["attention_multiplier", "logits_scaling", "partial_rotary_dim", "quantization_config"])
def test_an_unknown_key_is_refused_by_name(family, key):
    config = tiny_config(family, Shape()).to_dict()
    config_from_hf(config)
    key = f"{key}_of_another_family" if key in config else key
    with pytest.raises(ConfigError, match=key):
        config_from_hf({**config, key: 0.5})


@pytest.mark.parametrize(
    ("config", "changes", "said"),
    [
        (SMOLLM2, {"rope_interleaved": True}, "rope_interleaved"),
        (SMOLLM2, {"hidden_act": "xielu"}, "xielu"),
        (SMOLLM2, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (SMOLLM2, {"hidden_size": "576"}, "wrong kind|whole number"),
        (SMOLLM2, {"num_attention_heads": 0}, "wrong kind|n_heads"),
        (SMOLLM2, {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "bend": 3}}, "bend"),
        (GEMMA3, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (HUNYUAN, {"use_cla": True}, "use_cla"),
        (HUNYUAN, {"use_qk_norm": False}, "use_qk_norm"),
        ({**SMOLLM2, "model_type": 7}, {}, "model_type"),
    ],
)
def test_a_value_without_meaning_here_is_refused(config, changes, said):
    with pytest.raises(ConfigError, match=said):
        config_from_hf({**config, **changes})


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "num_hidden_layers", "max_position_embeddings"])
def test_a_missing_key_is_named(key):
    with pytest.raises(ConfigError, match=key):
        config_from_hf({k: v for k, v in SMOLLM2.items() if k != key})


def test_an_unknown_family_names_the_nearest():
    with pytest.raises(UnknownModelError, match="nearest: qwen3"):
        config_from_hf({**SMOLLM2, "model_type": "qwen5"})
