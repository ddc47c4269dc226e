import pytest

from hooks.config.rope import RopeConfig
from hooks.errors import ConfigError

YARN = {"factor": 4.0, "original_max_position_embeddings": 4096}
LONG = {"short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0]}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"rope_theta": 1e4}, RopeConfig(rope_theta=1e4)),
        ({"rope_theta": 1e4, "rope_scaling": None, "rope_parameters": None}, RopeConfig(rope_theta=1e4)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, RopeConfig(rope_theta=5e5)),
        (
            {"rope_theta": 1e4, "max_position_embeddings": 64, "rope_scaling": {"type": "linear", "factor": 2}},
            RopeConfig("linear", rope_theta=1e4, factor=2, max_position_embeddings=64),
        ),
        (
            {"rope_theta": 1e4, "max_position_embeddings": 64, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            RopeConfig("dynamic", rope_theta=1e4, factor=2.0, max_position_embeddings=64),
        ),
        (
            {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "rope_type": "yarn", "finetuned": True, **YARN}},
            RopeConfig("yarn", rope_theta=1e6, **YARN),
        ),
        (
            {"rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn", "truncate": False, "mscale": None, **YARN}},
            RopeConfig("yarn", rope_theta=1e6, truncate=False, **YARN),
        ),
        (
            {
                "rope_theta": 1e6,
                "max_position_embeddings": 16384,
                "rope_scaling": {"type": "yarn", "factor": None, "original_max_position_embeddings": 4096},
            },
            RopeConfig("yarn", rope_theta=1e6, original_max_position_embeddings=4096, max_position_embeddings=16384),
        ),
        (
            {"rope_theta": 5e5, "max_position_embeddings": 8192, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            RopeConfig(
                "llama3",
                rope_theta=5e5,
                max_position_embeddings=8192,
                original_max_position_embeddings=8192,
                **LLAMA3,
            ),
        ),
        (
            {
                "rope_theta": 1e4,
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "su", **LONG},
            },
            RopeConfig(
                "longrope",
                rope_theta=1e4,
                max_position_embeddings=131072,
                original_max_position_embeddings=4096,
                **LONG,
            ),
        ),
        (
            {
                "model_type": "phi3",
                "rope_theta": 1e4,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "yarn", **LONG},
            },
            RopeConfig("longrope", rope_theta=1e4, original_max_position_embeddings=4096, **LONG),
        ),
        (
            {"rotary_emb_base": 1e4, "rotary_pct": 0.25},
            RopeConfig(rope_theta=1e4, partial_rotary_factor=0.25),
        ),
        (
            {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
            RopeConfig(rope_theta=1e4, partial_rotary_factor=0.5),
        ),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5, "rope_type": "default"}},
            RopeConfig(rope_theta=1e4, partial_rotary_factor=0.5),
        ),
        ({"rope_theta": 1e4, "rotary_dim": 64}, RopeConfig(rope_theta=1e4, rotary_dim=64)),
        (
            {
                "rope_theta": 1e6,
                "rope_local_base_freq": 1e4,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
            {
                "sliding_attention": RopeConfig(rope_theta=1e4),
                "full_attention": RopeConfig("linear", rope_theta=1e6, factor=8.0),
            },
        ),
        (
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None},
            {"sliding_attention": RopeConfig(rope_theta=1e4), "full_attention": RopeConfig(rope_theta=1e6)},
        ),
        (
            {"model_type": "olmo3", "rope_theta": 5e5, "rope_scaling": {"rope_type": "yarn", **YARN}},
            {
                "sliding_attention": RopeConfig(rope_theta=5e5),
                "full_attention": RopeConfig("yarn", rope_theta=5e5, **YARN),
            },
        ),
        (
            {
                "rope_theta": 5e5,
                "partial_rotary_factor": 0.5,
                "rope_parameters": {
                    "full_attention": {"rope_type": "yarn", "rope_theta": 1e6, "partial_rotary_factor": 1.0, **YARN},
                    "sliding_attention": {"rope_type": "default"},
                },
            },
            {
                "full_attention": RopeConfig("yarn", rope_theta=1e6, partial_rotary_factor=1.0, **YARN),
                "sliding_attention": RopeConfig(rope_theta=5e5, partial_rotary_factor=0.5),
            },
        ),
        (
            {"rope_parameters": {"full_attention": None, "sliding_attention": {"rope_theta": 1e4}}},
            {"full_attention": None, "sliding_attention": RopeConfig(rope_theta=1e4)},
        ),
        ({"position_embedding_type": "nope", "rope_theta": 1e4}, None),
        ({"alibi": True, "rope_theta": 1e4}, None),
        (
            {"rope_theta": 1e4, "head_dim": 128, "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}},
            RopeConfig(rope_theta=1e4 * 1000.0 ** (128 / 126)),
        ),
    ],
)
def test_every_spelling_is_read(raw, expected):
    assert RopeConfig.from_hf(raw) == expected


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        ({}, "rope_theta is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_theta is missing"),
        ({"rope_theta": None, "max_position_embeddings": 64}, "rope_theta is missing"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, r"rope_parameters\.full_attention"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, "contradict"),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "linear", "rope_type": "dynamic", "factor": 2.0}}, "keep one"),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "linear", "facto": 2.0}}, "unknown key 'facto'=2.0"),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "yran"}}, "'yran'"),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "ntk", "factor": 2.0}}, "'ntk'"),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "mrope", "mrope_section": [1, 2, 3]}}, "mrope_section"),
        ({"rope_theta": 1e4, "rope_scaling": {"rope_type": "default", "mrope_section": [1, 2]}}, "mrope_section"),
        ({"rope_theta": 1e4, "rope_scaling": {"rope_type": "default", "factor": 2.0}}, "factor=2.0 is not used"),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "alpha": 1000.0}}, "needs head_dim"),
        (
            {"rope_theta": 1e4, "head_dim": 8, "rope_scaling": {"type": "linear", "alpha": 2.0}},
            "form that is not known",
        ),
        ({"rope_theta": 1e4, "rope_scaling": "linear"}, "must be a mapping"),
        (
            {"rope_theta": 1e4, "rope_parameters": {"full_attention": {}, "factor": 2.0}},
            "beside layer types",
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"factor": 1}},
            "factor=1 is not used",
        ),
        (
            {
                "rope_theta": 1e4,
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "linear", "factor": 4.0},
            },
            "remove one of them",
        ),
        ({"rotary_pct": 0.25, "partial_rotary_factor": 0.5, "rope_theta": 1e4}, "rotary_pct=0.25"),
    ],
)
def test_what_cannot_be_read_raises(raw, match):
    with pytest.raises(ConfigError, match=match):
        RopeConfig.from_hf(raw)
