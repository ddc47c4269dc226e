"""Massive values: planted features, RoPE pairs, and the counts that two models are known for."""

import numpy as np
import pytest
from tiny_hooked import random_tokens, tiny_model

import interp
from hooks import HookedTransformer, RopeConfig


@pytest.mark.parametrize("n", [2, 31])
def test_norms_and_multiples_are_those_of_the_captured_tensors(n):
    cap = interp.capture(tiny_model(n_key_value_heads=1), random_tokens(n)[0])
    found = interp.massive_values(cap, 1.5)
    for layer in cap.layers:
        for name, x in (("q", cap.q(layer)), ("k", cap.k(layer)), ("v", cap.v(layer))):
            norm = np.sqrt((x.double().numpy() ** 2).sum(0))
            ratio = norm / norm.mean(-1, keepdims=True)
            here = found.sel(layer=layer)
            np.testing.assert_allclose(here[f"{name}_norm"], norm, rtol=1e-12)
            np.testing.assert_allclose(here[f"{name}_ratio"], ratio, rtol=1e-12)
            assert here[f"{name}_massive"].values.tolist() == (ratio > 1.5).sum(-1).tolist()


def test_a_planted_feature_is_found_with_its_pair():
    cap = interp.capture(tiny_model(), random_tokens(20)[0])
    half = cap.cfg.d_head // 2
    cap.k(1)[:, 1, half + 3] *= 1000
    found = interp.massive_values(cap)
    assert found["k_massive"].sel(layer=1).values.tolist() == [0, 1]
    assert found["k_ratio"].sel(layer=1, kv_head=1).argmax().item() == half + 3
    assert found["pair"].sel(layer=1, feature=half + 3).item() == 3
    assert found["kv_head_of"].values.tolist() == [0, 0, 1, 1]


def test_pairs_follow_the_layout_and_layers_without_rotation_have_none():
    rope = RopeConfig(rope_theta=100.0, interleaved=True)
    kinds = ("sliding_attention", "full_attention")
    model = tiny_model(layer_types=kinds, window_size=4, rope={kinds[0]: rope, kinds[1]: None})
    pair = interp.massive_values(interp.capture(model, random_tokens(9)[0]))["pair"].values
    assert pair[0].tolist() == np.repeat(np.arange(len(pair[0]) // 2), 2).tolist() and (pair[1] == -1).all()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "counts"), [("smollm2-135m", (254, 69, 3)), ("gemma3-270m", (151, 77, 7))])
def test_two_models_have_as_many_as_is_known(name, counts):
    """On the first 512 tokens of the standard text, by the definition of 2502.01563."""
    model = HookedTransformer.from_pretrained(name)
    found = interp.massive_values(interp.capture(model, interp.standard_text(), n_tokens=512, stages=(), loss=False))
    assert tuple(int(found[f"{x}_massive"].sum()) for x in "qkv") == counts
