"""precision_cost: dense float64 patterns of rounded q and k give every cost, planted ranges every verdict."""

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from dense import dense_pattern, dense_scores, visible
from tiny_hooked import random_tokens, tiny_model

from hooks import QKNormConfig, RopeConfig
from hooks.errors import InputError, StageError
from interp.analyses.scores.layer_bounds import vector_bounds
from interp.analyses.scores.precision import precision_cost, round_to_int8
from interp.captures import capture

N = 41
MODELS = {
    "rms before": {},
    "rms after, full width, yarn": {
        "qk_norm": QKNormConfig(position="after_rope", scope="full"),
        "rope": RopeConfig(rope_type="yarn", rope_theta=100.0, factor=4.0, original_max_position_embeddings=16),
    },
    "layer norm, biases": {"qk_norm": QKNormConfig(kind="layer", scope="per_head", bias=True)},
    "l2, clip last": {"qk_norm": QKNormConfig(kind="l2", scale=10.0), "clip_qkv": 2.0, "clip_position": "rope"},
    "soft-cap, sinks, window": {
        "attn_scores_soft_cap": 2.0,
        "learned_sinks": True,
        "layer_types": ("sliding_attention", "full_attention"),
        "window_size": 9,
    },
    "alibi": {"alibi_slopes": (0.5, 0.25, 0.0, 0.01)},
    "no norm": {"qk_norm": None},
    "clip alone": {"qk_norm": None, "clip_qkv": 1.5},
}
DTYPES = ("float16", "bfloat16", "int8")


@cache
def captured(name):
    """A tiny model of `MODELS` on random tokens, with sinks far from zero."""
    model = tiny_model(**MODELS[name])
    with torch.no_grad():
        for block in model.blocks:
            if block.attn.sinks is not None:
                block.attn.sinks += torch.tensor([2.0, -1.0, 0.5, 3.0])
    return capture(model, random_tokens(N, seed=5)[0])


def rounded(x, dtype):
    """[pos head d] rounded to a format, by numpy or by the definition of bfloat16: float32 cut to 16 bits."""
    x = x.float().numpy()
    if dtype == "float16":
        return torch.from_numpy(x.astype(np.float16).astype(np.float64))
    if dtype == "bfloat16":
        bits = x.view(np.uint32).astype(np.uint64)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
        return torch.from_numpy(bits.astype(np.uint32).view(np.float32).astype(np.float64))
    step = np.abs(x).max((0, 2)).astype(np.float64)[:, None] / 127
    return torch.from_numpy(np.rint(x / step) * step)


def dense_cost(cap, layer, dtype):
    """Per head and query Σ p ln(p/p̂), the sink's share included, and the visible score errors."""
    spec = cap.spec(layer)
    rules = {"window": spec.window, "softcap": spec.softcap, "alibi_slopes": spec.alibi_slopes}
    q, k = cap.q(layer), cap.k(layer)
    exact = dense_scores(q, k, spec.scale, **rules)
    close = dense_scores(rounded(q, dtype), rounded(k, dtype), spec.scale, **rules)
    seen = visible(N, N, window=spec.window)
    p, p_close = dense_pattern(exact, spec.sinks), dense_pattern(close, spec.sinks)
    kl = torch.where(seen, p * (p / p_close).log(), 0.0).sum(-1)
    if spec.sinks is not None:
        left, left_close = 1 - p.sum(-1), 1 - p_close.sum(-1)
        kl = kl + left * (left / left_close).log()
    return kl.numpy(), (close - exact)[:, seen].numpy()


