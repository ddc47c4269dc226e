"""Frequencies that a cast has rounded are told from those of the schedule, whatever the family and the schedule."""

import pytest
import torch
from tiny import CASES, tiny_model

from hooks import HookedTransformer, RopeConfig
from hooks.functional.live_frequencies import unlike_schedule


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_the_buffers_of_transformers_are_their_schedule_until_they_are_cast(family, kind):
    model = tiny_model(family, rope_type=kind)
    cfg = HookedTransformer.from_pretrained(model).cfg
    ropes = [rope for rope in (cfg.rope_for(layer) for layer in range(cfg.n_layers)) if rope is not None]
    assert unlike_schedule(model.named_buffers(), ropes, cfg.d_head) == {}
    rounded = unlike_schedule(model.to(torch.bfloat16).float().named_buffers(), ropes, cfg.d_head)
    # 1, 1/2, 1/4, … survive the cast, and so does what has one pair only.
    assert all("inv_freq" in name and 1e-5 < error < 2**-8 for name, error in rounded.items())
    kept = any("inv_freq" in name for name, _ in model.named_buffers())  # GPT-J keeps sines instead
    assert rounded or not kept or ropes[0].partial_rotary_factor


def test_what_has_another_width_is_left_out():
    rope = RopeConfig(rope_theta=1e4)
    frequencies = 1e4 ** (-torch.arange(0, 32, 2) / 32)
    buffers = [("a.inv_freq", frequencies), ("b.original_inv_freq", frequencies * 2), ("tower.inv_freq", torch.ones(3))]
    assert unlike_schedule(buffers, [rope], 32) == {}
    found = unlike_schedule([("a.inv_freq", frequencies * 1.5)], [rope], 32)
    assert found == {"a.inv_freq": pytest.approx(0.5, rel=1e-5)}
