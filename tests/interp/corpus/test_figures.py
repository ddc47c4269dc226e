"""What a corpus returns is drawn: means with their band, texts that differ, two corpora; numbers against numpy."""

import numpy as np
import pytest
from figure_audit import audit
from tiny_corpus import N_TOKENS, quiet_model, token_rows
from zarr.storage import MemoryStore

from hooks.errors import InputError, StageError
from interp import measure_corpus, plots
from interp.corpus.analyses import ANALYSES

SLIDING = {"layer_types": ("sliding_attention", "full_attention"), "window_size": 13}
ROWS = token_rows(12)


def measured(rows=ROWS, **changes):
    return measure_corpus(quiet_model(**changes), rows, MemoryStore(), n_tokens=N_TOKENS, analyses=list(ANALYSES))


@pytest.fixture(scope="module")
def corpus():
    return measured(**SLIDING)


@pytest.mark.parametrize("analysis", ANALYSES)
def test_every_mean_is_a_figure_that_says_how_many_texts(corpus, analysis):
    figure = plots.show(corpus.mean(analysis))
    assert audit(figure) == []
    if analysis != "loss_by_position":
        assert "all of 12 texts together" in figure.layout.title.subtitle.text
    for part in (corpus.mean(analysis).sel(layer=[1]),) if "layer" in corpus.mean(analysis).dims else ():
        assert audit(plots.show(part)) == []


@pytest.mark.parametrize("analysis", ANALYSES)
def test_results_of_every_text_are_their_mean_and_say_so(corpus, analysis):
    figure = plots.show(corpus[analysis])
    assert audit(figure) == []
    assert "mean over text (12)" in (figure.layout.title.subtitle.text or "")


@pytest.mark.parametrize("analysis", ["positional_bias", "received_by_position", "loss_by_position"])
def test_curves_of_many_texts_have_the_band_of_their_interval(corpus, analysis):
    mean = corpus.mean(analysis)
    name = {"positional_bias": "attention_mean", "loss_by_position": "loss_mean"}.get(analysis, "received_mean")
    figure = plots.show(mean)
    bands = [trace for trace in figure.data if trace.meta]
    assert bands and all(band.meta == "band: 95 % of 2,000 resamples of the texts" for band in bands)
    last = mean if "layer" not in mean.dims else mean.isel(layer=1, head=3)
    low, high = (last[f"{name}_{edge}"].values for edge in ("low", "high"))
    drawn = np.asarray(bands[-1].y, dtype=float)
    assert np.isin(np.float32(high[np.isfinite(high)]), np.float32(drawn)).mean() > 0.9
    assert np.isin(np.float32(low[np.isfinite(low) & (low > 0)]), np.float32(drawn)).mean() > 0.9


def test_intervals_of_heads_are_those_of_the_mean(corpus):
    mean = corpus.mean("head_summary")
    figure = plots.head_intervals(mean, "entropy", highlight={(1, 2): "wide"})
    assert audit(figure) == [] and "L1 H2 wide" in figure.to_json()
    [points] = figure.data
    np.testing.assert_allclose(points.y, mean["entropy"].values.ravel())
    np.testing.assert_allclose(points.y + points.error_y.array, mean["entropy_high"].values.ravel())
    np.testing.assert_allclose(points.y - points.error_y.arrayminus, mean["entropy_low"].values.ravel())
    with pytest.raises(
        InputError, match=r"name='utilisation': no number of heads with an interval; there are first_to"
    ):
        plots.head_intervals(mean, "utilisation")


def test_differences_without_zero_stand_out(corpus):
    found = corpus.compare(measured(seed=5, **SLIDING))
    figure = plots.head_intervals(found, "entropy_difference")
    assert audit(figure) == []
    clear = (found["entropy_low"] > 0) | (found["entropy_high"] < 0)
    strong = [trace for trace in figure.data if trace.name == "interval without zero"]
    assert sum(len(trace.y) for trace in strong) == int(clear.sum())
    assert audit(plots.show(found)) == []


def test_the_spread_over_texts_is_numpys_and_the_widest_head_comes_first(corpus):
    spread, values = corpus.spread(), corpus["head_summary"]["entropy"].values
    np.testing.assert_allclose(spread["entropy_sd"], values.std(0))
    np.testing.assert_allclose(spread["entropy_quantile"], np.quantile(values, spread["q"].values, axis=0))
    figure = plots.spread_over_texts(spread, name="entropy", most=3)
    assert audit(figure) == []
    widest = np.argsort(-values.std(0).ravel())[:3]
    assert list(figure.data[0].text) == [f"L{i // 4} H{i % 4}" for i in widest]
    np.testing.assert_allclose(figure.data[0].y, np.median(values, 0).ravel()[widest])
    assert audit(plots.show(spread)) == []
    with pytest.raises(InputError, match="no score of this spread; there are first_token_mass"):
        plots.spread_over_texts(spread, name="nothing")
    with pytest.raises(InputError, match="loss_by_position has no number for each head"):
        corpus.spread("loss_by_position")


def test_top_texts_of_a_head_are_those_with_the_largest_value(corpus):
    found = corpus.top_texts("head_summary", "induction", 1, 2, n=3)
    values = corpus["head_summary"]["induction"].values[:, 1, 2]
    best = np.argsort(-np.nan_to_num(values, nan=-1), kind="stable")[:3]
    assert found["text"].values.tolist() == [str(n) for n in best]
    np.testing.assert_array_equal(found["value"], values[best])
    assert found["tokens"].values.tolist() == [min(len(ROWS[n]), N_TOKENS) for n in best]
    assert audit(plots.show(found)) == []
    with pytest.raises(StageError, match="no layer 9"):
        corpus.top_texts("head_summary", "induction", 9, 0)
    with pytest.raises(StageError, match="no head 4"):
        corpus.top_texts("head_summary", "induction", 1, 4)
    with pytest.raises(InputError, match="variable='attention_mean': give one of"):
        corpus.top_texts("head_summary", "attention_mean", 1, 0)
    with pytest.raises(InputError, match="n=0"):
        corpus.top_texts("head_summary", "induction", 1, 0, n=0)


def test_a_single_text_is_drawn_without_a_band():
    alone = measured(ROWS[:1])
    for analysis in ANALYSES:
        assert audit(plots.show(alone.mean(analysis))) == []
    figure = plots.head_intervals(alone.mean("head_summary"), "entropy")
    assert audit(figure) == [] and figure.layout.title.subtitle.text == "a single text has no interval"
