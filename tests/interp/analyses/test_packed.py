"""Every analysis of packed documents: what it is of each document alone, or one error that says why not."""

import numpy as np
import pytest
import torch
from tiny_hooked import random_tokens, tiny_model

from hooks import RopeConfig
from hooks.errors import InputError
from interp import (
    attention_map,
    attention_pattern,
    bound_by_distance,
    capture,
    compare,
    first_token_mass,
    frequency_bias,
    head_summary,
    loss_by_position,
    positional_bias,
    precision_cost,
    received_by_position,
    relativity_error,
    report,
    score_ranges,
    sink_rate,
    what_if_rope,
)
from interp.analyses.scores.by_stage import stage_ranges

LENGTHS = [90, 1, 40, 70]
ENDS = np.cumsum(LENGTHS).tolist()
PARTS = [slice(start, stop) for start, stop in zip([0, *ENDS], ENDS, strict=False)]
LONG = [part for part in PARTS if part.stop - part.start > 1]


@pytest.fixture(scope="module")
def model():
    return tiny_model(layer_types=("sliding_attention", "full_attention"), window_size=9, learned_sinks=True)


@pytest.fixture(scope="module")
def packed(model):
    ids = random_tokens(sum(LENGTHS), vocab=13)[0]
    return capture(model, ids, positions=torch.cat([torch.arange(n) for n in LENGTHS]))


@pytest.fixture(scope="module")
def alone(model, packed):
    return [capture(model, packed.tokens[part]) for part in LONG]


def close(got, expected, within=1e-4):
    np.testing.assert_allclose(got, expected, rtol=within, atol=within)


def pairs(cap):
    """[layer distance]: how many pairs a capture has at each distance, up to the largest of all."""
    return cap.statistics()["count"].reindex(distance=range(max(LENGTHS)), fill_value=0)


def test_statistics(packed, alone):
    stats = packed.statistics()
    for part, cap in zip(LONG, alone, strict=True):
        own = cap.statistics()
        for name in ("lse", "entropy", "sink_mass", "mean_distance", "local_mass"):
            close(stats[name].isel(query=part), own[name])
        close(stats.received.isel(key=part), own.received)
    at_zero = stats["count"].values - sum(pairs(cap).values for cap in alone)
    assert at_zero[:, 0].tolist() == [1, 1] and not at_zero[:, 1:].any()  # the token that is a document of its own


def test_patterns(packed, alone):
    for part, cap in zip(LONG, alone, strict=True):
        for layer in (0, 1):
            found = attention_pattern(packed, layer, 2)
            close(found[part, part], attention_pattern(cap, layer, 2))
            outside = found[part].values.copy()
            outside[:, part] = 0
            assert not outside.any()
            top = packed.top_keys(layer, 1, part.stop - 1, 5)
            own = cap.top_keys(layer, 1, part.stop - part.start - 1, 5)
            close(top.attention, own.attention)
            assert (top.key - part.start).values.tolist() == own.key.values.tolist()
            assert top.distance.values.tolist() == own.distance.values.tolist()
    whole = attention_pattern(packed, 1, 3)
    assert whole["query"].values.tolist() == list(range(sum(LENGTHS)))
    close(attention_map(packed, 1, 3, sum(LENGTHS)).fillna(0), whole)


def test_distance(packed, alone):
    bias, each = positional_bias(packed), [positional_bias(cap) for cap in alone]
    at = {"distance": range(1, 30)}
    weights = [one["count"].sel(at) for one in each]
    for name in ("attention_mean", "score_mean", "attention_value_mean"):
        want = sum(w * one[name].sel(at).fillna(0) for w, one in zip(weights, each, strict=True)) / sum(weights)
        close(bias[name].sel(at), want.transpose(*bias[name].dims), 1e-3)


def test_first_tokens_and_sinks(packed, alone):
    # Σ over documents of what their first tokens receive from others, over how many see them.
    for layer, reach in ((0, 9), (1, 10**9)):
        seeing = [min(n, reach) - 1 for n in LENGTHS if n > 1]
        want = sum(n * first_token_mass(cap, layer).values for n, cap in zip(seeing, alone, strict=True)) / sum(seeing)
        close(first_token_mass(packed, layer), want)
        for k in (1, 3):
            held = [(min(n - k + 1, reach), cap) for n, cap in zip([90, 40, 70], alone, strict=True)]
            mass = sum(n * sink_rate(cap, k, layers=layer).sink_score.values for n, cap in held)
            n = sum(n for n, _ in held)
            if k == 1:  # the document of one token: it sees itself, beside a learned sink
                mass = mass + packed.statistics(layer).received.isel(key=PARTS[1].start).values
                n += 1
            close(sink_rate(packed, k, layers=layer).sink_score, mass / n)


