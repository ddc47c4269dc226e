"""A description of attention that describes none is refused; who sees whom is held against the definition."""

import math

import pytest
import torch

from hooks import AttentionSpec, ConfigError

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": 0.0}, {"scale": -1.0}, {"scale": NAN}, {"scale": "1"}, {"scale": True}, {"window": 0},
        {"window": -1}, {"window": NAN}, {"window": 4.0}, {"window": True}, {"softcap": 0.0}, {"softcap": -1.0},
        {"softcap": INF}, {"softcap": NAN}, {"causal": "no"}, {"causal": 1}, {"causal": None}, {"sinks": [1.0]},
        {"sinks": torch.zeros(2, 2)}, {"alibi_slopes": 0.5}, {"alibi_slopes": "12"}, {"alibi_slopes": (NAN,)},
        {"alibi_slopes": ("a",)},
    ],
    ids=str,
)  # fmt: skip
def test_it_names_the_field_and_the_value(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=rf"^{name}="):
        AttentionSpec(**({"scale": 1.0} | wrong))


def test_lists_and_numpy_numbers_become_plain_values():
    spec = AttentionSpec(1.0, window=torch.tensor(3), alibi_slopes=[1, 0.5])
    assert type(spec.window) is int and spec.alibi_slopes == (1.0, 0.5)
    assert spec == AttentionSpec(1.0, window=3, alibi_slopes=(1.0, 0.5)) and hash(spec) == hash(spec)


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


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 3, 40])
@pytest.mark.parametrize("n_keys", [6, 12])
def test_the_run_of_a_query_ends_with_its_document(causal, window, n_keys):
    documents = torch.tensor([[0, 1, 5, 9], [0, 4, 12, 12]])  # filled up where a row has fewer
    index, number = torch.arange(12), [[sum(s <= i for s in row) for i in range(12)] for row in documents.tolist()]
    first, stop = AttentionSpec(1.0, causal=causal, window=window).seen(index, n_keys, documents)
    for row in range(2):
        alone = AttentionSpec(1.0, causal=causal, window=window).seen(index, n_keys, documents[row])
        assert torch.equal(first[row], alone[0]) and torch.equal(stop[row], alone[1])
        for i, low, high in zip(range(12), first[row].tolist(), stop[row].tolist(), strict=True):
            same = [j for j in range(n_keys) if number[row][j] == number[row][i]]
            assert list(range(low, high)) == [j for j in same if sees(i, j, causal, window)]


def test_the_last_document_has_no_end_where_keys_have_none():
    _, stop = AttentionSpec(1.0, causal=False).seen(torch.arange(4), torch.iinfo(torch.int64).max, torch.tensor([0, 2]))
    assert stop.tolist() == [2, 2, *[torch.iinfo(torch.int64).max] * 2]


def test_runs_keep_the_axes_of_the_queries():
    first, stop = AttentionSpec(1.0, window=3).seen(torch.tensor([[0, 5], [9, 2]], dtype=torch.int32), 8)
    assert first.tolist() == [[0, 3], [7, 0]]
    assert stop.tolist() == [[1, 6], [8, 3]]
    assert AttentionSpec(1.0).seen(torch.tensor(4), 8)[1].shape == ()
    index, documents = torch.tensor([[0, 5], [7, 2]]), torch.tensor([[0, 2], [0, 6]])
    first, stop = AttentionSpec(1.0, causal=False).seen(index, 8, documents)
    assert first.tolist() == [[[0, 2], [2, 2]], [[0, 0], [6, 0]]]
    assert stop.tolist() == [[[2, 8], [8, 8]], [[6, 6], [8, 6]]]
    assert AttentionSpec(1.0).seen(index, 8, documents[0])[0].tolist() == [[0, 2], [2, 2]]
