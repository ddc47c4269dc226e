"""Layers asked for: the same refusal, in the same words, from everything that takes them."""

import pytest
from tiny_hooked import random_tokens, tiny_model

import interp
from hooks.errors import StageError
from interp.captures import capture


@pytest.fixture(scope="module")
def cap():
    return capture(tiny_model(), random_tokens(20))


@pytest.mark.parametrize(
    "ask",
    [
        lambda cap, layers: cap.select(layers),
        lambda cap, layers: cap.statistics(layers),
        lambda cap, layers: interp.head_summary(cap, layers),
        lambda cap, layers: interp.score_ranges(cap, layers),
        lambda cap, layers: interp.bound_by_distance(cap, layers),
        lambda cap, layers: interp.precision_cost(cap, layers),
        lambda cap, layers: interp.frequency_bias(cap, layers),
        lambda cap, layers: interp.relativity_error(cap, layers=layers),
        lambda cap, layers: capture(tiny_model(), random_tokens(20), layers=layers),
    ],
)
def test_no_layer_and_what_is_no_number_are_refused_by_all(cap, ask):
    with pytest.raises(StageError, match="no layer was asked for: name at least one of 0-1"):
        ask(cap, ())
    for wrong in ("01", [0.9], [None]):
        with pytest.raises(StageError, match=r"^layers=.*: give a whole number, or several"):
            ask(cap, wrong)
