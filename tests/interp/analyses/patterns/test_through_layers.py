"""rollout against the product of dense patterns in float64, and its limits."""

import numpy as np
import pytest
import torch
from dense import dense_pattern, dense_scores
from tiny_hooked import random_tokens, tiny_model

import interp
from hooks.errors import InputError

SLIDING = {"layer_types": ("sliding_attention", "full_attention"), "window_size": 7}
SINKS = {"learned_sinks": True, "n_layers": 3}


def product(cap, layers):
    """(A_l + I) / 2 multiplied, the last layer on the left."""
    n = len(cap.positions)
    out = torch.eye(n, dtype=torch.float64)
    for layer in layers:
        spec = cap.spec(layer)
        scores = dense_scores(cap.q(layer), cap.k(layer), spec.scale, window=spec.window, softcap=spec.softcap)
        out = (dense_pattern(scores, spec.sinks).mean(0) + torch.eye(n)) / 2 @ out
    return out.numpy()


@pytest.mark.parametrize("changes", [{}, SLIDING, SINKS, {"n_key_value_heads": 1, "attn_scores_soft_cap": 2.0}])
@pytest.mark.parametrize(("n", "bins"), [(2, 64), (65, 64), (97, 7)])
def test_it_is_the_product_of_mean_patterns(changes, n, bins):
    cap = interp.capture(tiny_model(**changes), random_tokens(n)[0])
    found = interp.rollout(cap, bins)
    for layer in cap.layers:
        want = product(cap, range(layer + 1))[:, 0]
        np.testing.assert_allclose(found["first_token"].sel(layer=layer), want, atol=2e-6)
        np.testing.assert_allclose(found["first_token_mean"].sel(layer=layer), want[1:].mean(), atol=2e-6)
    whole, label = product(cap, cap.layers), np.arange(n) * min(bins, n) // n
    member = np.eye(label[-1] + 1)[label]
    want = (member / member.sum(0)).T @ whole @ member
    np.testing.assert_allclose(found["rollout"], want, atol=2e-6)


def test_under_causal_masks_the_first_token_takes_over_as_layers_are_added():
    found = interp.rollout(interp.capture(tiny_model(n_layers=6), random_tokens(60)[0]))["first_token_mean"]
    assert (found.diff("layer") > 0).all()


def test_some_layers_begin_anew_and_gaps_are_refused():
    cap = interp.capture(tiny_model(n_layers=3), random_tokens(30)[0])
    np.testing.assert_allclose(
        interp.rollout(cap, layers=[1, 2])["first_token"][-1], product(cap, [1, 2])[:, 0], atol=2e-6
    )
    with pytest.raises(InputError, match="layers that follow one another"):
        interp.rollout(cap, layers=[0, 2])
    with pytest.raises(InputError, match="bins=0"):
        interp.rollout(cap, 0)
