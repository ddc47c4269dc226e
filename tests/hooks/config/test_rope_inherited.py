"""What a schedule given in place of a model's own takes over, and what it must not."""

import math

import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hooks.config.rope import RopeConfig
from hooks.functional.rope import attention_factor

OWN_YARN = RopeConfig(
    "yarn",
    rope_theta=5e5,
    factor=8.0,
    original_max_position_embeddings=8192,
    max_position_embeddings=65536,
    attention_factor=0.1 * math.log(8) + 1,
)


@pytest.mark.parametrize(
    "changes",
    [
        {"factor": 32.0},
        {"mscale": 1.0, "mscale_all_dim": 0.5},
        {"original_max_position_embeddings": 4096},
        {"max_position_embeddings": 2**18},
    ],
)
def test_what_was_computed_from_another_value_is_not_inherited(changes):
    """Against transformers' own yarn, which computes the factor on cos and sin where none is given."""
    schedule = RopeConfig("yarn", **changes).inherit(OWN_YARN)
    assert schedule.attention_factor is None
    fields = {k: v for k, v in schedule.to_dict().items() if k != "max_position_embeddings"}
    theirs = LlamaConfig(max_position_embeddings=schedule.max_position_embeddings, rope_parameters=fields)
    _, expected = ROPE_INIT_FUNCTIONS["yarn"](theirs, "cpu")
    assert attention_factor(schedule) == pytest.approx(expected, rel=1e-12)


def test_a_derived_value_stays_where_nothing_it_comes_from_changes():
    assert RopeConfig("yarn", beta_fast=16.0).inherit(OWN_YARN).attention_factor == OWN_YARN.attention_factor
    assert RopeConfig("yarn", factor=8.0).inherit(OWN_YARN).attention_factor == OWN_YARN.attention_factor
    assert RopeConfig("yarn", factor=32.0, attention_factor=1.5).inherit(OWN_YARN).attention_factor == 1.5
