"""frequency_bias: pairs against a sum over every query and key, closed forms, a planted pair, and what it refuses."""

import numpy as np
import pytest
import torch
from dense import visible
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_hooked import random_tokens, tiny_model

from hooks import AttentionSpec, QKNormConfig, RopeConfig
from hooks.errors import InputError, MaterializationError, StageError
from interp.analyses.position.distance import positional_bias
from interp.analyses.position.frequencies import frequency_bias, frequency_scores
from interp.captures import capture
from interp.common.binning import bin_distances
from interp.measure.statistics import attention_statistics


def by_hand(q, k, scale, groups, *, causal, window):
    """[head group distance] mean over visible pairs of scale · Σ_{c in group} q_ic k_jc, and the distances."""
    n, heads, _ = q.shape
    ok = visible(n, n, causal=causal, window=window).numpy()
    delta = np.arange(n)[:, None] - np.arange(n)[None, :]
    low, high = delta[ok].min(), delta[ok].max()
    count = np.bincount((delta - low)[ok], minlength=high - low + 1)
    out = np.zeros((heads, len(groups), high - low + 1))
    for head in range(heads):
        key = k[:, head * k.shape[1] // heads].double()
        for row, group in enumerate(groups):
            s = (q[:, head, group].double() @ key[:, group].T * scale).numpy()
            out[head, row] = np.bincount((delta - low)[ok], s[ok], minlength=high - low + 1) / count
    return out, np.arange(low, high + 1)


def features_of(pairs, interleaved):
    return [[2 * i, 2 * i + 1] if interleaved else [i, i + pairs] for i in range(pairs)]


@st.composite
def problems(draw):
    kv, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    pairs, rest, n = draw(st.integers(1, 5)), draw(st.integers(0, 3)), draw(st.integers(2, 70))
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    size = draw(st.sampled_from([0.01, 1.0, 100.0]))
    q = size * torch.randn(n, kv * group, 2 * pairs + rest, generator=g) + draw(st.sampled_from([0.0, 30.0]))
    k = torch.randn(n, kv, 2 * pairs + rest, generator=g)
    return {
        "q": q.to(draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))),
        "k": k,
        "pairs": pairs,
        "interleaved": draw(st.booleans()),
        "causal": draw(st.booleans()),
        "window": draw(st.none() | st.integers(1, 90)),
    }


