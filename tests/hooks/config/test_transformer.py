import copy
import dataclasses
import json
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformer_lens.config import TransformerBridgeConfig

from hooks.config.qk_norm import QKNormConfig
from hooks.config.rope import RopeConfig
from hooks.config.transformer import HookedTransformerConfig
from hooks.errors import ConfigError, NarrowRotaryWarning

PLAIN = RopeConfig(rope_theta=500_000.5)
LLAMA3 = RopeConfig(
    "llama3",
    rope_theta=5e5,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)
GEMMA = {"sliding_attention": RopeConfig(rope_theta=1e4), "full_attention": RopeConfig(rope_theta=1e6)}


def config(**changes):
    return HookedTransformerConfig(**({"d_model": 96, "d_head": 32, "n_layers": 3, "n_ctx": 128} | changes))


def layered(**changes):
    types = ("sliding_attention", "sliding_attention", "full_attention")
    return config(**({"rope": GEMMA, "layer_types": types, "window_size": 8} | changes))


EXAMPLES = {
    "bare": {},
    "plain": {"rope": PLAIN, "qk_norm": QKNormConfig(eps=1e-5, unit_offset=True)},
    "layered": {"rope": GEMMA, "layer_types": ["sliding_attention"] * 2 + ["full_attention"], "window_size": 8},
    "half rotated": {"rope": {**GEMMA, "full_attention": None}, "window_size": 5},
    "longrope": {
        "rope": RopeConfig(
            "longrope",
            rope_theta=1e4,
            rotary_dim=32,
            original_max_position_embeddings=64,
            max_position_embeddings=128,
            short_factor=[1.0] * 16,
            long_factor=[2.5] * 16,
            precision="float64",
        )
    },
    "rest": {
        "n_heads": 4,
        "n_key_value_heads": 2,
        "rope": LLAMA3,
        "nope_layers": [1],
        "clip_qkv": 8.0,
        "clip_position": "rope",
        "block_norms": "sandwich",
        "normalization_type": "RMS",
        "rmsnorm_uses_offset": True,
        "attn_scale": 16.0,
        "attn_scores_soft_cap": 50.0,
        "alibi_slopes": [0.5, 0.25, 0.125, 0.0625],
        "dtype": "bfloat16",
        "device": torch.device("cpu"),
        "act_fn": "gelu_pytorch_tanh",
        "provenance": {"rope_theta": "Gemma 3 report, arXiv 2503.19786"},
        "seed": 3,
    },
}


@pytest.mark.parametrize("settings_", EXAMPLES.values(), ids=EXAMPLES)
def test_round_trips(settings_):
    cfg = config(**settings_)
    text = json.dumps(cfg.to_dict())
    for other in (
        HookedTransformerConfig.from_dict(json.loads(text)),
        copy.deepcopy(cfg),
        copy.copy(cfg),
        pickle.loads(pickle.dumps(cfg)),
        cfg.replace(),
    ):
        assert other == cfg
        assert other is not cfg
        assert vars(other) == vars(cfg)
        assert json.dumps(other.to_dict()) == text
        assert repr(other) == repr(cfg)


def test_repr_builds_an_equal_config():
    cfg = layered(qk_norm=QKNormConfig(kind="layer", bias=True), dtype=torch.bfloat16)
    names = {"HookedTransformerConfig": HookedTransformerConfig, "RopeConfig": RopeConfig, "QKNormConfig": QKNormConfig}
    assert eval(repr(cfg), {"torch": torch, **names}) == cfg


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"rope": PLAIN}, {"rope": RopeConfig(rope_theta=500_000)}),
        ({"rope": PLAIN}, {"rope": dataclasses.replace(PLAIN, interleaved=True)}),
        ({"rope": PLAIN}, {"rope": dataclasses.replace(PLAIN, precision="float64")}),
        ({"rope": PLAIN}, {}),
        ({"rope": GEMMA}, {"rope": {**GEMMA, "sliding_attention": None}}),
        ({"qk_norm": QKNormConfig()}, {"qk_norm": QKNormConfig(scale_before_cast=True)}),
        ({"qk_norm": QKNormConfig()}, {"qk_norm": QKNormConfig(eps=2e-6)}),
        ({"clip_qkv": 8.0}, {"clip_qkv": 8.5}),
        ({"rope": PLAIN, "nope_layers": (2,)}, {"rope": PLAIN}),
        ({"provenance": {"a": "b"}}, {}),
        ({"use_attn_scale": False}, {}),
    ],
)
def test_equality_sees_one_nested_field(one, other):
    assert config(**one) == config(**one)
    assert config(**one) != config(**other)
    assert repr(config(**one)) != repr(config(**other))
    assert config(**one) != 3


