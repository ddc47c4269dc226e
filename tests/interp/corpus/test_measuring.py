"""A run over texts: what it keeps, what it leaves out and says so, and how it goes on after whatever stopped it."""

import multiprocessing
import os
import signal
import sys
import time

import numpy as np
import pytest
import zarr
from tiny_corpus import N_TOKENS, quiet_model, same, single_thread, token_rows

from hooks.errors import (
    ClusterError,
    CorpusDamagedError,
    CorpusError,
    CorpusMismatchError,
    CorpusWarning,
    InputError,
    OutputError,
    StageError,
)
from interp import Corpus, measure_corpus, open_corpus
from interp.corpus import work
from interp.corpus.analyses import ANALYSES
from interp.corpus.plan import Plan

ROWS = token_rows(8)
_CONTEXT = multiprocessing.get_context("fork")


def run(path, rows=ROWS, model=None, **options):
    return measure_corpus(model or quiet_model(), rows, path, n_tokens=N_TOKENS, **options)


@pytest.fixture
def corpus(tmp_path):
    return run(tmp_path / "a.corpus")


def test_a_text_has_one_file_and_every_variable_its_words(corpus, tmp_path):
    assert isinstance(corpus, Corpus) and len(corpus) == 8
    assert sorted(p.name for p in (tmp_path / "a.corpus").iterdir()) == ["plan.json", "records", "zarr.json"]
    assert len(list((tmp_path / "a.corpus" / "records").iterdir())) == len(ROWS) + 1
    for analysis in corpus.analyses:
        for dataset in (corpus[analysis], corpus.mean(analysis)):
            assert dataset.attrs["analysis"] == analysis
            assert all({"units", "description"} <= v.attrs.keys() for v in dataset.data_vars.values())
    assert list(corpus["head_summary"].dims) == ["text", "layer", "head"]
    assert corpus["head_summary"]["text"].values.tolist() == [str(n) for n in range(8)]
    assert corpus.texts["tokens"].tolist() == [min(len(row), N_TOKENS) for row in ROWS]
    assert (corpus.texts["status"] == "measured").all()
    assert "8 measured" in repr(corpus) and "head_summary, positional_bias" in repr(corpus)


def test_looking_at_a_part_reads_what_the_whole_holds(corpus):
    lazy, whole = corpus["positional_bias"]["attention_mean"], corpus["positional_bias"]["attention_mean"].values
    for index in ((3,), (slice(1, 5), 0), (-1, 1, [2, 0]), ([4, 2], slice(None), 1, -1), (slice(None, None, -2),)):
        np.testing.assert_array_equal(
            lazy[index].values, whole[np.ix_(*_each(index, whole.shape))].squeeze(_ints(index))
        )
    assert lazy[[]].shape == (0, *whole.shape[1:])


def _each(index, shape):
    return [np.atleast_1d(np.arange(n)[i]) for i, n in zip((*index, *[slice(None)] * 4), shape, strict=False)]


def _ints(index):
    return tuple(axis for axis, part in enumerate(index) if isinstance(part, int))


def test_it_opens_again_without_a_model_and_goes_on_without_measuring(corpus, tmp_path, monkeypatch):
    again = open_corpus(tmp_path / "a.corpus")
    same(corpus, again)
    assert again.texts.equals(corpus.texts)
    monkeypatch.setattr(work, "capture", None)  # whoever measured would call it
    same(run(tmp_path / "a.corpus"), corpus)


def test_bad_texts_are_recorded_with_their_reason_and_stop_nothing(tmp_path):
    rows = [*ROWS[:2], [7], [], [1, 2, 4000], ROWS[0], 3.5, *ROWS[2:4]]
    with pytest.warns(CorpusWarning, match="1 of 9 texts are there more than once.*'5', the same as 0"):
        found = run(tmp_path / "a.corpus", rows)
    rows = found.texts.set_index("id")
    assert rows["status"].tolist() == [*["measured"] * 2, *["failed"] * 3, "duplicate", "failed", *["measured"] * 2]
    assert "1 token to read" in rows["reason"]["2"] and "there is nothing to read" in rows["reason"]["3"]
    assert "token id 4000 is outside" in rows["reason"]["4"]
    assert rows["reason"]["5"] == "the same as 0" and "neither a text nor" in rows["reason"]["6"]
    assert np.isnan(rows["loss"]["2"]) and rows["tokens"]["2"] == 0
    alone = run(tmp_path / "b.corpus", ROWS[:4])
    np.testing.assert_array_equal(found["head_summary"]["entropy"], alone["head_summary"]["entropy"])
    with pytest.raises(InputError, match=r"text '2' was not measured \(failed: 1 token"):
        found.capture("2")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"analyses": ["head_summary"]},
            "the analyses head_summary, positional_bias, and this run has head_summary",
        ),
        ({"layers": 1}, "has the layers 0-1, and this run has 1"),
        ({"rows": ROWS[:5]}, "begun with 8 texts, and there are now 5"),
        ({"rows": [*ROWS[:3], [1, 2, 3], *ROWS[4:]]}, "text 3 was '3' and is '3' with another content"),
        ({"model": "other"}, "has the weights"),
    ],
)
def test_another_run_at_its_path_is_refused_and_changes_nothing(corpus, tmp_path, change, says):
    change = change | ({"model": quiet_model(seed=1)} if "model" in change else {})
    with pytest.raises(CorpusMismatchError, match=says):
        run(tmp_path / "a.corpus", **change)
    same(open_corpus(tmp_path / "a.corpus"), corpus)