@settings(max_examples=60)
@given(problems(), st.sampled_from(["all", "binned"]))
def test_each_pair_equals_the_sum_over_all_queries_and_keys(problem, distances):
    q, k, pairs = problem["q"], problem["k"], problem["pairs"]
    spec = AttentionSpec(scale=0.37, causal=problem["causal"], window=problem["window"])
    inv_freq = 100.0 ** (-torch.arange(pairs) / pairs)
    found = frequency_scores(q, k, spec, inv_freq, interleaved=problem["interleaved"], distances=distances)
    groups = features_of(pairs, problem["interleaved"])
    expected, distance = by_hand(q, k, 0.37, groups, causal=spec.causal, window=spec.window)
    rest, _ = by_hand(q, k, 0.37, [list(range(2 * pairs, q.shape[2]))], causal=spec.causal, window=spec.window)
    tolerance = 1e-12 * (1 + float(q.abs().max()))
    if distances == "all":
        np.testing.assert_array_equal(found["distance"], distance)
    else:
        count = q.shape[0] - abs(distance)
        first, last = found["first_distance"].values, found["last_distance"].values
        assert (first[0], last[-1]) == (distance[0], distance[-1])
        assert (first[1:] == last[:-1] + 1).all()
        inside = [(distance >= a) & (distance <= b) for a, b in zip(first, last, strict=True)]
        expected, rest = (
            np.stack([(x[..., here] * count[here]).sum(-1) / count[here].sum() for here in inside], -1)
            for x in (expected, rest)
        )
        np.testing.assert_array_equal(found["count"], [count[here].sum() for here in inside])
    np.testing.assert_allclose(found["score_mean"], expected, rtol=1e-11, atol=tolerance)
    np.testing.assert_allclose(found["score_mean_rest"], rest[:, 0], rtol=1e-11, atol=tolerance)
    for name, x in (("q_norm", q), ("k_norm", k.repeat_interleave(q.shape[1] // k.shape[1], 1))):
        norms = [x[:, :, pair].double().square().sum(-1).mean(0).sqrt().numpy() for pair in groups]
        np.testing.assert_allclose(found[name], np.stack(norms, 1), rtol=1e-5)


@pytest.mark.parametrize("position", ["before_rope", "after_rope"])
@pytest.mark.parametrize(
    "rope",
    [
        RopeConfig(rope_theta=500.0),
        RopeConfig(rope_theta=500.0, rotary_dim=6, interleaved=True),
        RopeConfig(rope_type="proportional", rope_theta=500.0, partial_rotary_factor=0.5),
    ],
    ids=["whole", "partial", "proportional"],
)
def test_the_pairs_of_a_capture_sum_to_what_the_pass_measures(position, rope):
    model = tiny_model(
        rope=rope,
        qk_norm=QKNormConfig(position=position),
        layer_types=("sliding_attention", "full_attention"),
        window_size=17,
    )
    cap = capture(model, random_tokens(83)[0])
    found, whole = frequency_bias(cap), positional_bias(cap)
    assert found.attrs["analysis"] == "frequency_bias"
    assert found["score_mean"].dims == ("layer", "head", "pair", "distance")
    summed = found["score_mean"].sum("pair", skipna=False) + found["score_mean_rest"]
    np.testing.assert_allclose(summed, whole["score_mean"], atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(found["count"], whole["count"])
    assert np.isnan(found["score_mean"].sel(layer=0, distance=17)).all()
    frequencies = cap.constants(0).inv_freq.double().numpy()
    np.testing.assert_allclose(found["inv_freq"].sel(layer=1), frequencies)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(found["wavelength"].sel(layer=0), 2 * np.pi / frequencies)
    beyond_the_pairs = found["score_mean_rest"].sel(layer=1)
    assert bool((beyond_the_pairs == 0).all()) == (rope.rotary_dim is None)
    binned, expected = frequency_bias(cap, distances="binned"), bin_distances(whole)
    summed = binned["score_mean"].sum("pair", skipna=False) + binned["score_mean_rest"]
    np.testing.assert_array_equal(binned["first_distance"], expected["first_distance"])
    np.testing.assert_allclose(summed, expected["score_mean"], atol=1e-5, rtol=1e-5)


def test_chosen_layers_and_heads_are_parts_of_the_whole():
    cap = capture(tiny_model(), random_tokens(40)[0])
    whole, part = frequency_bias(cap), frequency_bias(cap, 1, [3, 1])
    assert part["head"].values.tolist() == [3, 1]
    for name in ("score_mean", "q_norm", "k_norm", "score_mean_rest"):
        np.testing.assert_allclose(part[name], whole[name].sel(layer=[1], head=[3, 1]), atol=1e-12)


def test_constant_queries_and_keys_draw_each_pairs_cosine():
    n, pairs = 500, 8
    inv_freq = 300.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    angle = torch.arange(n, dtype=torch.float64)[:, None] * inv_freq
    size = torch.linspace(0.5, 2, pairs, dtype=torch.float64)
    q = torch.cat([size * angle.cos(), size * angle.sin()], 1)[:, None]
    found = frequency_scores(q, q, AttentionSpec(scale=0.25), inv_freq)
    expected = 0.25 * size[:, None] ** 2 * (inv_freq[:, None] * torch.arange(n)).cos()
    np.testing.assert_allclose(found["score_mean"][0], expected, atol=1e-11)
    np.testing.assert_allclose(found["q_norm"][0], size, rtol=1e-12)
    first_crest = found["score_mean"][0, 5, 10:350].argmax().item() + 10
    assert first_crest == pytest.approx(found["wavelength"].values[5], abs=1)


def test_far_distances_keep_their_digits():
    n = 300_007
    g = torch.Generator().manual_seed(3)
    q, k = 40 + torch.randn(n, 1, 2, generator=g), 40 + torch.randn(n, 1, 2, generator=g)
    found = frequency_scores(q, k, AttentionSpec(scale=1.0), torch.ones(1))["score_mean"].values[0, 0]
    for distance in (0, 1, 77_777, n - 1000, n - 3, n - 2, n - 1):
        direct = (q[distance:, 0].double() * k[: n - distance, 0].double()).sum(1).mean().item()
        assert found[distance] == pytest.approx(direct, rel=1e-9), distance


def test_a_head_that_uses_one_pair_is_found():
    planted, n = {0: 5, 1: 2, 2: 0, 3: 7}, 90
    model = tiny_model(qk_norm=None, attn_bias=True, n_key_value_heads=4)
    with torch.no_grad():
        for block in model.blocks:
            for name in ("q_proj", "k_proj"):
                getattr(block.attn, name).weight.zero_()
            block.attn.b_Q.zero_()
            block.attn.b_K.zero_()
            for head, pair in planted.items():
                block.attn.b_Q[head, pair], block.attn.b_K[head, pair + 8] = 3.0, 2.0
    found = frequency_bias(capture(model, random_tokens(n)[0]))
    frequencies = 10_000.0 ** (-np.arange(8) / 8)
    for head, pair in planted.items():
        mine = found.sel(head=head)
        expected = model.cfg.scale * 6 * np.sin(frequencies[pair] * np.arange(n))
        np.testing.assert_allclose(mine["score_mean"].sel(pair=pair), np.broadcast_to(expected, (2, n)), atol=1e-4)
        others = mine.drop_sel(pair=pair)
        assert float(abs(others["score_mean"]).max()) < 1e-12
        assert mine["q_norm"].argmax("pair").values.tolist() == [pair, pair]
        np.testing.assert_allclose(mine["k_norm"].sel(pair=pair), 2, rtol=1e-6)


def test_layers_that_do_not_rotate_are_left_out_or_refused():
    cap = capture(tiny_model(nope_layers=(1,)), random_tokens(30)[0])
    assert frequency_bias(cap)["layer"].values.tolist() == [0]
    with pytest.raises(StageError, match="layer 1 does not rotate; layers of this capture that rotate: 0"):
        frequency_bias(cap, [0, 1])
    with pytest.raises(StageError, match="none rotates"):
        frequency_bias(capture(tiny_model(rope=None), random_tokens(30)[0]))
    with pytest.raises(StageError, match="no head 4: the heads are 0 to 3"):
        frequency_bias(cap, heads=4)
    for wrong in (1.7, [True, False, True, False], ["1"]):
        with pytest.raises(StageError, match=r"heads=.*: give a whole number, or several"):
            frequency_bias(cap, heads=wrong)


def test_it_says_when_scores_are_soft_capped():
    cap = capture(tiny_model(attn_scores_soft_cap=3.0), random_tokens(30)[0])
    assert frequency_bias(cap).attrs["softcapped_layers"] == "0-1"
    assert "softcapped_layers" not in frequency_bias(capture(tiny_model(), random_tokens(30)[0])).attrs


def test_bad_input_is_named(monkeypatch):
    x, spec, frequency = torch.ones(9, 2, 4), AttentionSpec(scale=1.0), torch.ones(2)
    bad = x.clone()
    bad[3, 1, 2] = torch.nan
    with pytest.raises(InputError, match="q holds NaN or infinity, first at position 3, head 1"):
        frequency_scores(bad, x, spec, frequency)
    with pytest.raises(InputError, match="needs at least 2"):
        frequency_scores(x[:1], x[:1], spec, frequency)
    with pytest.raises(InputError, match="do not fit heads of 4"):
        frequency_scores(x, x, spec, torch.ones(3))
    with pytest.raises(InputError, match="the heads of q a multiple"):
        frequency_scores(x, torch.ones(9, 3, 4), spec, frequency)
    with pytest.raises(InputError, match="choose from all, binned"):
        frequency_scores(x, x, spec, frequency, distances="every")
    cap = capture(tiny_model(), random_tokens(30)[0])
    cap.positions = cap.positions * 2
    with pytest.raises(InputError, match="positions have gaps"):
        frequency_bias(cap)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 100}))
    with pytest.raises(MaterializationError, match='distances="binned"'):
        frequency_scores(x, x, spec, frequency)


def test_unknown_frequencies_are_named():
    from interp.captures import Capture

    model = tiny_model()
    tokens = random_tokens(12)
    _, cache = model.run_with_cache(tokens)
    cap = Capture.from_cache(cache)
    assert frequency_bias(cap).sizes["layer"] == 2
    held = cap._layers[0]
    object.__setattr__(held.constants, "inv_freq", None)
    with pytest.raises(StageError, match="frequencies of layer 0 are not known"):
        frequency_bias(cap)


def test_the_statistics_pass_agrees_on_plain_tensors():
    g = torch.Generator().manual_seed(8)
    q, k = torch.randn(131, 6, 10, generator=g), torch.randn(131, 2, 10, generator=g)
    spec = AttentionSpec(scale=0.3, window=50)
    found = frequency_scores(q, k, spec, torch.ones(5))
    measured = attention_statistics(q, k, spec, groups=("distances",))
    np.testing.assert_allclose(found["score_mean"].sum("pair"), measured["score_mean"], atol=1e-5)