FLAGS = [
    ({"rotary_base": 500_000.5}, {"rope": PLAIN}),
    ({"positional_embedding_type": "rotary"}, {"rope": RopeConfig(rope_theta=10_000)}),
    ({"rotary_base": 5e5, "rotary_dim": 32}, {"rope": RopeConfig(rope_theta=5e5)}),
    (
        {"rotary_base": 1e4, "rotary_adjacent_pairs": True},
        {"rope": RopeConfig(rope_theta=1e4, interleaved=True)},
    ),
    ({"rotary_base": 5e5, "use_NTK_by_parts_rope": True}, {"rope": LLAMA3}),
    (
        {
            "rotary_base": 5e5,
            "use_NTK_by_parts_rope": True,
            "NTK_by_parts_factor": 32.0,
            "NTK_by_parts_low_freq_factor": 2.0,
            "NTK_by_parts_high_freq_factor": 8.0,
            "NTK_original_ctx_len": 4096,
        },
        {
            "rope": dataclasses.replace(
                LLAMA3, factor=32.0, low_freq_factor=2.0, high_freq_factor=8.0, original_max_position_embeddings=4096
            )
        },
    ),
    ({"use_qk_norm": True, "eps": 1e-4}, {"qk_norm": QKNormConfig(eps=1e-4), "eps": 1e-4}),
    (
        {"use_qk_norm": True, "qk_norm_after_rope": True},
        {"qk_norm": QKNormConfig(position="after_rope", eps=1e-5)},
    ),
    (
        {"attn_types": ["global", "local", "global"], "window_size": 4, "use_local_attn": True},
        {"layer_types": ("full_attention", "sliding_attention", "full_attention"), "window_size": 4},
    ),
    ({"window_size": 4}, {"layer_types": ("sliding_attention",) * 3, "window_size": 4}),
    ({"window_size": 4, "use_local_attn": False}, {"layer_types": ("full_attention",) * 3, "window_size": 4}),
    ({"use_normalization_before_and_after": True}, {"block_norms": "sandwich"}),
    ({"uses_rms_norm": True}, {"normalization_type": "RMS"}),
]


@pytest.mark.parametrize(("flags", "nested"), FLAGS)
def test_flags_build_the_same_model_and_read_in_step(flags, nested):
    from_flags, from_nested = config(**flags), config(**nested)
    assert from_flags == from_nested
    for name, value in flags.items():
        assert getattr(from_nested, name) == value
    assert config(**{**flags, **nested}) == from_nested