@pytest.mark.parametrize("name", MODELS)
def test_every_cost_is_that_of_the_dense_pattern(name):
    cap = captured(name)
    ds = precision_cost(cap, queries=None)
    assert ds.attrs["analysis"] == "precision_cost"
    assert ds.attrs["queries"] == f"{N} of {N} queries measured"
    assert ds["verdict"].dims == ("layer", "head", "dtype")
    assert ds["dtype"].values.tolist() == list(DTYPES)
    for layer in cap.layers:
        for dtype in DTYPES:
            one = ds.sel(layer=layer, dtype=dtype)
            kl, error = dense_cost(cap, layer, dtype)
            np.testing.assert_allclose(one["kl"], kl.mean(1), rtol=1e-4, atol=1e-13)
            np.testing.assert_allclose(one["kl_max"], kl.max(1), rtol=1e-4, atol=1e-13)
            np.testing.assert_allclose(one["score_error_max"], np.abs(error).max(1), rtol=1e-6, atol=1e-12)
            np.testing.assert_allclose(one["score_error_rms"], (error**2).mean(1) ** 0.5, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_headroom_is_measured_on_all_pairs_and_never_below_what_is_proven(name):
    cap = captured(name)
    ds = precision_cost(cap, queries=[0])
    for layer in cap.layers:
        q, k = cap.q(layer).double(), cap.k(layer).double().repeat_interleave(2, 1)
        product = torch.einsum("ihd,jhd->hij", q, k)[:, visible(N, N, window=cap.spec(layer).window)].abs().amax(1)
        entry_q, entry_k = q.abs().amax((0, 2)), k.abs().amax((0, 2))
        largest = torch.stack([product, entry_q, entry_k]).amax(0)
        one = ds["headroom"].sel(layer=layer)
        np.testing.assert_allclose(one.sel(dtype="float16"), 65504 / largest, rtol=1e-5)
        in_steps = product / (entry_q / 127 * entry_k / 127)
        np.testing.assert_allclose(one.sel(dtype="int8"), (2**31 - 1) / in_steps, rtol=1e-5)
    assert not (ds["headroom"] < ds["proven_headroom"] * (1 - 1e-5)).any()
    assert bool(ds["proven_headroom"].sel(dtype="float16").isnull().any()) == (name == "no norm")
    assert (ds["bound_reason"] == "").all() == (name != "no norm")


@pytest.mark.parametrize("name", MODELS)
def test_vectors_stay_within_their_bounds(name):
    cap = captured(name)
    for layer in cap.layers:
        vectors = cap.q(layer), cap.k(layer).repeat_interleave(2, 1)
        for x, bound in zip(vectors, vector_bounds(cap, layer), strict=True):
            assert (x.double().norm(dim=-1).amax(0).numpy() <= bound * (1 + 1e-5)).all()
            assert np.isinf(bound).all() == (name == "no norm")


def test_a_vector_bound_is_reached():
    model = tiny_model(qk_norm=QKNormConfig(scope="per_head"), attn_bias=True)
    attn = model.blocks[0].attn
    with torch.no_grad():
        attn.q_proj.weight.zero_()
        strongest = attn.q_norm.weight.abs().argmax(-1)
        attn.q_proj.bias.view(4, 16).zero_()[torch.arange(4), strongest] = 1e3
    cap = capture(model, random_tokens(9)[0])
    np.testing.assert_allclose(cap.q(0).norm(dim=-1)[3], vector_bounds(cap, 0)[0], rtol=1e-5)


def planted(gain_q, gain_k, **changes):
    """The verdicts of a model whose gains are these."""
    model = tiny_model(**changes)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.q_norm.weight.fill_(gain_q)
            block.attn.k_norm.weight.fill_(gain_k)
    ds = precision_cost(capture(model, random_tokens(N)[0]), queries=5)
    return ds, ds["verdict"].sel(layer=1, head=2).values.tolist()


def test_verdicts_of_planted_gains():
    ds, verdicts = planted(8.0, 2.0)
    # 16 features with gains 8 and 2: |q·k| ≤ 16 · 8 · 2, and rounding moves it by a thousandth at most.
    np.testing.assert_allclose(ds["proven_headroom"].sel(dtype="float16"), 65504 / 256, rtol=1.1e-3)
    assert verdicts[0] == "proven safe: bound 256× below 65,504"
    assert verdicts[1].startswith("proven safe: bound 1.3")
    assert verdicts[2] == "proven safe: bound 8.32e+03× below 2,147,483,647"


def test_a_bound_above_the_limit_proves_nothing():
    ds, verdicts = planted(100.0, 50.0)
    assert (ds["proven_headroom"].sel(dtype="float16") < 1).all()
    assert verdicts[0] == "observed safe, not proven"
    assert np.isfinite(ds["kl"]).all()


def test_products_that_overflow():
    ds, verdicts = planted(1000.0, 1000.0)
    assert verdicts[0] == "overflows"
    assert (ds["headroom"].sel(dtype="float16") < 1).all()
    assert np.isinf(ds["kl"].sel(dtype="float16")).all()
    assert np.isfinite(ds["kl"].sel(dtype=["bfloat16", "int8"])).all()
    assert verdicts[1].startswith("proven safe")


def test_entries_that_overflow_though_no_product_does():
    ds, verdicts = planted(1e5, 1e-5)
    assert verdicts[0] == "overflows"
    assert (ds["proven_headroom"].sel(dtype="float16") < 0.2).all()


def test_without_a_norm_nothing_is_proven_for_floats():
    ds = precision_cost(captured("no norm"), queries=5)
    first = ds["verdict"].sel(layer=0, head=0).values.tolist()
    assert first[:2] == ["observed safe, not proven", "safe: bfloat16 reaches as far as float32"]
    assert first[2].startswith("proven safe")
    assert "no QK-norm" in str(ds["bound_reason"][0].item())


def test_some_queries_stand_for_all():
    cap = captured("rms before")
    kl, _ = dense_cost(cap, 1, "int8")
    some = precision_cost(cap, layers=[1], queries=[3, 17])
    np.testing.assert_allclose(some["kl"].sel(layer=1, dtype="int8"), kl[:, [3, 17]].mean(1), rtol=1e-6)
    drawn = precision_cost(cap, layers=[1], queries=20)
    assert drawn.identical(precision_cost(cap, layers=[1], queries=np.int64(20)))
    assert drawn.attrs["queries"] == f"20 of {N} queries measured"
    np.testing.assert_allclose(drawn["kl"].sel(layer=1, dtype="int8"), kl.mean(1), rtol=0.5)


def test_a_capture_in_bfloat16_costs_nothing_in_bfloat16():
    cap = capture(tiny_model(dtype=torch.bfloat16), random_tokens(N)[0])
    ds = precision_cost(cap, queries=7).sel(dtype="bfloat16")
    assert (ds["kl"] == 0).all()
    assert (ds["score_error_max"] == 0).all()


def test_int8_of_zeros_is_zero():
    assert torch.equal(round_to_int8(torch.zeros(3, 2)), torch.zeros(3, 2, dtype=torch.float64))
    x = torch.tensor([[-2.0, 0.9, 2.0]])
    np.testing.assert_allclose(round_to_int8(x), [[-2.0, 57 * 2 / 127, 2.0]])


def test_keys_of_zero_fit_everywhere_and_cost_nothing():
    cap = capture(tiny_model(qk_norm=None), random_tokens(N)[0])
    for layer in cap.layers:
        cap.k(layer).zero_()
    ds = precision_cost(cap, queries=5)
    assert np.isposinf(ds["headroom"].sel(dtype="int8")).all()
    assert (ds["verdict"].sel(dtype="float16") == "observed safe, not proven").all()
    assert (ds["kl"] == 0).all()


def test_what_cannot_be_measured_says_so():
    cap = capture(tiny_model(), random_tokens(N)[0])
    with pytest.raises(InputError, match=r"\[3, 99\]: give a whole number from 0 to 40"):
        precision_cost(cap, queries=[3, 99])
    with pytest.raises(StageError, match="layer 5"):
        precision_cost(cap, layers=[5])
    cap.k(1)[4, 1] = torch.inf
    with pytest.raises(InputError, match=r"layer 1, head 2: k holds NaN or infinity, first at position 4"):
        precision_cost(cap)


def test_a_foreign_norm_leaves_the_range_unproven(monkeypatch):
    cap = capture(tiny_model(), random_tokens(N)[0])
    own = cap.constants
    monkeypatch.setattr(cap, "constants", lambda layer: dataclasses.replace(own(layer), gain_q=None, gain_k=None))
    ds = precision_cost(cap, queries=5)
    assert "does not hold the norm's gains" in str(ds["bound_reason"][0].item())
    assert (ds["verdict"].sel(dtype="float16") == "observed safe, not proven").all()
