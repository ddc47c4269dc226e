"""positional_bias by its definition, value-weighted twins included, and the bins that merge it."""

import numpy as np
import pytest
import torch
from dense import dense_pattern, dense_scores, visible
from hypothesis import given
from hypothesis import strategies as st
from tiny_hooked import random_tokens, tiny_model

from interp.analyses.position.distance import positional_bias
from interp.captures import Capture, capture
from interp.common.binning import bin_distances, bin_starts


@pytest.fixture(scope="module")
def cap():
    model = tiny_model(layer_types=("sliding_attention", "full_attention"), window_size=23)
    return capture(model, random_tokens(61)[0])


def test_every_variable_by_its_definition(cap):
    found, n = positional_bias(cap), 61
    delta = np.arange(n)[:, None] - np.arange(n)[None, :]
    assert found.attrs["analysis"] == "positional_bias"
    for layer, window in ((0, 23), (1, None)):
        assert found["window"].sel(layer=layer).item() == (window or 0)
        ok = visible(n, n, window=window).numpy()
        s = dense_scores(cap.q(layer), cap.k(layer), cap.spec(layer).scale, window=window)
        p = dense_pattern(s).numpy()
        v, w_o = cap.v(layer).double(), cap.constants(layer).w_o.double()
        for head in range(4):
            moved = (v[:, head // 2] @ w_o[head]).norm(dim=-1).numpy()
            one = found.sel(layer=layer, head=head)
            for distance in (0, 1, 22, 23, 60):
                here = ok & (delta == distance)
                at = one.sel(distance=distance)
                assert at["count"].item() == here.sum()
                if not here.any():
                    assert np.isnan(at["attention_mean"]) and np.isnan(at["attention_value_share"])
                    continue
                for name, x in (("attention", p[head]), ("attention_value", p[head] * moved)):
                    assert at[f"{name}_mean"].item() == pytest.approx(x[here].mean(), rel=1e-4)
                    assert at[f"{name}_share"].item() == pytest.approx(x[here].sum() / x.sum(), rel=1e-4)
                scores = s[head].numpy()[here]
                expected = {"mean": scores.mean(), "std": scores.std(), "min": scores.min(), "max": scores.max()}
                for name, value in expected.items():
                    assert at[f"score_{name}"].item() == pytest.approx(value, rel=1e-4, abs=1e-4), name
    for name in ("attention_value_mean", "attention_value_share"):
        assert {"units", "description", "formula", "source"} <= set(found[name].attrs)


def test_bins_merge_the_weighted_twins_too(cap):
    whole = positional_bias(cap)
    binned = bin_distances(whole)
    n = whole["count"].sum("distance")
    for name in ("attention_mean", "attention_value_mean"):
        total = (binned[name].fillna(0) * binned["count"]).sum("distance_bin")
        np.testing.assert_allclose(total, (whole[name].fillna(0) * whole["count"]).sum("distance"))
        assert (total / n > 0).all()
    np.testing.assert_allclose(binned["attention_value_share"].sum("distance_bin"), 1)


def test_a_sink_that_moves_nothing_drops_out_of_the_weighted_twin():
    model = tiny_model(qk_norm=None, rope=None, n_key_value_heads=4, n_layers=1, layer_types=("full_attention",))
    with torch.no_grad():
        model.blocks[0].attn.v_proj.weight.zero_()
        model.blocks[0].attn.W_V[:, 1] = 1.0
        model.embed.weight[0, 1] = 0.0
    cap = capture(model, torch.cat([torch.zeros(1, dtype=torch.long), 1 + random_tokens(39, vocab=60)[0]]))
    found = positional_bias(cap)
    assert float(found["attention_share"].sel(distance=39).min()) > 0
    assert float(found["attention_value_share"].sel(distance=39).max()) < 1e-12


def test_captures_without_values_have_no_weighted_twin():
    _, cache = tiny_model().run_with_cache(
        random_tokens(20), names_filter=lambda name: name.endswith(("hook_rot_q", "hook_rot_k"))
    )
    found = positional_bias(Capture.from_cache(cache))
    assert "attention_value_mean" not in found
    assert "attention_value_mean" not in bin_distances(found)


@given(low=st.integers(0, 3000), high=st.integers(0, 3000), per_octave=st.integers(1, 6))
def test_bins_of_negative_distances_mirror_the_others(low, high, per_octave):
    distance = np.arange(-low, high + 1)
    starts = distance[bin_starts(distance, per_octave)]
    assert starts[0] == -low and (np.diff(starts) > 0).all()
    ends = np.append(starts[1:], high + 1) - 1
    assert 0 in starts and 0 in ends
    upper = {(a, b) for a, b in zip(starts, ends, strict=True) if a >= 0}
    lower = {(-b, -a) for a, b in zip(starts, ends, strict=True) if b <= 0}
    reach = min(low, high)
    assert {bin for bin in upper if bin[1] < reach} == {bin for bin in lower if bin[1] < reach}