@pytest.mark.parametrize(
    ("flags", "nested"),
    [
        ({"rotary_base": 500_000}, {"rope": PLAIN}),
        ({"rotary_dim": 16}, {"rope": PLAIN}),
        ({"rotary_adjacent_pairs": True}, {"rope": PLAIN}),
        ({"rotary_adjacent_pairs": False}, {"rope": dataclasses.replace(PLAIN, interleaved=True)}),
        ({"use_NTK_by_parts_rope": True}, {"rope": PLAIN}),
        ({"use_NTK_by_parts_rope": False}, {"rope": LLAMA3}),
        ({"NTK_by_parts_factor": 4.0}, {"rope": LLAMA3}),
        ({"NTK_by_parts_factor": 4.0}, {"rope": PLAIN}),
        ({"NTK_original_ctx_len": 4096}, {"rope": LLAMA3}),
        ({"positional_embedding_type": "none"}, {"rope": PLAIN}),
        ({"positional_embedding_type": "standard"}, {}),
        ({"use_qk_norm": False}, {"qk_norm": QKNormConfig()}),
        ({"qk_norm_after_rope": True}, {"qk_norm": QKNormConfig()}),
        ({"qk_norm_after_rope": True}, {}),
        ({"rotary_base": 1e4}, {"rope": GEMMA}),
        ({"use_local_attn": True}, {"layer_types": ["full_attention"] * 3}),
        ({"attn_types": ["local"] * 3}, {"layer_types": ["full_attention"] * 3}),
        ({"use_normalization_before_and_after": True}, {"block_norms": "post"}),
        ({"use_normalization_before_and_after": True}, {"block_norms": "pre"}),
        ({"uses_rms_norm": True}, {"normalization_type": "LN"}),
    ],
)
def test_contradictions_raise(flags, nested):
    with pytest.raises(ConfigError, match=next(iter(flags))):
        config(**flags, **nested)


def test_no_rotation_without_rope_or_flag():
    cfg = config(rotary_adjacent_pairs=False, use_NTK_by_parts_rope=False)
    assert cfg.rope is None
    assert cfg.rope_for(0) is None
    assert (cfg.positional_embedding_type, cfg.rotary_base, cfg.rotary_dim) == ("none", None, None)
    assert cfg == config()


def test_assignment_keeps_flags_and_nested_form_in_step():
    cfg = config(rope=PLAIN)
    cfg.rotary_base = 1e6
    assert cfg.rope == RopeConfig(rope_theta=1e6)
    cfg.rope = LLAMA3
    assert (cfg.rotary_base, cfg.use_NTK_by_parts_rope, cfg.NTK_by_parts_factor) == (5e5, True, 8.0)
    cfg.NTK_by_parts_factor = 32.0
    assert cfg.rope == dataclasses.replace(LLAMA3, factor=32.0)
    cfg.use_NTK_by_parts_rope = False
    assert cfg.rope == RopeConfig(rope_theta=5e5)
    cfg.rotary_adjacent_pairs = True
    assert cfg.rope.interleaved
    cfg.rope = None
    assert cfg.rotary_base is None
    cfg.use_qk_norm = True
    assert cfg.qk_norm == QKNormConfig(eps=cfg.eps)
    cfg.qk_norm_after_rope = True
    assert cfg.qk_norm.position == "after_rope"
    cfg.qk_norm = None
    assert not cfg.use_qk_norm
    assert not cfg.qk_norm_after_rope
    cfg.window_size = 16
    assert cfg.attn_types == ["local"] * 3
    assert cfg == config(window_size=16)


def test_a_refused_assignment_changes_nothing():
    cfg = config(rope=PLAIN, qk_norm=QKNormConfig())
    before = copy.deepcopy(cfg)
    for name, value in {
        "rope": RopeConfig(),
        "rotary_base": 0,
        "rotary_dim": 34,
        "NTK_by_parts_factor": 4.0,
        "qk_norm": "rms",
        "layer_types": ("full_attention",),
        "n_key_value_heads": 2,
        "clip_position": "nrom",
        "rotary_bse": 1e4,
    }.items():
        with pytest.raises(ConfigError, match=name.removesuffix("_position")):
            setattr(cfg, name, value)
        assert cfg == before
        assert vars(cfg) == vars(before)


def test_a_mapping_is_read_only_through_flags_and_in_place():
    cfg = layered()
    assert cfg.rotary_base == 1e6
    for name, value in {"rotary_base": 1e6, "rotary_dim": 32, "use_NTK_by_parts_rope": True}.items():
        with pytest.raises(ConfigError, match=rf"{name}.*sliding_attention"):
            setattr(cfg, name, value)
    with pytest.raises(ConfigError, match="read-only"):
        cfg.rope["full_attention"] = PLAIN
    with pytest.raises(ConfigError, match="read-only"):
        cfg.rope.update(full_attention=PLAIN)
    assert cfg.replace(rope={**cfg.rope, "full_attention": PLAIN}).rope_for(2) == PLAIN
    assert cfg == layered()


