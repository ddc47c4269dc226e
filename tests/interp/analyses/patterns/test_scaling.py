"""Slopes of entropy and coverage, and rollout: closed forms, dense products, and what the literature reports."""

import math

import numpy as np
import pytest
import torch
from dense import dense_pattern, dense_scores
from planted import PREVIOUS, UNIFORM, planted_kinds
from tiny_hooked import random_tokens, tiny_model

import interp
from hooks import HookedTransformer
from hooks.errors import InputError
from interp.analyses.patterns.scaling import slope


def test_a_uniform_head_has_slope_one_and_one_that_looks_one_token_back_none():
    cap = interp.capture(planted_kinds(), torch.randint(1, 40, (300,), generator=torch.Generator().manual_seed(0)))
    found = interp.entropy_scaling(cap, layers=0)
    for name in ("entropy_slope", "coverage_slope"):
        assert found[name].sel(head=UNIFORM[1]).item() == pytest.approx(1, abs=0.02)
        assert abs(found[name].sel(head=PREVIOUS[1]).item()) < 0.01
    assert found["entropy_slope_stderr"].sel(head=UNIFORM[1]).item() < 1e-5
    assert found["queries"].item() == 300 - 15


def test_a_slope_is_that_of_least_squares_and_its_error_covers_it():
    """Of independent noise the error is the textbook's; of noise that lasts it is larger."""
    generator = np.random.default_rng(0)
    x = np.log(np.arange(16, 2016))
    found, errors = [], []
    for _ in range(200):
        noise = generator.normal(size=x.size)
        b, error = slope(x, 0.5 * x + noise)
        expected = np.polyfit(x, 0.5 * x + noise, 1)[0]
        assert b == pytest.approx(expected, rel=1e-9)
        found.append(b)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(found), rel=0.15)
    lasting = np.convolve(generator.normal(size=x.size + 4), np.ones(5), "valid")
    _, error = slope(x, lasting)
    assert error > 3 * np.mean(errors)


def test_a_window_that_is_full_and_few_queries_have_no_slope():
    cap = interp.capture(tiny_model(layer_types=("sliding_attention",) * 2, window_size=4), random_tokens(40)[0])
    assert interp.entropy_scaling(cap, at_least=4)["entropy_slope"].isnull().all()
    short = interp.capture(tiny_model(), random_tokens(2)[0])
    assert interp.entropy_scaling(short)["coverage_slope"].isnull().all()


@pytest.mark.parametrize("changes", [{}, {"n_key_value_heads": 1}, {"alibi_slopes": (1.0, 0.5, 0.2, 0.1)}])
@pytest.mark.parametrize(("n", "bins"), [(2, 64), (33, 5)])
def test_rollout_is_the_product_of_the_dense_patterns(changes, n, bins):
    kinds = {"layer_types": ("sliding_attention", "full_attention"), "window_size": 7}
    cap = interp.capture(tiny_model(**kinds, **changes), random_tokens(n)[0])
    found, product = interp.rollout(cap, bins), torch.eye(n, dtype=torch.float64)
    for at, layer in enumerate(cap.layers):
        spec = cap.spec(layer)
        rules = {"window": spec.window, "alibi_slopes": spec.alibi_slopes}
        pattern = dense_pattern(dense_scores(cap.q(layer), cap.k(layer), spec.scale, **rules)).mean(0)
        product = (pattern + torch.eye(n)) / 2 @ product
        np.testing.assert_allclose(found["first_token"].values[at], product[:, 0], atol=2e-6)
        mean = float(product[1:, 0].mean())
        assert found["first_token_mean"].values[at] == pytest.approx(mean, abs=2e-6)
    bins = min(bins, n)
    label = np.arange(n) * bins // n
    dense = np.array(
        [[product.numpy()[label == a][:, label == b].sum(1).mean() for b in range(bins)] for a in range(bins)]
    )
    np.testing.assert_allclose(found["rollout"], dense, atol=5e-6)
    np.testing.assert_allclose(found["rollout"].sum("map_key"), 1, atol=1e-5)


def test_uniform_layers_send_everything_to_the_first_token():
    """With uniform attention (A + I) / 2 takes half of query 1's mass to token 0, of which it keeps (3/4)^layers."""
    cap = interp.capture(planted_kinds(), torch.randint(1, 40, (50,), generator=torch.Generator().manual_seed(0)))
    for layer in cap.layers:
        cap.q(layer).zero_()
    for depth, at in ((1, 0), (2, 1)):
        kept = interp.rollout(cap)["first_token"].values[at, 1]
        assert kept == pytest.approx(1 - 0.75**depth, abs=1e-6)


def test_layers_with_a_gap_are_refused():
    cap = interp.capture(tiny_model(n_layers=3), random_tokens(5)[0])
    with pytest.raises(InputError, match="follow one another"):
        interp.rollout(cap, layers=[0, 2])


@pytest.mark.slow
def test_full_layers_of_gemma_spread_with_slopes_that_are_known_and_rollout_tends_to_the_first_token():
    """Entropy against ln of the keys seen at 8,192 tokens: 0.27 to 0.74; rollout grows with depth (2502.01951)."""
    model = HookedTransformer.from_pretrained("gemma3-270m")
    cap = interp.capture(model, interp.standard_text(), n_tokens=8192, stages=(), loss=False)
    full = [layer for layer in cap.layers if model.cfg.layer_type(layer) == "full_attention"]
    slopes = interp.entropy_scaling(cap, layers=full)["entropy_slope"].values
    assert math.isclose(slopes.min(), 0.27, abs_tol=0.03) and math.isclose(slopes.max(), 0.74, abs_tol=0.03)
    mass = interp.rollout(cap)["first_token_mean"].values
    assert (np.diff(mass) > 0).all() and mass[-1] > 0.5
