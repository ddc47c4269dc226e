"""pair_attainment against every product of a pair's features, and on a planted head whose pair reaches its bound."""

import numpy as np
import pytest
import torch
from dense import visible
from planted import ONE_PAIR, ONE_PAIR_INDEX, planted_kinds
from tiny_hooked import random_tokens, tiny_model

import interp
from hooks import RopeConfig
from hooks.errors import StageError

SLIDING = {"layer_types": ("sliding_attention", "full_attention"), "window_size": 7}
INTERLEAVED = {"rope": RopeConfig(rope_theta=1e4, interleaved=True)}


@pytest.mark.parametrize("changes", [SLIDING, {"n_key_value_heads": 1}, INTERLEAVED])
@pytest.mark.parametrize("n", [2, 3, 71])
def test_the_largest_is_that_of_all_visible_products(changes, n):
    cap = interp.capture(tiny_model(**changes), random_tokens(n)[0])
    found = interp.pair_attainment(cap)
    half = cap.cfg.d_head // 2
    for layer in cap.layers:
        spec, q, k = cap.spec(layer), cap.q(layer).double(), cap.k(layer).double()
        seen = visible(n, n, window=spec.window)
        for head in range(cap.cfg.n_heads):
            own = k[:, head // (q.shape[1] // k.shape[1])]
            for pair in range(half):
                at = [2 * pair, 2 * pair + 1] if cap.cfg.rope_for(layer).interleaved else [pair, pair + half]
                a, b = q[:, head, at], own[:, at]
                here = found.sel(layer=layer, head=head, pair=pair)
                largest = float((a @ b.T * spec.scale)[seen].max())
                bound = float(a.norm(dim=-1).max() * b.norm(dim=-1).max() * spec.scale)
                assert here["largest"].item() == pytest.approx(largest, abs=1e-6 * bound)
                assert here["pair_bound"].item() == pytest.approx(bound, rel=1e-9)
                assert here["attainment"].item() <= 1 + 1e-6


def test_a_planted_pair_reaches_its_bound():
    """Constant q and k, turned apart by the distance that the head looks for: there they point the same way."""
    cap = interp.capture(planted_kinds(), torch.randint(1, 40, (200,), generator=torch.Generator().manual_seed(0)))
    found = interp.pair_attainment(cap, heads=ONE_PAIR[1]).sel(layer=ONE_PAIR[0], head=ONE_PAIR[1])
    assert found["attainment"].sel(pair=ONE_PAIR_INDEX).item() == pytest.approx(1, abs=1e-3)
    others = found["pair_bound"].drop_sel(pair=ONE_PAIR_INDEX)
    assert (others == 0).all() and found["attainment"].drop_sel(pair=ONE_PAIR_INDEX).isnull().all()
    assert np.isfinite(found["wavelength"]).all()


def test_a_model_that_does_not_rotate_is_refused():
    cap = interp.capture(tiny_model(rope=None), random_tokens(5)[0])
    with pytest.raises(StageError, match="rotate"):
        interp.pair_attainment(cap)
