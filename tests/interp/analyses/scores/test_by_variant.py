"""score_ranges: dense float64 gives every number, a model run with the other setting gives every variant."""

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from dense import dense_pattern, dense_scores, visible
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_hooked import random_tokens, tiny_model

from hooks import AttentionSpec, QKNormConfig, RopeConfig
from hooks.errors import InputError, StageError, TextError
from interp.analyses.scores.by_variant import score_ranges
from interp.analyses.scores.moments import score_shape
from interp.captures import Capture, capture

YARN = RopeConfig(rope_type="yarn", rope_theta=100.0, factor=4.0, original_max_position_embeddings=16)
MODELS = {
    "rms before": {},
    "rms after, full width": {"qk_norm": QKNormConfig(position="after_rope", scope="full"), "rope": YARN},
    "layer norm, biases, clip": {
        "qk_norm": QKNormConfig(kind="layer", scope="per_head", bias=True),
        "clip_qkv": 1.5,
        "clip_position": "projection",
    },
    "l2 after, clip last": {
        "qk_norm": QKNormConfig(kind="l2", position="after_rope", scale=10.0),
        "clip_qkv": 2.0,
        "clip_position": "rope",
        "rope": RopeConfig(rope_theta=50.0, interleaved=True, precision="float64"),
    },
    "unit offset, clip after norm": {
        "qk_norm": QKNormConfig(unit_offset=True, scale_before_cast=True),
        "clip_qkv": 1.2,
        "clip_position": "norm",
        "rope": RopeConfig(rope_theta=50.0, partial_rotary_factor=0.5, precision="float64"),
    },
    "soft-cap and window": {
        "attn_scores_soft_cap": 2.0,
        "layer_types": ("sliding_attention", "full_attention"),
        "window_size": 7,
    },
    "alibi and sinks": {"alibi_slopes": (0.5, 0.25, 0.0, 0.01), "learned_sinks": True},
    "learned frequencies": {"rope": RopeConfig(rope_theta=100.0, learnable=True)},
    "no norm": {"qk_norm": None},
    "no rotation": {"rope": None},
}
EXACT = ["min", "max", "mean", "std"]
LEVELS = (0.0, 0.01, 0.3, 0.5, 0.99, 1.0)


def run(n=37, seed=3, **changes):
    """A tiny model and the capture of random tokens."""
    model = tiny_model(**changes)
    return model, capture(model, random_tokens(n, seed=seed)[0])


@cache
def measured(name):
    """A model of `MODELS`, its capture and the capture's score_ranges."""
    model, cap = run(**MODELS[name])
    return model, cap, score_ranges(cap, quantiles=LEVELS)


def scores_of(cap, layer):
    """[head query key] scores in float64, and which pairs are visible."""
    spec, n = cap.spec(layer), len(cap.positions)
    q, k = cap.q(layer), cap.k(layer)
    rules = {"window": spec.window, "softcap": spec.softcap, "alibi_slopes": spec.alibi_slopes}
    return dense_scores(q, k, spec.scale, **rules), visible(n, n, window=spec.window)