def test_post_init_runs_twice_in_the_parent_and_may_run_again():
    cfg = config(rope=PLAIN, n_heads=5, d_mlp=77)
    before = copy.deepcopy(cfg)
    cfg.__post_init__()
    assert vars(cfg) == vars(before)
    assert (cfg.n_heads, cfg.d_mlp, cfg.rotary_base) == (5, 77, 500_000.5)
    assert isinstance(cfg, TransformerBridgeConfig)
    assert config().n_heads == 3
    assert type(cfg.initializer_range) is float


def test_unknown_settings_raise_with_near_names():
    with pytest.raises(ConfigError, match="rope_tehta"):
        config(rope_tehta=1e4)
    with pytest.raises(ConfigError, match="did you mean qk_norm"):
        HookedTransformerConfig.from_dict(config().to_dict() | {"qk_nrom": None})
    with pytest.raises(ConfigError, match="'thet' is not a field of RopeConfig"):
        HookedTransformerConfig.from_dict(config().to_dict() | {"rope": {"thet": 1}})
    with pytest.raises(ConfigError, match="'kid' is not a field of QKNormConfig"):
        HookedTransformerConfig.from_dict(config().to_dict() | {"qk_norm": {"kid": 1}})
    with pytest.raises(ConfigError, match="d_head, n_ctx must be given"):
        HookedTransformerConfig.from_dict({"d_model": 4, "n_layers": 1})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"d_head": 36}, "divisible by d_head"),
        ({"d_head": 0}, "d_head=0"),
        ({"n_heads": 3, "n_key_value_heads": 2}, "n_key_value_heads=2"),
        ({"act_fn": "gleu"}, "act_fn='gleu' must be one of silu"),
        ({"normalization_type": "RMSPre"}, "RMSPre"),
        ({"dtype": "float23"}, "float23"),
        ({"clip_qkv": -1.0}, "clip_qkv"),
        ({"clip_qkv": 1.0, "clip_position": "norm"}, "needs qk_norm"),
        ({"attn_scale": 0.0}, "attn_scale"),
        ({"attn_bias": 1}, "attn_bias=1 must be True or False"),
        ({"layer_types": ["full_attention"] * 2}, "has 2 values"),
        ({"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
        ({"layer_types": ["sliding_attention"] * 3}, "needs window_size"),
        ({"attn_types": ["globl"] * 3}, "globl"),
        ({"nope_layers": [3], "rope": PLAIN}, r"nope_layers=\(3,\)"),
        ({"nope_layers": [0]}, "rope=None lacks"),
        ({"alibi_slopes": [1.0]}, "needs one for each head"),
        ({"rope": {"rope_theta": 1e4}}, "layer types"),
        ({"rope": {"sliding_attention": PLAIN}}, "no entry for full_attention"),
        ({"rope": {"full_attention": 1e4}}, r"rope\['full_attention'\]=10000.0"),
        ({"rope": RopeConfig()}, "rope_type='default' needs rope_theta"),
        ({"rope": RopeConfig("linear", rope_theta=1e4)}, "needs factor"),
        ({"rope": RopeConfig("dynamic", rope_theta=1e4, factor=2.0)}, "needs max_position_embeddings"),
        ({"rope": RopeConfig("yarn", rope_theta=1e4, factor=2.0)}, "needs original_max_position_embeddings"),
        ({"rope": RopeConfig("llama3", rope_theta=1e4, factor=2.0)}, "low_freq_factor, high_freq_factor"),
        ({"rope": RopeConfig(rope_theta=1e4, rotary_dim=34)}, "rotary_dim=34"),
        ({"rope": RopeConfig(rope_theta=1e4, partial_rotary_factor=0.1)}, "rotary_dim=3 .*even"),
        ({"rope": RopeConfig("dynamic", rope_theta=1e4, factor=2.0, max_position_embeddings=9, rotary_dim=2)}, "4"),
        ({"num_experts": 4}, "num_experts=4 is not implemented"),
        ({"scale_embedding": True}, "scale_embedding=True is not implemented"),
        ({"norm_bias": True, "normalization_type": "RMS"}, "norm_bias"),
    ],
)
def test_wrong_settings_raise(changes, match):
    with pytest.raises(ConfigError, match=match):
        config(**changes)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"rope_type": "yran"}, "rope_type='yran' is unknown; allowed are default, dynamic"),
        ({"factor": 2.0}, "factor=2.0 is not used by rope_type='default'"),
        ({"rope_type": "linear", "factor": 2.0, "low_freq_factor": 1.0}, "low_freq_factor=1.0 is not used"),
        ({"rope_type": "llama3", "truncate": False}, "truncate=False is not used"),
        ({"rotary_dim": 7}, "rotary_dim=7 must be an even number"),
        ({"rotary_dim": 16, "partial_rotary_factor": 0.5}, "rotary_dim=16 and partial_rotary_factor=0.5"),
        ({"rope_type": "proportional", "rotary_dim": 16}, "rotary_dim=16"),
        ({"rope_theta": float("nan")}, "rope_theta=nan"),
        ({"rope_theta": "1e4"}, "rope_theta='1e4'"),
        ({"rope_theta": 1}, "above 1"),
        ({"rope_type": "linear", "factor": 0.5}, "factor=0.5 must be a number of at least 1"),
        ({"partial_rotary_factor": 1.5}, "at most 1"),
        ({"rope_type": "llama3", "low_freq_factor": 4.0, "high_freq_factor": 1.0}, "below high_freq_factor=1.0"),
        ({"rope_type": "yarn", "beta_fast": 1, "beta_slow": 32}, "below beta_fast=1"),
        ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0, 2.0]}, "one per pair"),
        ({"rope_type": "longrope", "short_factor": [0.0]}, "above 0"),
        ({"rope_type": "dynamic", "learnable": True}, "learnable=True"),
        ({"precision": "float16"}, "precision='float16'"),
        ({"interleaved": 1}, "interleaved=1"),
    ],
)
def test_wrong_rope_fields_raise_at_once(fields, match):
    with pytest.raises(ConfigError, match=match):
        RopeConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"kind": "rsm"}, "kind='rsm' must be one of rms, layer, l2"),
        ({"scope": "heads"}, "scope"),
        ({"position": "rope"}, "position"),
        ({"eps": -1e-6}, "eps"),
        ({"scale": 0}, "scale=0"),
        ({"bias": True}, "kind='layer'"),
        ({"unit_offset": True, "affine": False}, "unit_offset"),
        ({"affine": None}, "affine=None"),
    ],
)
def test_wrong_qk_norm_fields_raise(fields, match):
    with pytest.raises(ConfigError, match=match):
        QKNormConfig(**fields)


