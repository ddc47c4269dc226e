"""Attention received by position and sinks: sums over dense patterns, closed forms, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from dense import dense_pattern, dense_scores, visible
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_hooked import random_tokens, tiny_model

from hooks import AttentionSpec, QKNormConfig
from hooks.errors import InputError
from interp.analyses.position.received import queries_seeing, received_by_position
from interp.analyses.position.sinks import sink_rate
from interp.captures import Capture, capture

SLIDING = {"layer_types": ("sliding_attention", "full_attention"), "window_size": 19}


def patterns(cap, layer):
    """Dense pattern [head query key] and ‖v_j W_O‖ [head key] of a captured layer."""
    spec = cap.spec(layer)
    scores = dense_scores(cap.q(layer), cap.k(layer), spec.scale, window=spec.window)
    w_o, v = cap.constants(layer).w_o.double(), cap.v(layer).double()
    moved = torch.stack([(v[:, h * v.shape[1] // w_o.shape[0]] @ w_o[h]).norm(dim=-1) for h in range(w_o.shape[0])])
    return dense_pattern(scores).numpy(), moved.numpy()


@settings(max_examples=25)
@given(n=st.integers(1, 60), window=st.none() | st.integers(1, 80), causal=st.booleans())
def test_queries_that_see_a_key_are_counted(n, window, causal):
    expected = visible(n, n, causal=causal, window=window).sum(0)
    np.testing.assert_array_equal(queries_seeing(AttentionSpec(1.0, causal=causal, window=window), n), expected)


def test_values_of_zero_have_no_share():
    cap = capture(tiny_model(), random_tokens(9)[0])
    for layer in cap.layers:
        cap.v(layer).zero_()
    ds = received_by_position(cap)
    assert ds["received_value_share"].isnull().all()
    np.testing.assert_allclose(ds["received_share"].sum("part"), 1, rtol=1e-6)


@pytest.mark.parametrize(("n", "bins"), [(97, 10), (40, 64)])
def test_the_profile_is_that_of_the_dense_pattern(n, bins):
    cap = capture(tiny_model(**SLIDING), random_tokens(n)[0])
    found = received_by_position(cap, bins=bins, edge=0.2)
    assert found.attrs["analysis"] == "received_by_position"
    first, last = found["first_position"].values, found["last_position"].values
    assert (first[0], last[-1], len(first)) == (0, n - 1, min(n, bins))
    edge = round(0.2 * n)
    parts = [slice(0, edge), slice(edge, n - edge), slice(n - edge, n)]
    for layer in (0, 1):
        p, moved = patterns(cap, layer)
        ok = visible(n, n, window=cap.spec(layer).window).numpy()
        even = ok / ok.sum(1, keepdims=True)
        for x, mean, share in (
            (p, "received_mean", "received_share"),
            (p * moved[:, None], "received_value_mean", "received_value_share"),
            (even, "uniform_mean", "uniform_share"),
        ):
            per_key = x.sum(-2) / ok.sum(0)
            expected = [per_key[..., a : b + 1].mean(-1) for a, b in zip(first, last, strict=True)]
            np.testing.assert_allclose(found[mean].sel(layer=layer), np.stack(expected, -1), rtol=1e-4)
            expected = np.stack([x[..., part].sum((-2, -1)) for part in parts], -1) / x.sum((-2, -1))[..., None]
            np.testing.assert_allclose(found[share].sel(layer=layer), expected, rtol=1e-4)


def test_a_head_without_preferences_equals_the_uniform_profile():
    model = tiny_model(qk_norm=None)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.q_proj.weight.zero_()
    found = received_by_position(capture(model, random_tokens(80)[0]), bins=80)
    for head in range(4):
        np.testing.assert_allclose(found["received_mean"].sel(head=head), found["uniform_mean"], rtol=1e-5)
        np.testing.assert_allclose(found["received_share"].sel(head=head), found["uniform_share"], rtol=1e-5)
    harmonic = sum(1 / i for i in range(1, 81)) / 80
    assert found["uniform_mean"][0, 0].item() == pytest.approx(harmonic)
    np.testing.assert_allclose(found["uniform_share"].sum("part"), 1)


def planted(key, size):
    """A model without rotation whose heads all give `key` a score larger by `size`."""
    model = tiny_model(qk_norm=None, rope=None, n_key_value_heads=4, attn_bias=True)
    with torch.no_grad():
        model.embed.weight[:, 0] = 0
        model.embed.weight[key] = 0
        model.embed.weight[key, 0] = 1
        block = model.blocks[0]
        block.ln1.weight.fill_(1)
        for projection in (block.attn.q_proj, block.attn.k_proj):
            projection.weight.zero_()
            projection.bias.zero_()
        block.attn.b_Q[:, 0] = size / (model.cfg.scale * model.cfg.d_model**0.5)
        block.attn.W_K[:, 0, 0] = 1
    return model


@pytest.mark.parametrize(("k", "size"), [(1, 5.0), (4, 3.0)])
def test_a_planted_sink_has_its_closed_form(k, size):
    n = 50
    tokens = torch.cat([torch.arange(1, k), torch.tensor([0]), torch.arange(k, n)])[:n]
    found = sink_rate(capture(planted(0, size), tokens, layers=0), k)
    e = math.exp(size)
    expected = sum(e / (e + i) for i in range(k - 1, n)) / (n - k + 1)
    np.testing.assert_allclose(found["sink_score"], expected, rtol=1e-3)
    assert float(found["sink_rate"]) == 1 and bool(found["is_sink"].all())
    assert float(sink_rate(capture(planted(0, size), tokens, layers=0), k, epsilon=expected + 0.01)["sink_rate"]) == 0
    assert found["sink_rate"].attrs["formula"] == "mean over heads of [α_k > 0.3]"
    other = sink_rate(capture(planted(0, size), tokens, layers=0), k + 1)
    assert float(other["sink_rate"]) == 0


@pytest.mark.parametrize("k", [1, 3, 30])
def test_sink_scores_of_real_patterns(k):
    n = 47
    cap = capture(tiny_model(**SLIDING, qk_norm=QKNormConfig(scale=3.0)), random_tokens(n)[0])
    found = sink_rate(cap, k, epsilon=0.07)
    scores = []
    for layer in (0, 1):
        p, _ = patterns(cap, layer)
        seen = visible(n, n, window=cap.spec(layer).window).numpy()[:, k - 1].sum()
        scores.append(p[:, :, k - 1].sum(1) / seen)
    np.testing.assert_allclose(found["sink_score"], scores, rtol=1e-4)
    assert float(found["sink_rate"]) == pytest.approx(np.mean(np.asarray(scores) > 0.07))


def test_bad_input_is_named():
    model = tiny_model()
    with pytest.raises(InputError, match="2 tokens have no begin, middle and end"):
        received_by_position(capture(model, random_tokens(2)[0]))
    cap = capture(model, random_tokens(9)[0])
    with pytest.raises(InputError, match=r"edge=0.5: give a number above 0 and below 0.5"):
        received_by_position(cap, edge=0.5)
    with pytest.raises(InputError, match="whether token 9 is a sink shows only after it"):
        sink_rate(cap, 9)
    with pytest.raises(InputError, match="k=0: give a whole number of at least 1"):
        sink_rate(cap, 0)
    assert received_by_position(capture(model, random_tokens(3)[0]))["received_share"].shape == (2, 4, 3)


def test_without_values_there_is_no_weighted_twin():
    model = tiny_model()
    _, cache = model.run_with_cache(
        random_tokens(20), names_filter=lambda name: name.endswith(("hook_rot_q", "hook_rot_k"))
    )
    found = received_by_position(Capture.from_cache(cache))
    assert set(found.data_vars) == {"received_mean", "received_share", "uniform_mean", "uniform_share"}