@pytest.mark.parametrize("name", MODELS)
def test_every_number_is_that_of_the_dense_scores(name):
    _, cap, ds = measured(name)
    assert ds.attrs["analysis"] == "score_ranges"
    assert all({"units", "description", "formula"} <= set(ds[key].attrs) for key in ds)
    for layer in cap.layers:
        dense, seen = scores_of(cap, layer)
        for head in range(4):
            one, s = ds.sel(layer=layer, head=head, variant="as_run"), dense[head][seen].numpy()
            want = [s.min(), s.max(), s.mean(), s.std()]
            np.testing.assert_allclose([one[key] for key in EXACT], want, rtol=2e-5, atol=2e-5)
            z = (s - s.mean()) / s.std()
            np.testing.assert_allclose(one["kurtosis"], (z**4).mean(), rtol=0.02)
            off = np.abs(one["quantile"].values - np.quantile(s, LEVELS, method="inverted_cdf"))
            reach = np.abs(s - s.mean()).max() if "soft-cap" not in name else np.abs(s).max()
            assert (off <= reach / 32 + s.std() / 32 + 1e-5).all()
            product = np.abs((cap.q(layer)[:, head].double() @ cap.k(layer)[:, head // 2].double().T)[seen]).max()
            np.testing.assert_allclose(one["float16_headroom"], 65504 / product, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_variant_is_the_model_run_with_that_setting(name):
    model, _, ds = measured(name)
    ds = ds.sel(layer=0)
    norm, rope = model.cfg.qk_norm, model.cfg.rope
    other = {}
    if norm is not None:
        other["no_norm"] = {"qk_norm": None}
        if model.cfg.clip_position == "norm":
            other["no_norm"]["clip_position"] = "projection"
    if rope is not None:
        other["no_rope"] = {"rope": None}
    if norm is not None and rope is not None:
        swapped = "after_rope" if norm.position == "before_rope" else "before_rope"
        other["swapped_order"] = {"qk_norm": dataclasses.replace(norm, position=swapped)}
    for variant in ("no_norm", "no_rope", "swapped_order"):
        got = ds.sel(variant=variant)
        if variant not in other:
            assert "this layer" in str(got["bound_reason"].item())
            assert all(np.isnan(got[key]).all() for key in (*EXACT, "kurtosis", "bound", "quantile"))
            continue
        again = capture(model.with_config(**other[variant]), random_tokens(37, seed=3)[0])
        want = score_ranges(again, layers=[0], quantiles=LEVELS).sel(layer=0, variant="as_run")
        for key in (*EXACT, "float16_headroom", "bound", "utilisation", "sharpness_cap"):
            np.testing.assert_allclose(got[key], want[key], rtol=1e-5, atol=1e-5, err_msg=f"{variant} {key}")
        np.testing.assert_allclose(got["kurtosis"], want["kurtosis"], rtol=0.02)
        spread = want["std"].values[:, None]
        assert (np.abs(got["quantile"] - want["quantile"]) <= np.abs(want["quantile"]) / 32 + spread / 8).all()
        assert bool(got["bound_reason"] == want["bound_reason"])


@pytest.mark.parametrize("name", MODELS)
def test_no_variant_exceeds_its_bound_or_is_sharper_than_its_cap(name):
    _, cap, ds = measured(name)
    assert not (ds["utilisation"] > 1 + 1e-5).any()
    bounded = ds["bound"].notnull().all("head")
    assert (bounded == (ds["bound_reason"] == "")).all()
    for layer in cap.layers:
        dense, _ = scores_of(cap, layer)
        sharpest = dense_pattern(dense, cap.spec(layer).sinks)[:, -1].amax(-1).numpy()
        assert (sharpest <= ds["sharpness_cap"].sel(layer=layer, variant="as_run").values + 1e-6).all()


@pytest.mark.parametrize("slopes", [None, (0.0, 0.5, 1e-3, 0.1)])
def test_the_sharpest_pattern_that_a_bound_allows(slopes):
    _, cap = run(n=50, alibi_slopes=slopes, qk_norm=QKNormConfig(scope="per_head", scale=0.3))
    one = score_ranges(cap).sel(layer=1, variant="as_run")
    far = np.arange(50)
    for head, slope in enumerate(slopes or [0] * 4):
        score = np.where(far == 0, 1, -1) * float(one["bound"][head]) - slope * far
        want = np.exp(score[0]) / np.exp(score).sum()
        assert 0.02 < want < 1
        np.testing.assert_allclose(one["sharpness_cap"][head], want, rtol=1e-12)
    assert int(one["n_keys"]) == 50


def test_norms_on_both_sides_of_each_step():
    _, cap = run(nope_layers=(1,))
    ds = score_ranges(cap)
    assert ds["stage"].values.tolist() == ["pre_norm", "pre_rope", "final"]
    assert np.isnan(ds["q_norm"].sel(layer=1, stage="pre_rope")).all()
    for stage in ("pre_norm", "pre_rope", "final"):
        one = ds.sel(layer=0, stage=stage)
        for name, x in (("q", cap.q(0, stage)), ("k", cap.k(0, stage).repeat_interleave(2, 1))):
            norms = x.double().norm(dim=-1)
            np.testing.assert_allclose(one[f"{name}_norm"], norms.square().mean(0).sqrt(), rtol=1e-5)
            np.testing.assert_allclose(one[f"{name}_norm_max"], norms.amax(0), rtol=1e-5)
    turned = ds.sel(layer=0)
    np.testing.assert_allclose(turned["q_norm"].sel(stage="final"), turned["q_norm"].sel(stage="pre_rope"), rtol=1e-5)
    assert "no rotation to leave out" in str(ds["bound_reason"].sel(layer=1, variant="no_rope").item())


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(2, 60), st.sampled_from([0.0, 3.0, 40.0]), st.sampled_from([1e-4, 1.0, 30.0])
)
def test_shape_of_scores_far_from_zero(seed, n, offset, size):
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(n, 4, 6, generator=generator), torch.randn(n, 2, 6, generator=generator)
    q, k = (q + offset) * size, k + offset
    spec = AttentionSpec(scale=0.3, window=11)
    levels = (0.0, 0.05, 0.5, 0.95, 1.0)
    found = score_shape(q, k, spec, levels)
    dense, seen = dense_scores(q, k, spec.scale, window=11), visible(n, n, window=11)
    for head in range(4):
        s = dense[head][seen].numpy()
        want = np.array([s.min(), s.max(), s.mean(), s.std()])
        got = np.array([found.low[head], found.high[head], found.mean[head], found.std[head]])
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(s).max())
        fourth = (((s - s.mean()) / s.std()) ** 4).mean()
        np.testing.assert_allclose(found.kurtosis[head], fourth, rtol=0.13 if len(s) < 100 else 0.05)
        off = np.abs(found.quantiles[head] - np.quantile(s, levels, method="inverted_cdf"))
        assert (off <= np.abs(s - s.mean()).max() / 16 + 1e-5 * np.abs(s).max()).all()


@pytest.mark.parametrize("offset", [0.0, 20.0])
def test_kurtosis_of_many_pairs_is_exact_to_a_few_per_mille(offset):
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(500, 2, 8, generator=generator) * torch.randn(500, 1, 1, generator=generator).exp() + offset
    k = torch.randn(500, 1, 8, generator=generator)
    found = score_shape(q, k, AttentionSpec(scale=0.3), (0.5,))
    s = dense_scores(q, k, 0.3)[:, visible(500, 500)].numpy()
    z = (s - s.mean(1, keepdims=True)) / s.std(1, keepdims=True)
    np.testing.assert_allclose(found.kurtosis, (z**4).mean(1), rtol=3e-3)


def test_scores_that_do_not_vary_have_no_kurtosis():
    q, k = torch.ones(9, 2, 4), torch.ones(9, 1, 4)
    found = score_shape(q, k, AttentionSpec(scale=0.5), (0.1, 0.9))
    assert np.isnan(found.kurtosis).all()
    np.testing.assert_allclose(found.quantiles, 2.0)


def test_a_missing_stage_is_named():
    model = tiny_model()
    with pytest.raises(StageError, match=r"layer 0, no_norm: .*without the stage 'pre_norm'.*stages=\('pre_norm'"):
        score_ranges(capture(model, random_tokens(9)[0], stages="pre_rope"))
    after = tiny_model(qk_norm=QKNormConfig(position="after_rope"))
    with pytest.raises(StageError, match=r"layer 0, no_rope: .*without the stage 'pre_rope'"):
        score_ranges(capture(after, random_tokens(9)[0], stages="pre_norm"))


def test_layers_can_be_chosen():
    _, cap = run()
    assert score_ranges(cap, layers=[1])["layer"].values.tolist() == [1]
    with pytest.raises(StageError, match="layer 7"):
        score_ranges(cap, layers=[7])
    with pytest.raises(StageError, match="no layer"):
        score_ranges(cap, layers=[])


def test_what_cannot_be_measured_says_so():
    model, cap = run()
    with pytest.raises(InputError, match=r"quantiles=1\.2: give a number from 0 to 1"):
        score_ranges(cap, quantiles=(1.2,))
    cap.q(1, "pre_norm")[4, 2] = torch.nan
    with pytest.raises(InputError, match=r"layer 1, no_norm: q holds NaN.*row 4, head 2.*capture in float32"):
        score_ranges(cap)
    _, cache = model.run_with_cache(random_tokens(1))
    with pytest.raises(TextError, match="1 token"):
        score_ranges(Capture.from_cache(cache))


def test_a_cache_that_does_not_know_the_weights_proves_nothing(monkeypatch):
    _, cap = run()
    own = cap.constants
    unknown = {"gain_q": None, "gain_k": None, "inv_freq": None}
    monkeypatch.setattr(cap, "constants", lambda layer: dataclasses.replace(own(layer), **unknown))
    monkeypatch.setattr(cap, "cfg", cap.cfg.replace(qk_norm=None, rope=None))
    ds = score_ranges(cap)
    reasons = ds["bound_reason"].sel(layer=0)
    assert "does not hold the norm's gains" in str(reasons.sel(variant="as_run").item())
    assert "capture the model itself" in str(reasons.sel(variant="swapped_order").item())
    assert np.isnan(ds["bound"]).all()
    assert np.isfinite(ds["max"].sel(variant="as_run")).all()


def test_a_rotation_that_is_not_known_leaves_no_bound(monkeypatch):
    _, cap = run()
    monkeypatch.setattr(cap, "cfg", cap.cfg.replace(rope=None))
    reason = score_ranges(cap)["bound_reason"].sel(layer=0, variant="as_run")
    assert "how this model rotates" in str(reason.item())
