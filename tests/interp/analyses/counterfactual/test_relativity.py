"""relativity_error: rounding where theory says that scores depend on distance alone, and the true change where not."""

import numpy as np
import pytest
import torch
from by_hand import rms, rotate
from dense import dense_scores
from tiny_hooked import random_tokens, tiny_model

from hooks import QKNormConfig, RopeConfig
from hooks.errors import InputError, StageError
from hooks.functional.rope import inv_freq
from interp.analyses.counterfactual.relativity import relativity_error
from interp.captures import capture

N, SHIFTS = 60, (1, 1_000, 100_000)
AFTER = QKNormConfig(position="after_rope")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qk_norm": None, "clip_qkv": 0.5},
        {"qk_norm": QKNormConfig(kind="layer", bias=True, scope="full")},
        {"qk_norm": QKNormConfig(position="after_rope", affine=False)},
        {"qk_norm": QKNormConfig(kind="l2", position="after_rope", affine=False, scale=10.0)},
        {"rope": RopeConfig(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=16)},
        {"rope": RopeConfig(rope_theta=1e4, rotary_dim=6, interleaved=True), "window_size": 11},
        {"rope_in_float32": True, "dtype": torch.bfloat16},
    ],
    ids=["norm, rope", "clip, rope", "layer norm, rope", "rope, rms", "rope, l2", "yarn", "partial", "float32 tables"],
)
def test_scores_depend_on_distance_alone(changes):
    found = relativity_error(capture(tiny_model(**changes), random_tokens(N)[0]), SHIFTS)
    assert found["shift"].values.tolist() == list(SHIFTS)
    assert float(found["relativity_error"].max()) < 1e-8
    assert float(found["score_std"].min()) > 0


def test_equal_gains_in_each_pair_keep_the_relation_and_unequal_ones_break_it():
    model = tiny_model(qk_norm=AFTER)
    cap = capture(model, random_tokens(N)[0])
    broken = relativity_error(cap, SHIFTS)
    assert float(broken["relativity_error"].min()) > 0.01
    assert broken["steps"].values.tolist() == ["rope, norm", "rope, norm"]
    with torch.no_grad():
        for block in model.blocks:
            for norm in (block.attn.q_norm, block.attn.k_norm):
                norm.weight[8:] = norm.weight[:8]
    kept = relativity_error(capture(model, random_tokens(N)[0]), SHIFTS)
    assert float(kept["relativity_error"].max()) < 1e-8


@pytest.mark.parametrize("shift", [7, 5_003])
def test_the_change_is_that_of_the_scores_computed_by_hand(shift):
    model = tiny_model(qk_norm=AFTER, layer_types=("sliding_attention", "full_attention"), window_size=13)
    cap = capture(model, random_tokens(N)[0])
    found = relativity_error(cap, shift, n_queries=1000)
    for layer in (0, 1):
        attn = model.blocks[layer].attn
        scores = []
        for start in (0, shift):
            position = torch.arange(N) + start
            q, k = (rotate(x(layer, "pre_rope").double(), position, 10_000.0) for x in (cap.q, cap.k))
            q, k = rms(q, attn.q_norm.weight.double(), 1e-6), rms(k, attn.k_norm.weight.double(), 1e-6)
            scores.append(dense_scores(q, k, model.cfg.scale, window=cap.spec(layer).window).detach())
        for head in range(4):
            seen = torch.isfinite(scores[0][head])
            before, after = (s[head][seen] for s in scores)
            one = found.sel(layer=layer, head=head, shift=shift)
            assert float(one["score_std"]) == pytest.approx(float(before.std(correction=0)), rel=1e-5)
            assert float(one["score_change_max"]) == pytest.approx(float((after - before).abs().max()), rel=1e-4)
            assert float(one["score_change_rms"]) == pytest.approx(
                float((after - before).square().mean().sqrt()), rel=1e-4
            )
    np.testing.assert_allclose(
        found["relativity_error"][..., 0], found["score_change_rms"][..., 0] / found["score_std"]
    )


def test_learned_frequencies_are_the_ones_that_turn():
    model = tiny_model(qk_norm=AFTER, rope=RopeConfig(rope_theta=10_000.0, learnable=True))
    fixed = tiny_model(qk_norm=AFTER, rope=RopeConfig(rope_theta=500.0))
    with torch.no_grad():
        model.rotary.full_attention.inv_freq.copy_(inv_freq(fixed.cfg.rope, 16)[0])
    learned, expected = (relativity_error(capture(m, random_tokens(N)[0]), 50) for m in (model, fixed))
    np.testing.assert_allclose(learned["score_change_rms"], expected["score_change_rms"], rtol=1e-4)


def test_float32_angles_lose_digits_far_out():
    model = tiny_model(rope=RopeConfig(rope_theta=10_000.0, precision="float32"))
    cap = capture(model, random_tokens(N)[0], layers=0)
    rounded = relativity_error(cap, SHIFTS, dtype=torch.float32)["relativity_error"].max("head")[0].values
    assert rounded[0] < 1e-4
    assert 1e-4 < rounded[2] < 0.1
    assert float(relativity_error(cap, SHIFTS)["relativity_error"].max()) < 1e-8


def test_few_queries_stand_for_all():
    cap = capture(tiny_model(qk_norm=AFTER), random_tokens(400)[0], layers=1)
    few, every = (relativity_error(cap, 50, n_queries=n) for n in (40, 400))
    np.testing.assert_allclose(few["score_change_rms"], every["score_change_rms"], rtol=0.1)
    assert few.attrs["compared"] == "40 of 400 queries, in float64"


def test_bad_input_is_named():
    cap = capture(tiny_model(nope_layers=(1,)), random_tokens(N)[0])
    assert relativity_error(cap)["layer"].values.tolist() == [0]
    with pytest.raises(StageError, match="layer 1 does not rotate"):
        relativity_error(cap, layers=1)
    with pytest.raises(
        InputError, match=r"n_queries=0: give a whole number of at least 1|shifts is empty: give at least one"
    ):
        relativity_error(cap, ())
    with pytest.raises(StageError, match=r"stages=\('pre_rope',\)"):
        relativity_error(capture(tiny_model(), random_tokens(N)[0], stages=()))
    broken = capture(tiny_model(), random_tokens(N)[0])
    broken.k(1, "pre_rope")[5, 0] = torch.nan
    with pytest.raises(InputError, match="scores of layer 1, head 0 hold NaN"):
        relativity_error(broken)
