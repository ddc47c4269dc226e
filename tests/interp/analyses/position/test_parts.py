"""Segments and sink tokens against sums over dense patterns, on planted heads, and on what the literature reports."""

import numpy as np
import pytest
import torch
from dense import dense_pattern, dense_scores, visible
from planted import SINK, planted_kinds
from tiny_hooked import random_tokens, tiny_model

import interp
from hooks import HookedTransformer
from hooks.errors import InputError, PositionError

SLIDING = {"layer_types": ("sliding_attention", "full_attention"), "window_size": 19}


def pattern(cap, layer):
    """Dense pattern, [head query key]."""
    spec = cap.spec(layer)
    rules = {"window": spec.window, "softcap": spec.softcap, "alibi_slopes": spec.alibi_slopes}
    return dense_pattern(dense_scores(cap.q(layer), cap.k(layer), spec.scale, **rules), spec.sinks).numpy()


@pytest.mark.parametrize("changes", [SLIDING, {"n_heads": 4, "n_key_value_heads": 1}, {"alibi_slopes": (1.0,) * 4}])
def test_segments_are_sums_over_the_dense_pattern(changes):
    cap = interp.capture(tiny_model(**changes), random_tokens(61)[0])
    parts = {"begin": slice(0, 10), "odd": [50, 12, 31], "end": -1}
    found = interp.segment_mass(cap, parts)
    tokens = {"begin": np.arange(10), "odd": np.array([12, 31, 50]), "end": np.array([60])}
    tokens["rest"] = np.setdiff1d(np.arange(61), np.concatenate(list(tokens.values())))
    assert found["query_segment"].values.tolist() == list(tokens) == found["key_segment"].values.tolist()
    for layer in cap.layers:
        p = pattern(cap, layer)
        seen = visible(61, 61, window=cap.spec(layer).window).numpy()
        for a, queries in tokens.items():
            for b, keys in tokens.items():
                here = found.sel(layer=layer, query_segment=a, key_segment=b)
                expected = p[:, queries][:, :, keys].sum(-1).mean(-1)
                np.testing.assert_allclose(here["segment_mass"], expected, atol=2e-6)
                even = (seen[queries][:, keys].sum(-1) / seen[queries].sum(-1)).mean()
                np.testing.assert_allclose(here["uniform_mass"], even, rtol=1e-12)
    np.testing.assert_allclose(found["segment_mass"].sum("key_segment"), 1, atol=1e-5)
    assert found["queries"].values.tolist() == [len(part) for part in tokens.values()]


def test_two_tokens_are_two_parts_without_a_rest():
    cap = interp.capture(tiny_model(), random_tokens(2)[0])
    found = interp.segment_mass(cap, {"first": 0, "second": 1}, layers=1)
    assert found["segment_mass"].shape == (1, 4, 2, 2) and found["query_segment"].values.tolist() == ["first", "second"]
    assert (found["segment_mass"].sel(query_segment="first", key_segment="first") == 1).all()


@pytest.mark.parametrize(
    ("segments", "error", "says"),
    [
        ({}, InputError, "name and the tokens"),
        ({"rest": 0}, InputError, "no part"),
        ({"a": slice(3, 3)}, InputError, "no token"),
        ({"a": 0, "b": slice(0, 2)}, InputError, "share a token"),
        ({"a": 99}, PositionError, "outside"),
    ],
)
def test_parts_that_are_none_are_refused(segments, error, says):
    cap = interp.capture(tiny_model(), random_tokens(9)[0])
    with pytest.raises(error, match=says):
        interp.segment_mass(cap, segments)


@pytest.mark.parametrize("changes", [SLIDING, {"n_key_value_heads": 1}])
def test_sinks_are_the_columns_above_the_threshold(changes):
    n, epsilon = 61, 0.06
    cap = interp.capture(tiny_model(**changes), random_tokens(n)[0])
    found, heads = interp.find_sinks(cap, epsilon), np.zeros(n, int)
    for at, layer in enumerate(cap.layers):
        p, seen = pattern(cap, layer), visible(n, n, window=cap.spec(layer).window).numpy().sum(0)
        score = p.sum(1) / seen
        is_sink = (score > epsilon) & (seen >= min(64, seen.max() // 2 + 1))
        heads += is_sink.sum(0)
        np.testing.assert_allclose(found["sink_score"].values[at], score[:, found["sink"].values], atol=1e-6)
        assert found["sinks"].values[at].tolist() == is_sink.sum(-1).tolist()
        np.testing.assert_allclose(found["sink_mass"].values[at], (p.sum(1) * is_sink).sum(-1) / n, atol=1e-6)
    assert 0 < len(found["sink"]) < n and sorted(found["sink"].values) == np.flatnonzero(heads).tolist()
    assert found["heads"].values.tolist() == sorted(heads[heads > 0], reverse=True)


def test_a_planted_sink_in_the_middle_of_a_text_is_found_there():
    """The sink head looks at token 0, wherever it stands: here at place 70 of 300, and nowhere else."""
    tokens = torch.randint(1, 40, (300,), generator=torch.Generator().manual_seed(0))
    tokens[70] = 0
    found = interp.find_sinks(interp.capture(planted_kinds(), tokens), 0.5, layers=SINK[0])
    own = found["sink_score"].sel(head=SINK[1])
    assert found["sink"].values[np.argmax(own.values)] == 70 and own.max() > 0.9
    assert found["sinks"].sel(head=SINK[1]).item() == 1


def test_the_last_keys_are_no_sinks_for_looking_at_themselves():
    cap = interp.capture(tiny_model(), random_tokens(5)[0])
    assert interp.find_sinks(cap, 0.0)["sink"].max() <= 2
    assert interp.find_sinks(cap, 0.0, audience=1)["sink"].max() == 4
    assert interp.find_sinks(cap, 1.0)["sink"].size == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_repeated_input_has_no_sinks_and_natural_and_random_input_have(name):
    """2410.10781, table 1: of Llama 3's heads 99 %, 91 % and 0 % are sink heads on natural, random, repeated input."""
    model = HookedTransformer.from_pretrained(name)
    generator = torch.Generator().manual_seed(0)
    random = torch.randint(1000, model.cfg.d_vocab - 1000, (256,), generator=generator)
    texts = {"natural": interp.standard_text(), "random": random, "repeated": torch.full((256,), 4000)}
    rates = {}
    for kind, text in texts.items():
        cap = interp.capture(model, text, n_tokens=256, stages=(), loss=False)
        rates[kind] = float(interp.find_sinks(cap)["sink_rate"])
    assert rates["repeated"] < 0.05 < 0.2 < min(rates["natural"], rates["random"]), rates