def test_heads(packed, alone, model):
    found, each = head_summary(packed), [head_summary(cap) for cap in alone]
    for name in ("entropy", "mean_distance"):
        total = sum(n * one[name] for n, one in zip([90, 40, 70], each, strict=True))
        rest = packed.statistics()[name].isel(query=PARTS[1].start)
        close(found[name], (total + rest) / sum(LENGTHS))
    total = sum((n - 1) * one.normalised_entropy for n, one in zip([90, 40, 70], each, strict=True))
    close(found.normalised_entropy, total / 197)  # the first query of a document has no choice
    far = [
        packed.statistics().local_mass.isel(query=slice(part.start + 64, part.stop)) for part in (PARTS[0], PARTS[3])
    ]
    close(found.local_mass, np.concatenate([x.values for x in far], -1).mean(-1))
    for name, shift in (("duplicate_token", 0), ("induction", 1)):
        for layer in (0, 1):
            p = np.stack([attention_pattern(packed, layer, head).values for head in range(4)]).astype(float)
            close(found[name].sel(layer=layer), by_definition(packed, layer, p, shift))


def by_definition(cap, layer, p, shift):
    """Mean over queries of the attention to (what follows) earlier copies, of those that see one in their document."""
    ids, window, masses = cap.tokens.tolist(), cap.spec(layer).window or 10**9, []
    for part in PARTS:
        for i in range(part.start, part.stop):
            keys = [c + shift for c in range(part.start, i) if ids[c] == ids[i] and 0 <= i - c - shift < window]
            if keys:
                masses.append(p[:, i, keys].sum(-1))
    return np.mean(masses, 0)


def test_scores(packed, alone):
    found, each = score_ranges(packed), [score_ranges(cap) for cap in alone]
    one = packed.statistics().isel(query=PARTS[1].start).max_score.values  # its one pair, as it ran
    for name, reduce in (("min", np.minimum), ("max", np.maximum)):
        close(found[name][:, :, 0], reduce.reduce([*(own[name].values[:, :, 0] for own in each), one]))
        got, want = found[name].values, reduce.reduce([own[name].values for own in each])
        assert (got <= want + 1e-4).all() if name == "min" else (got >= want - 1e-4).all()
    for name in ("bound", "bound_reason", "float16_limit", "n_keys"):  # of the longest document
        np.testing.assert_array_equal(found[name], each[0][name])
    final = stage_ranges(packed)
    assert set(final.data_vars) == set(stage_ranges(alone[0]).data_vars)


def test_the_bound_holds_at_every_distance(packed, alone):
    found = bound_by_distance(packed)
    assert found["distance"].values.tolist() == list(range(max(LENGTHS)))
    close(found["bound"], bound_by_distance(alone[0])["bound"])
    assert bool((found["score_max"] <= found["bound"] + 1e-4).where(found["score_max"].notnull(), True).all())


def test_another_rotation_is_measured_within_documents(packed, alone):
    found = what_if_rope(packed, RopeConfig(rope_theta=500.0)).sel(variant="what_if")
    for part, cap in zip(LONG, alone, strict=True):
        own = what_if_rope(cap, RopeConfig(rope_theta=500.0)).sel(variant="what_if")
        close(found.lse.isel(query=part), own.lse)
        close(found.received.isel(key=part), own.received)


def test_precision_and_shifts(packed, alone):
    cost, each = precision_cost(packed, queries=None), [precision_cost(cap, queries=None) for cap in alone]
    wide = {"dtype": ["float16", "bfloat16"]}  # int8 has one step for the whole row
    np.testing.assert_allclose(cost["headroom"].sel(wide), np.min([x["headroom"].sel(wide) for x in each], 0), 1e-4)
    assert float(relativity_error(packed, n_queries=200).relativity_error.max()) < 1e-9


@pytest.mark.parametrize(
    "ask",
    [
        lambda cap, path: compare(cap, cap),
        lambda cap, path: frequency_bias(cap),
        lambda cap, path: loss_by_position(cap),
        lambda cap, path: received_by_position(cap),
        lambda cap, path: report(cap, path),
        lambda cap, path: what_if_rope(cap, RopeConfig(rope_theta=500.0), model=tiny_model()),
    ],
)
def test_what_reads_one_text_says_so(packed, ask, tmp_path):
    with pytest.raises(InputError, match=r"reads one text .* packs 4 documents into a row: capture the document"):
        ask(packed, tmp_path / "r.html")
    assert not list(tmp_path.iterdir())