def test_other_versions_are_refused_by_name(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("interp.corpus.measuring.versions", lambda: work.versions() | {"numba": "0.1"})
    with pytest.raises(CorpusMismatchError, match=r"has the version of numba .*, and this run has 0\.1"):
        run(tmp_path / "a.corpus")


def test_what_is_no_corpus_is_neither_read_nor_written_over(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "plan.json").write_text('{"my": "plan"}')
    (tmp_path / "file").write_text("text")
    for place in ("mine", "file"):
        with pytest.raises(OutputError, match=r"is no corpus|a file is there"):
            run(tmp_path / place)
        with pytest.raises(CorpusError, match=r"there is no corpus|cannot read a corpus"):
            open_corpus(tmp_path / place)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["plan.json"]
    with pytest.raises(CorpusError, match="nothing is there"):
        open_corpus(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=r"there is no corpus|cannot read a corpus"):
        open_corpus(tmp_path / "empty")


def test_a_damaged_plan_and_a_newer_one_are_named(corpus, tmp_path):
    plan = tmp_path / "a.corpus" / "plan.json"
    text = plan.read_text(encoding="utf-8")
    assert Plan.from_json(text, "there").to_json() == text
    plan.write_text(text.replace('"version": 1', '"version": 2'), encoding="utf-8")
    with pytest.raises(CorpusError, match="has format 2"):
        open_corpus(tmp_path / "a.corpus")
    plan.write_text(text.replace('"sha256"', '"sha"'), encoding="utf-8")
    with pytest.raises(CorpusDamagedError, match=r"plan.json .* is damaged"):
        open_corpus(tmp_path / "a.corpus")


def test_a_record_cut_short_is_measured_again_and_one_that_went_is_named(corpus, tmp_path):
    record = tmp_path / "a.corpus" / "records" / "c.3.0"
    whole = record.read_bytes()
    record.write_bytes(whole[:-8])
    with pytest.warns(CorpusWarning, match="1 of 8 texts are left"):
        torn = open_corpus(tmp_path / "a.corpus")
    assert torn.texts["status"].tolist().count("left") == 1
    again = run(tmp_path / "a.corpus")
    assert len(again) == 8 and len(record.read_bytes()) == len(whole)
    record.unlink()
    with pytest.raises(CorpusDamagedError, match=r"record of text 3 .* is gone"):
        again.mean("head_summary")


def test_a_store_in_memory_holds_the_same(corpus):
    store = zarr.storage.MemoryStore()
    for place in (store, "memory://corpora/a.corpus"):
        same(run(place), corpus)
        same(open_corpus(place), corpus)
        same(run(place), corpus)
        with pytest.raises(InputError, match="other processes do not see it"):
            measure_corpus("somewhere", ROWS, place, workers=1)


def test_two_runs_at_once_keep_one_anothers_records(tmp_path):
    """The second begins when the first has measured half, and neither loses a text."""
    model, begun = quiet_model(), []

    def second(progress):
        if progress.done == 4 and not begun:
            begun.append(run(tmp_path / "a.corpus", model=model))

    found = run(tmp_path / "a.corpus", model=model, watch=second)
    assert len(found) == len(begun[0]) == 8
    same(found, run(tmp_path / "b.corpus", model=model))


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"n_tokens": 1}, InputError, "n_tokens=1"),
        ({"analyses": []}, InputError, "no analysis was asked for"),
        ({"analyses": "heads"}, InputError, "no analysis 'heads': a corpus holds head_summary"),
        ({"analyses": ["what_if_rope"]}, InputError, r"asked of one capture .* ask it of corpus.capture\(text\)"),
        ({"analyses": 3}, InputError, "analyses=3"),
        ({"layers": [5]}, StageError, "no layer 5"),
        ({"layers": []}, StageError, "no layer was asked for"),
        ({"workers": 2}, InputError, "a live model is measured in this process"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_written(tmp_path, arguments, error, says):
    with pytest.raises(error, match=says):
        measure_corpus(quiet_model(), ROWS, tmp_path / "a.corpus", **({"n_tokens": 9} | arguments))
    assert not (tmp_path / "a.corpus" / "plan.json").exists()


def test_questions_that_a_corpus_cannot_answer_say_why(corpus):
    with pytest.raises(InputError, match="this corpus holds head_summary, positional_bias, and not sink_rate"):
        corpus.mean("sink_rate")
    with pytest.raises(InputError, match="top_keys is asked of one capture"):
        _ = corpus["top_keys"]
    with pytest.raises(InputError, match="give the name of an analysis"):
        _ = corpus[0]
    with pytest.raises(InputError, match="no text '99'"):
        corpus.capture("99")
    with pytest.raises(CorpusError, match="with a model in memory: give it"):
        corpus.capture(0)
    with pytest.raises(CorpusError, match=r"measured with .*: give the model"):
        corpus.capture(0, model=quiet_model(seed=3))


def test_a_single_text_has_a_mean_and_no_interval(tmp_path):
    found = run(tmp_path / "a.corpus", ROWS[:1], analyses=list(ANALYSES))
    for analysis in found.analyses:
        mean = found.mean(analysis)
        for name in found[analysis].data_vars:
            if "text" in found[analysis][name].dims:
                np.testing.assert_allclose(mean[name], found[analysis][name][0], rtol=1e-12)
        assert np.isnan(next(v for name, v in mean.data_vars.items() if str(name).endswith("_sem"))).all()


def test_comparing_needs_the_same_texts_and_shape_and_finds_a_planted_difference(corpus, tmp_path):
    sharp = quiet_model()
    with np.errstate(all="ignore"):
        sharp.blocks[1].attn.q_norm.weight.data *= 3  # sharper attention in one layer
    other = run(tmp_path / "b.corpus", [*reversed(ROWS), [1, 2, 3]], sharp)
    found = corpus.compare(other, labels=("plain", "sharp"))
    difference = other["head_summary"]["entropy"].sel(text=[str(7 - n) for n in range(8)]).values
    assert found.attrs["n_texts"] == 8 and "sharp compared with plain on the same 8 texts" in found.attrs["description"]
    assert (difference - corpus["head_summary"]["entropy"].values)[:, 1].max() < 0
    assert (found["entropy_high"][1] < 0).all()
    np.testing.assert_allclose(found["first_token_mass_difference"][0], 0, atol=1e-12)
    assert (
        (found["entropy_low"] <= found["entropy_difference"]) & (found["entropy_difference"] <= found["entropy_high"])
    ).all()
    with pytest.raises(InputError, match="1 texts are in both"):
        corpus.compare(run(tmp_path / "c.corpus", [ROWS[0], [4, 5, 6]]))
    with pytest.raises(InputError, match="models of one shape, not layers 0-1 of 4 heads and layers 1 of 4 heads"):
        corpus.compare(run(tmp_path / "d.corpus", layers=1))
    with pytest.raises(InputError, match="give a corpus"):
        corpus.compare(corpus["head_summary"])


def _measure_quietly(path, rows):
    single_thread()
    run(path, rows)


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_values(tmp_path):
    """Children that are killed after a moment each, until one comes to its end."""
    rows = token_rows(30)
    single_thread()
    undisturbed = run(tmp_path / "a.corpus", rows)
    kills = 0
    for attempt in range(60):
        child = _CONTEXT.Process(target=_measure_quietly, args=(tmp_path / "b.corpus", rows))
        child.start()
        child.join(0.15 + 0.1 * (attempt % 7))
        if child.exitcode == 0:
            break
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += 1
        time.sleep(0.01)
    assert child.exitcode == 0 and kills >= 2
    same(undisturbed, open_corpus(tmp_path / "b.corpus"))


def test_without_dask_a_corpus_is_measured_here_and_workers_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert len(run(tmp_path / "a.corpus")) == 8
    for asked in ({"workers": 2}, {"scheduler": "tcp://127.0.0.1:8786"}):
        with pytest.raises(ClusterError, match=r"pip install 'ropescope\[cluster\]'"):
            measure_corpus("smollm2-135m", ROWS, tmp_path / "b.corpus", n_tokens=9, **asked)
    assert not (tmp_path / "b.corpus").exists()
