"""Merging and the bootstrap against scipy, numpy and planted truth."""

import numpy as np
import pytest
from scipy import stats

from interp.corpus.reduce import SEED, Resamples, chunks, interval, simultaneous


def ratio_of_sums(total, weight, axis=-1):
    return total.sum(axis) / weight.sum(axis)


@pytest.mark.parametrize("n", [2, 7, 150])
def test_a_ratio_of_sums_has_scipys_interval_to_rounding(n):
    rng = np.random.default_rng(n)
    total, weight = rng.normal(2, 1, n), rng.integers(1, 50, n).astype(float)
    theirs = stats.bootstrap(
        (total, weight),
        ratio_of_sums,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=2000,
        confidence_level=0.95,
        rng=np.random.default_rng(SEED),
    )
    draws = Resamples(n)
    ours = interval(total.sum() / weight.sum(), draws.sums(total) / draws.sums(weight))
    assert ours.low == pytest.approx(theirs.confidence_interval.low, rel=1e-12)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, rel=1e-12)
    assert ours.sem == pytest.approx(theirs.standard_error, rel=1e-12)


def test_sums_of_every_resample_are_those_of_its_texts():
    draws, values = Resamples(9, 250), np.random.default_rng(0).normal(size=(9, 2, 3))
    assert draws.counts.sum(axis=1).tolist() == [9] * 250
    by_hand = np.stack([sum(count * x for count, x in zip(row, values, strict=True)) for row in draws.counts])
    np.testing.assert_allclose(draws.sums(values), by_hand, rtol=1e-12)
    np.testing.assert_array_equal(Resamples(9, 250).counts, draws.counts)
    assert (Resamples(9, 250, seed=1).counts != draws.counts).any()


def test_resamples_without_anything_to_weigh_are_left_out():
    resampled = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan], [5.0, np.nan]])
    found = interval(np.array([3.0, np.nan]), resampled)
    assert found.sem[0] == pytest.approx(2.0) and found.low[0] == pytest.approx(1.1)
    assert np.isnan([found.sem[1], found.low[1], found.high[1]]).all()


def test_simultaneous_intervals_hold_for_all_heads_at_once_as_often_as_they_say():
    """Planted differences of 40 heads with shared noise: all are covered in about 95 % of 300 corpora."""
    rng, heads, texts = np.random.default_rng(5), 40, 60
    truth = np.linspace(-1, 1, heads)
    held = alone = 0
    for seed in range(300):
        noise = rng.normal(size=(texts, heads)) + rng.normal(size=(texts, 1))
        x = truth + noise * np.linspace(0.5, 2, heads)
        drawn = Resamples(texts, 400, seed).sums(x) / texts
        low, high = simultaneous(x.mean(0), drawn)
        held += bool(((low <= truth) & (truth <= high)).all())
        each = interval(x.mean(0), drawn)
        alone += bool(((each.low <= truth) & (truth <= each.high)).all())
    assert 0.89 <= held / 300 <= 0.985
    assert alone / 300 < 0.75  # intervals for one head each say less


def test_simultaneous_intervals_of_no_difference_are_a_point():
    low, high = simultaneous(np.zeros(3), np.zeros((50, 3)))
    assert low.tolist() == high.tolist() == [0.0] * 3


def test_layers_are_taken_a_run_at_a_time_and_none_twice():
    assert [list(range(30)[run]) for run in chunks(30, 10**6, 10**4)] == [[layer] for layer in range(30)]
    assert chunks(30, 10, 10) == [slice(0, 30)]
    assert [n for run in chunks(7, 100, 100, budget=30_000) for n in range(7)[run]] == list(range(7))