@given(st.integers(1, 40), st.integers(0, 20))
@settings(deadline=None, max_examples=40)
def test_narrow_rotation_warns_and_works(pairs, rest):
    d_head = 2 * pairs + rest
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cfg = HookedTransformerConfig(d_head, d_head, 1, 8, rope=RopeConfig(rope_theta=1e4, rotary_dim=2 * pairs))
        cfg.eps = 1e-3
        cfg.n_ctx = 9
    assert [w.category for w in caught] == [NarrowRotaryWarning] * (2 * pairs < 32)
    assert cfg.rotary_dim == 2 * pairs


def test_the_warning_points_at_the_caller():
    with pytest.warns(NarrowRotaryWarning, match="rotary_dim=4 ") as caught:
        HookedTransformerConfig(8, 4, 1, 8, rope=RopeConfig(rope_theta=1e4))
    assert caught[0].filename == __file__


def test_layers():
    cfg = layered(nope_layers=(1,), attn_scores_soft_cap=50.0, attn_scale=16.0, n_key_value_heads=1)
    assert [cfg.layer_type(i) for i in range(3)] == ["sliding_attention"] * 2 + ["full_attention"]
    assert [cfg.window(i) for i in range(3)] == [8, 8, None]
    assert [cfg.rope_for(i) for i in range(3)] == [GEMMA["sliding_attention"], None, GEMMA["full_attention"]]
    assert (cfg.n_kv_heads, cfg.softcap, cfg.scale) == (1, 50.0, 1 / 16)
    assert (config().n_kv_heads, config().softcap, config().scale) == (3, None, 32**-0.5)
    assert config(use_attn_scale=False).scale == 1.0
    spec = cfg.attention_spec(1)
    assert (spec.scale, spec.causal, spec.window, spec.softcap) == (1 / 16, True, 8, 50.0)
    for layer in (-1, 3):
        with pytest.raises(ConfigError, match=f"layer {layer} does not exist"):
            cfg.rope_for(layer)


