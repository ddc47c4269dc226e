"""AttentionSpec.seen: the one place that says which keys a query sees, held against the definition, pair by pair."""

import pytest
import torch

from hooks import AttentionSpec


def sees(i, j, causal, window):
    """The definition: j ≤ i when causal, and |i − j| < window."""
    return (j <= i or not causal) and (window is None or abs(i - j) < window)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 2, 5, 40])
@pytest.mark.parametrize("n_keys", [1, 7, 12])
def test_the_run_of_each_query_holds_exactly_the_keys_that_it_sees(causal, window, n_keys):
    index = torch.arange(-9, 25)
    first, stop = AttentionSpec(1.0, causal=causal, window=window).seen(index, n_keys)
    assert first.dtype == stop.dtype == torch.int64
    for i, low, high in zip(index.tolist(), first.tolist(), stop.tolist(), strict=True):
        assert 0 <= low <= high <= n_keys
        assert list(range(low, high)) == [j for j in range(n_keys) if sees(i, j, causal, window)]


def test_runs_keep_the_axes_of_the_queries():
    first, stop = AttentionSpec(1.0, window=3).seen(torch.tensor([[0, 5], [9, 2]], dtype=torch.int32), 8)
    assert first.tolist() == [[0, 3], [7, 0]]
    assert stop.tolist() == [[1, 6], [8, 3]]
    assert AttentionSpec(1.0).seen(torch.tensor(4), 8)[1].shape == ()
