"""A description of attention that describes none is refused."""

import math

import pytest
import torch

from hooks import AttentionSpec, ConfigError

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": 0.0}, {"scale": -1.0}, {"scale": NAN}, {"scale": "1"}, {"scale": True}, {"window": 0},
        {"window": -1}, {"window": NAN}, {"window": 4.0}, {"window": True}, {"softcap": 0.0}, {"softcap": -1.0},
        {"softcap": INF}, {"softcap": NAN}, {"causal": "no"}, {"causal": 1}, {"causal": None}, {"sinks": [1.0]},
        {"sinks": torch.zeros(2, 2)}, {"alibi_slopes": 0.5}, {"alibi_slopes": "12"}, {"alibi_slopes": (NAN,)},
        {"alibi_slopes": ("a",)},
    ],
    ids=str,
)  # fmt: skip
def test_it_names_the_field_and_the_value(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=rf"^{name}="):
        AttentionSpec(**({"scale": 1.0} | wrong))


def test_lists_and_numpy_numbers_become_plain_values():
    spec = AttentionSpec(1.0, window=torch.tensor(3), alibi_slopes=[1, 0.5])
    assert type(spec.window) is int and spec.alibi_slopes == (1.0, 0.5)
    assert spec == AttentionSpec(1.0, window=3, alibi_slopes=(1.0, 0.5)) and hash(spec) == hash(spec)
