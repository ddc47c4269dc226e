"""Means over texts against loops by hand: over transformers' eager patterns, and over dense scores in float64."""

import numpy as np
import pytest
import torch
import xarray as xr
from dense import dense_scores
from tiny import Shape, tiny_model
from tiny_corpus import token_rows

from hooks import HookedTransformer
from interp import capture, measure_corpus
from interp.corpus.analyses import ANALYSES

N = 90
SHAPE = Shape(layers=3, bias=False)


@pytest.fixture(
    scope="module",
    params=[("qwen3", 1), ("gemma3_text", 1), ("qwen3", 10), ("gemma3_text", 4)],
    ids=lambda p: f"{p[0]} {p[1]} at a time",
)
def world(request, tmp_path_factory):
    """A corpus of ten texts of different lengths, one by one and packed, and transformers' patterns of each alone."""
    family, pack = request.param
    theirs = tiny_model(family, SHAPE, max_position_embeddings=128)
    model = HookedTransformer.from_pretrained(theirs)
    rows = token_rows(10, longest=N + 30, seed=3)
    path = tmp_path_factory.mktemp("truth") / "tiny.corpus"
    corpus = measure_corpus(model, rows, path, n_tokens=N, analyses=list(ANALYSES), pack=pack)
    patterns, losses = [], []
    with torch.no_grad():
        for row in rows:
            tokens = torch.tensor([row[:N]])
            out = theirs(tokens, output_attentions=True)
            patterns.append(torch.stack(out.attentions)[:, 0].double().numpy())  # [layer head query key]
            log = torch.log_softmax(out.logits[0, :-1].double(), -1)
            losses.append(-log.gather(1, tokens[0, 1:, None])[:, 0].numpy())
    return corpus, [row[:N] for row in rows], patterns, losses, model


def visible(model, layer, n):
    """Which keys each query sees."""
    i, j = np.arange(n)[:, None], np.arange(n)[None]
    window = model.cfg.window(layer)
    return (j <= i) & (i - j < (window or n + 1))


def weighted(parts):
    """Σ total / Σ weight of (total, weight) pairs."""
    total, weight = (sum(part[at] for part in parts) for at in (0, 1))
    return total / weight


def by_hand(patterns, rows, model, score):
    """[layer head]: the sum of `score(pattern of a head, visible, tokens)`, a (total, weight), over the texts."""
    layers, heads = patterns[0].shape[:2]
    out = np.empty((layers, heads))
    for layer in range(layers):
        for head in range(heads):
            out[layer, head] = weighted(
                [
                    score(p[layer, head], visible(model, layer, len(t)), np.asarray(t))
                    for p, t in zip(patterns, rows, strict=True)
                ]
            )
    return out


def entropy(p):
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1)


def copies(p, see, tokens, shift):
    """Attention to earlier copies, or to what followed them, and the queries that see one."""
    n = len(tokens)
    earlier = (tokens[:, None] == tokens[None]) & (np.arange(n)[None] < np.arange(n)[:, None])
    keys = np.zeros_like(earlier)
    keys[:, shift:] = earlier[:, : n - shift]
    keys &= see
    return (p * keys).sum(), keys.any(-1).sum()


SCORES = {
    "first_token_mass": lambda p, see, t: (p[1:, 0].sum(), see[1:, 0].sum()),
    "previous_token": lambda p, see, t: (np.diagonal(p, -1).sum(), len(p) - 1),
    "local_mass": lambda p, see, t: (
        np.where(np.subtract.outer(np.arange(len(p)), np.arange(len(p))) < 64, p, 0)[64:].sum(),
        max(len(p) - 64, 0),
    ),
    "mean_distance": lambda p, see, t: (
        (p * np.subtract.outer(np.arange(len(p)), np.arange(len(p)))).sum(),
        len(p),
    ),
    "entropy": lambda p, see, t: (entropy(p).sum(), len(p)),
    "normalised_entropy": lambda p, see, t: (
        (entropy(p)[1:] / np.log(see[1:].sum(-1))).sum(),
        len(p) - 1,
    ),
    "duplicate_token": lambda p, see, t: copies(p, see, t, 0),
    "induction": lambda p, see, t: copies(p, see, t, 1),
}


@pytest.mark.parametrize("name", SCORES)
def test_scores_of_heads_are_those_of_a_loop_over_transformers_patterns(world, name):
    corpus, rows, patterns, _, model = world
    expected = by_hand(patterns, rows, model, SCORES[name])
    np.testing.assert_allclose(corpus.mean("head_summary")[name], expected, atol=1e-5, rtol=1e-5)


