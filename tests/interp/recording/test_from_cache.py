"""Capture.from_cache holds what the cache holds, in one layout, and refuses what a cache cannot say."""

import pytest
import torch
import xarray as xr
from bridges import bridge_of
from tiny import tiny_model as hf_model
from tiny import tokens as hf_tokens
from tiny_hooked import random_tokens, tiny_model

from hooks import AttentionSpec, HookedTransformer, QKNormConfig
from hooks.errors import InputError, StageError
from interp import Capture, capture

N = 11
NAMES = ("hook_q", "hook_k", "hook_q_normed", "hook_k_normed", "hook_rot_q", "hook_rot_k")


def bridged(family):
    """A TransformerBridge with its cache, and what `capture` gives for the same weights and tokens."""
    model, ids = hf_model(family), hf_tokens(N, batch=1)
    expected = capture(HookedTransformer.from_pretrained(model), ids)
    bridge = bridge_of(model)
    return bridge, bridge.run_with_cache(ids)[1], expected, ids


def specs(cap):
    return {layer: cap.spec(layer) for layer in cap.layers}


def assert_same(cap, expected):
    assert cap.layers == expected.layers
    for layer in expected.layers:
        for stage in set(cap.stages(layer)) & set(expected.stages(layer)):
            torch.testing.assert_close(cap.q(layer, stage), expected.q(layer, stage), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(cap.k(layer, stage), expected.k(layer, stage), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(cap.v(layer), expected.v(layer), rtol=1e-4, atol=1e-4)


# Heads first, flat, normed after the rotation, windows, layers without rotation.
@pytest.mark.parametrize("family", ["llama", "qwen3", "olmo2", "hunyuan_v1_dense", "gemma3_text", "exaone4"])
def test_a_bridges_cache_is_the_capture_of_the_same_model(family):
    _, cache, expected, ids = bridged(family)
    cap = Capture.from_cache(cache, spec=specs(expected), tokens=ids)
    assert_same(cap, expected)
    assert cap.tokens.tolist() == ids[0].tolist()
    if family not in ("exaone4",):  # a bridge rotates by nothing where a layer does not rotate
        assert [cap.stages(layer) for layer in cap.layers] == [expected.stages(layer) for layer in cap.layers]
    for variable in ("score_max", "entropy", "attention"):
        ours, theirs = (c.statistics()[variable].fillna(0).values for c in (cap, expected))
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("position", ["before_rope", "after_rope"])
def test_own_caches_know_their_spec_and_their_steps(position):
    model = tiny_model(
        qk_norm=QKNormConfig(position=position),
        clip_qkv=1.5,
        clip_position="norm",
        layer_types=("sliding_attention", "full_attention"),
        window_size=5,
    )
    ids = random_tokens(N)
    expected = capture(model, ids)
    cap = Capture.from_cache(model.run_with_cache(ids)[1], tokens=ids)
    assert_same(cap, expected)
    assert specs(cap) == specs(expected)
    assert cap.stages(0)[-1] == "final" and len(cap.stages(0)) == 4
    xr.testing.assert_allclose(cap.statistics(), expected.statistics(), rtol=1e-4, atol=1e-5)
    one = Capture.from_cache(model.run_with_cache(ids, names_filter="blocks.1.attn.hook_[qk]_final")[1])
    assert (one.layers, one.stages(1)) == ((1,), ("final",))
    torch.testing.assert_close(one.q(1), cap.q(1), rtol=1e-4, atol=1e-5)
    assert len(one.tokens) == 0 and one.positions.tolist() == list(range(N)) and f"{N} tokens" in repr(one)
    with pytest.raises(StageError, match="v of layer 1 was not in the cache"):
        one.v(1)
    assert "attention_value" not in one.statistics()


def test_sequences_of_a_batch_are_taken_one_by_one():
    model, ids = tiny_model(), random_tokens(N, batch=3)
    with pytest.raises(InputError, match="3 sequences"):
        Capture.from_cache(model.run_with_cache(ids)[1])
    cap = Capture.from_cache(model.run_with_cache(ids)[1].apply_slice_to_batch_dim(1))
    assert_same(cap, capture(model, ids[1]))


def test_an_attached_models_cache():
    model, ids = hf_model("qwen3"), hf_tokens(N, batch=1)
    with HookedTransformer.attach(model) as attached:
        assert_same(Capture.from_cache(attached.run_with_cache(ids)[1]), capture(attached, ids))


def test_what_a_cache_does_not_say_raises():
    bridge, cache, expected, ids = bridged("qwen3")
    with pytest.raises(InputError, match="no AttentionSpec for layer 0"):
        Capture.from_cache(cache)
    spec = AttentionSpec(scale=0.25)
    with pytest.raises(InputError, match="no AttentionSpec for layer 0"):
        Capture.from_cache(cache, spec={1: spec})
    for name, said in [
        ("rot_q", "hook_rot_q was not cached"),
        ("rot_k", "hook_rot_k, the k that enters the score, was not"),
        ("q_normed", "hook_q_normed was not cached"),
    ]:
        part = bridge.run_with_cache(ids, names_filter=lambda n, name=name: n.endswith(NAMES) and name not in n)[1]
        with pytest.raises(StageError, match=said):
            Capture.from_cache(part, spec=spec)
    with pytest.raises(StageError, match="holds q of no layer"):
        Capture.from_cache(bridge.run_with_cache(ids, names_filter=lambda n: n == "hook_embed")[1], spec=spec)
    with pytest.raises(InputError, match="not a dict"):
        Capture.from_cache(cache.cache_dict, spec=spec)
    with pytest.raises(InputError, match="2 tokens given for a cache of 11"):
        Capture.from_cache(cache, spec=spec, tokens=ids[:, :2])
    short = bridge.run_with_cache(ids[:, : expected.cfg.n_heads])[1]
    with pytest.raises(InputError, match="as many positions as heads"):
        Capture.from_cache(short, spec=spec)


def test_a_rotation_that_the_bridge_does_not_show_raises():
    _, cache, expected, _ = bridged("gpt_neox")
    with pytest.raises(StageError, match=r"capture\(HookedTransformer\.attach\(bridge\), tokens\)"):
        Capture.from_cache(cache, spec=specs(expected))


def test_no_report_without_a_loss(tmp_path):
    from interp import report

    model, ids = tiny_model(), random_tokens(N)
    cap = Capture.from_cache(model.run_with_cache(ids)[1])
    with pytest.raises(StageError, match="holds no loss"):
        report(cap, tmp_path / "r.html")
    assert not list(tmp_path.iterdir())
