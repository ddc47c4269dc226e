"""Thousands of records: few files, a variable read by itself, means in bounded memory and equal to sums by hand."""

import tracemalloc

import numpy as np
import pytest

from interp.corpus.corpora import read_corpus
from interp.corpus.estimates import Estimates
from interp.corpus.plan import Entry, ModelFacts, Plan
from interp.corpus.records import Records
from interp.corpus.store import CorpusStore

TEXTS, LAYERS, HEADS, N_TOKENS = 2_000, 24, 8, 48


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A corpus of 2,000 records of drawn numbers; gives it with its directory and the fields that were written."""
    kinds = ("full_attention",) * LAYERS
    model = ModelFacts("drawn", "0" * 64, LAYERS, tuple(range(LAYERS)), kinds, (0,) * LAYERS, HEADS, HEADS, "float32")
    texts = tuple(Entry(f"text {n}", f"{n:064x}") for n in range(TEXTS))
    plan = Plan("", model, N_TOKENS, ("positional_bias",), {}, texts, "drawn")
    directory = tmp_path_factory.mktemp("many") / "drawn.corpus"
    store, records = CorpusStore.at(directory, write=True), Records(plan)
    store.begin(plan)
    rng, kept = np.random.default_rng(0), []
    shapes = {name: place.shape for (_, name), place in records.places.items()}
    for n in range(TEXTS):
        fields = {name: rng.random(shape, dtype=np.float32) for name, shape in shapes.items()}
        kept.append((fields["attention"].sum((0, 1)), fields["count"].sum(0), fields["attention"][3, 2]))
        header = {"tokens": 2, "loss_total": 1.0, "loss_count": 1, "seconds": 0.0}
        store.write(n, records.packed(header, np.array([1, 2]), {"positional_bias": fields}))
    return read_corpus(store), directory, kept


@pytest.mark.slow
def test_a_text_is_one_file_and_all_are_found_again(many):
    corpus, directory, _ = many
    assert len(corpus) == TEXTS
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert len(files) == TEXTS + 3
    assert corpus.texts["status"].eq("measured").all()


@pytest.mark.slow
def test_one_head_of_all_texts_is_what_was_written(many):
    corpus, _, kept = many
    share = corpus["positional_bias"]["attention_share"][:, 3, 2].values
    expected = np.stack([own.astype(float) / own.astype(float).sum() for _, _, own in kept])
    np.testing.assert_allclose(share, expected, rtol=1e-12)


@pytest.mark.slow
def test_means_take_a_run_of_layers_at_a_time_and_no_more_memory_than_that(many, monkeypatch):
    """The fields of one statistic are 120 MB; a tenth of the budget cuts them into runs of few layers."""
    corpus, _, kept = many
    monkeypatch.setattr("interp.corpus.reduce.chunks.__defaults__", (2**21,))
    estimates = Estimates(corpus._reader, tuple(range(TEXTS)))
    _ = estimates.resamples
    tracemalloc.start()
    mean = estimates.mean("positional_bias")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    whole = TEXTS * corpus._reader.records.length * 8
    assert whole > 300e6 and peak < 120e6
    layers = mean["attention_mean"] * mean["count"]
    np.testing.assert_allclose(layers.sum(("layer", "head")), sum(k[0].astype(float) for k in kept), rtol=1e-6)
    np.testing.assert_allclose(mean["count"].sum("layer"), sum(k[1].astype(float) for k in kept), rtol=1e-6)
    one = Estimates(corpus._reader, tuple(range(TEXTS)))
    monkeypatch.undo()
    np.testing.assert_allclose(one.mean("positional_bias")["score_std_low"], mean["score_std_low"], rtol=1e-12)