def test_attention_by_distance_is_summed_over_texts_before_it_is_divided(world):
    corpus, rows, patterns, _, model = world
    mean = corpus.mean("positional_bias")
    first, last = mean["first_distance"].values, mean["last_distance"].values
    delta = [np.subtract.outer(np.arange(len(t)), np.arange(len(t))) for t in rows]
    for at, (a, b) in enumerate(zip(first, last, strict=True)):
        inside = [(d >= a) & (d <= b) for d in delta]
        for layer in range(SHAPE.layers):
            see = [visible(model, layer, len(t)) for t in rows]
            pairs = sum((i & s).sum() for i, s in zip(inside, see, strict=True))
            assert mean["count"].values[layer, at] == pairs
            if pairs:
                mass = sum((p[layer] * i).sum((-1, -2)) for p, i in zip(patterns, inside, strict=True))
                whole = sum(p[layer].sum((-1, -2)) for p in patterns)
                np.testing.assert_allclose(mean["attention_mean"].values[layer, :, at], mass / pairs, atol=1e-5)
                np.testing.assert_allclose(mean["attention_share"].values[layer, :, at], mass / whole, atol=1e-5)
            else:
                assert np.isnan(mean["attention_mean"].values[layer, :, at]).all()


def test_sinks_over_texts_are_those_of_the_patterns(world):
    corpus, rows, patterns, _, model = world
    found = corpus.mean("sink_rate")
    see = [np.stack([visible(model, layer, len(t))[:, 0] for layer in range(SHAPE.layers)]) for t in rows]
    received = [p[..., 0].sum(-1) for p in patterns]
    seen = [s.sum(-1)[:, None] for s in see]
    np.testing.assert_allclose(found["sink_score"], sum(received) / sum(seen), atol=1e-5)
    is_sink = np.mean([r / s > 0.3 for r, s in zip(received, seen, strict=True)], axis=0)
    np.testing.assert_allclose(found["is_sink"], is_sink)
    assert float(found["sink_rate"]) == pytest.approx(is_sink.mean())


def test_attention_received_and_loss_by_position_are_those_of_the_patterns(world):
    corpus, rows, patterns, losses, model = world
    mean, loss = corpus.mean("received_by_position"), corpus.mean("loss_by_position")
    first, last = mean["first_position"].values, mean["last_position"].values
    for at, (a, b) in enumerate(zip(first, last, strict=True)):
        keys = sum(max(min(b + 1, len(t)) - a, 0) for t in rows)
        for layer in range(SHAPE.layers):
            each = [
                (p[layer].sum(-2) / visible(model, layer, len(t)).sum(0))[:, a : b + 1].sum(-1)
                for p, t in zip(patterns, rows, strict=True)
            ]
            np.testing.assert_allclose(mean["received_mean"].values[layer, :, at], sum(each) / keys, atol=1e-5)
        here = np.concatenate([x[max(a - 1, 0) : b] for x in losses])
        if len(here):
            assert float(loss["loss_mean"][at]) == pytest.approx(here.mean(), abs=1e-5)
    assert np.isnan(loss["loss_mean"].values[0]) == (last[0] == 0)


def test_moments_and_extremes_of_scores_merge_to_those_of_all_pairs(world):
    corpus, rows, _, _, model = world
    ranges, bias = corpus.mean("score_ranges"), corpus.mean("positional_bias")
    first = bias["first_distance"].values
    for layer in range(SHAPE.layers):
        spec = model.cfg.attention_spec(layer)
        all_scores, all_bins = [], []
        for row in rows:
            cap = capture(model, row, layers=[layer])
            s = dense_scores(cap.q(layer), cap.k(layer), spec.scale, window=spec.window, softcap=spec.softcap).numpy()
            i, j = np.tril_indices(len(row))
            there = np.isfinite(s[0, i, j])
            all_scores.append(s[:, i[there], j[there]])
            all_bins.append(np.searchsorted(first, (i - j)[there], side="right") - 1)
        s, bins = np.concatenate(all_scores, 1), np.concatenate(all_bins)
        expected = {"min": s.min(1), "max": s.max(1), "mean": s.mean(1), "std": s.std(1)}
        for name, numbers in expected.items():
            np.testing.assert_allclose(ranges[name].values[layer], numbers, atol=1e-5, rtol=1e-5)
        for at in np.unique(bins):
            here = s[:, bins == at]
            for name, numbers in {
                "score_mean": here.mean(1),
                "score_std": here.std(1),
                "score_min": here.min(1),
                "score_max": here.max(1),
            }.items():
                # The spread of a handful of float32 scores is a difference of squares.
                np.testing.assert_allclose(bias[name].values[layer, :, at], numbers, atol=2e-4, rtol=1e-5)


def test_a_text_of_the_corpus_is_the_analysis_of_its_capture(world):
    corpus, rows, _, _, model = world
    from interp import head_summary, sink_rate

    cap = capture(model, rows[4])
    xr.testing.assert_allclose(
        corpus["head_summary"].isel(text=4, drop=True).load().drop_vars("kv_head"),
        head_summary(cap)[list(corpus["head_summary"])].drop_vars("kv_head"),
        rtol=1e-12 if corpus.plan.pack == 1 else 1e-4,
        atol=0 if corpus.plan.pack == 1 else 1e-6,
    )
    assert float(corpus["sink_rate"]["sink_rate"][4]) == float(sink_rate(cap)["sink_rate"])
    assert corpus.texts["loss"][4] == pytest.approx(float(cap.loss.mean()), rel=1e-6)
    assert corpus.texts["tokens"].tolist() == [len(row) for row in rows]


def test_a_text_can_be_captured_again(world):
    corpus, rows, _, _, model = world
    cap = corpus.capture("4", model=model)
    assert cap.tokens.tolist() == list(rows[4])