def test_inherit_fills_what_the_new_schedule_uses():
    own = RopeConfig(rope_theta=1e5, max_position_embeddings=8192, partial_rotary_factor=0.5, interleaved=True)
    yarn = RopeConfig("yarn", factor=2.0).inherit(own)
    assert yarn == RopeConfig(
        "yarn",
        rope_theta=1e5,
        factor=2.0,
        original_max_position_embeddings=8192,
        max_position_embeddings=8192,
        partial_rotary_factor=0.5,
        interleaved=True,
    )
    assert RopeConfig("linear", factor=4.0, rotary_dim=16).inherit(own).partial_rotary_factor is None
    assert RopeConfig(rope_theta=2e5, interleaved=False).inherit(own).interleaved is False
    llama3 = dataclasses.replace(LLAMA3, max_position_embeddings=131_072)
    assert RopeConfig("llama3", factor=32.0).inherit(llama3) == dataclasses.replace(llama3, factor=32.0)
    assert RopeConfig("default").inherit(llama3) == RopeConfig(rope_theta=5e5, max_position_embeddings=131_072)
    assert RopeConfig("yarn", factor=2.0).inherit(llama3).original_max_position_embeddings == 8192
    assert RopeConfig("linear").inherit(llama3).factor is None
    fresh = RopeConfig("dynamic", factor=2.0).inherit(RopeConfig(rope_theta=1e4), n_ctx=512)
    assert fresh.max_position_embeddings == 512


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("n_devices", 2, "model.to"),
        ("use_hook_tokens", True, "tokens"),
        ("init_mode", "xavier_uniform", "gpt2"),
        ("init_mode", "anything", "gpt2"),
    ],
)
def test_what_would_change_nothing_is_refused_by_name(name, value, instead):
    with pytest.raises(ConfigError, match=f"{name}=.*{instead}"):
        config(**{name: value})
    with pytest.raises(ConfigError, match=f"{name}=.*{instead}"):
        setattr(config(), name, value)


def test_switches_of_points_are_kept_and_are_switches():
    for name in ("use_attn_in", "use_attn_result", "use_hook_mlp_in", "use_split_qkv_input"):
        assert getattr(config(**{name: True}), name) is True
        with pytest.raises(ConfigError, match=f"{name}='yes'"):
            config(**{name: "yes"})


def test_the_number_of_logits_is_the_vocabulary():
    cfg = config(d_vocab=100)
    assert cfg.d_vocab_out == cfg.d_vocab == 100
    assert cfg.replace(d_vocab=70).d_vocab_out == 70
    assert type(cfg).from_dict(cfg.to_dict()) == cfg
    with pytest.raises(ConfigError, match="d_vocab_out=7 must be d_vocab=100"):
        config(d_vocab=100, d_vocab_out=7)


@pytest.mark.parametrize("name", ["use_yarn_rope", "yarn_factor", "yarn_original_max_position_embeddings"])
def test_yarn_flags_are_told_of_rope_config(name):
    with pytest.raises(ConfigError, match=rf"'{name}' is not a setting.*RopeConfig\('yarn', factor"):
        config(**{name: 4.0})
