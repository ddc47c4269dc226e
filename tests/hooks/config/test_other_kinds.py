"""A setting of another kind than it has is named, whatever it is."""

import numpy as np
import pytest
import torch
from tiny_hooked import tiny_config

from hooks import ConfigError, HookedTransformerConfig, QKNormConfig, RopeConfig


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": True}, "seed=True"),
        ({"seed": 2**63}, "seed="),
        ({"dtype": torch.int8}, r"dtype=torch\.int8"),
        ({"dtype": "float8_e4m3fn"}, "dtype="),
        ({"device": 3}, "device=3"),
        ({"device": "nowhere"}, "device='nowhere'"),
        ({"initializer_range": -0.5}, "initializer_range="),
        ({"initializer_range": float("nan")}, "initializer_range="),
        ({"nope_layers": None}, "nope_layers=None"),
        ({"nope_layers": [True]}, "nope_layers"),
        ({"nope_layers": 0}, "nope_layers=0"),
        ({"alibi_slopes": "12"}, "alibi_slopes='12'"),
        ({"alibi_slopes": ["1", "2", "3", "4"]}, "alibi_slopes"),
        ({"layer_types": True}, "layer_types=True"),
        ({"layer_types": [["full_attention"]] * 2}, "layer_types"),
        ({"act_fn": ["silu"]}, "act_fn"),
        ({"d_model": None}, "d_model=None"),
        ({"n_heads": torch.tensor([2, 2])}, "n_heads="),
        ({"eps": 10**400}, "eps="),
    ],
)
def test_settings_of_another_kind_are_named(change, said):
    with pytest.raises(ConfigError, match=said):
        tiny_config(**change)


@pytest.mark.parametrize("given", [None, 3, "x", [], torch.ones(2)])
def test_settings_come_as_a_mapping(given):
    for read in (HookedTransformerConfig.from_dict, RopeConfig.from_dict, RopeConfig.from_hf, QKNormConfig.from_dict):
        with pytest.raises(ConfigError, match="give"):
            read(given)


@pytest.mark.parametrize("value", [[], {}, np.array([]), torch.ones(2), 10**400])
def test_a_schedule_of_another_kind_is_named(value):
    for name in ("rope_type", "rope_theta"):
        with pytest.raises(ConfigError, match=name):
            RopeConfig(**{"rope_theta": 100.0, name: value})
    with pytest.raises(ConfigError, match="kind"):
        QKNormConfig(kind=value)
