"""score_extremes against whole float64 score matrices, under every mask and every way in which scores are finished."""

import pytest
import torch
from dense import dense_scores

from hooks import AttentionSpec
from hooks.functional import extremes
from hooks.functional.extremes import score_extremes
from hooks.functional.place import Place


def random(batch, n, heads, d=16, seed=0):
    return torch.randn(batch, n, heads, d, generator=torch.Generator().manual_seed(seed))


def dense_ends(q, k, spec, **masks):
    """(min, max) of each head over a batch, hidden pairs left out."""
    fields = {"causal": spec.causal, "window": spec.window, "softcap": spec.softcap, "alibi_slopes": spec.alibi_slopes}
    rows = []
    for row in range(len(q)):
        own = {name: value[row] if torch.is_tensor(value) else value for name, value in masks.items()}
        rows.append(dense_scores(q[row], k[row], spec.scale, **fields, **own))
    scores = torch.stack(rows)
    hidden = scores == -torch.inf
    return scores.masked_fill(hidden, torch.inf).amin((0, 2, 3)), scores.amax((0, 2, 3))


SPECS = {
    "causal": {},
    "everything": {"causal": False},
    "window": {"window": 5},
    "window both ways": {"window": 5, "causal": False},
    "soft-cap": {"softcap": 1.5},
    "alibi": {"alibi_slopes": (0.5, 0.25, 0.1, 0.05)},
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("n", "kv_heads"), [(1, 4), (23, 2), (64, 1), (150, 2)])
def test_the_ends_of_the_whole_matrix(name, n, kv_heads):
    q, k, spec = random(3, n, 4), random(3, n, kv_heads, seed=1), AttentionSpec(scale=0.25, **SPECS[name])
    for found, expected in zip(score_extremes(q, k, spec), dense_ends(q, k, spec), strict=True):
        assert torch.allclose(found.double(), expected, atol=1e-5)


@pytest.mark.parametrize("n_keys", [20, 70])
def test_queries_that_come_later(n_keys):
    q, k, spec = random(2, 9, 4), random(2, n_keys, 2, seed=1), AttentionSpec(scale=0.25)
    start = n_keys - 9
    found = score_extremes(q, k, spec, Place(start))
    for ours, expected in zip(found, dense_ends(q, k, spec, query_start=start), strict=True):
        assert torch.allclose(ours.double(), expected, atol=1e-5)


def test_padding_and_packed_documents_are_hidden():
    q, k, spec = random(2, 40, 4), random(2, 40, 2, seed=1), AttentionSpec(scale=0.25)
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[0, :15] = False
    found = score_extremes(q, k, spec, Place(key_mask=mask))
    for ours, expected in zip(found, dense_ends(q, k, spec, key_mask=mask), strict=True):
        assert torch.allclose(ours.double(), expected, atol=1e-5)
    packed = score_extremes(q, k, spec, Place(documents=torch.tensor([0, 13, 30])))
    parts = [dense_ends(q[:, a:b], k[:, a:b], spec) for a, b in ((0, 13), (13, 30), (30, 40))]
    assert torch.allclose(packed[0].double(), torch.stack([low for low, _ in parts]).amin(0), atol=1e-5)
    assert torch.allclose(packed[1].double(), torch.stack([high for _, high in parts]).amax(0), atol=1e-5)


def test_blocks_of_any_height_and_low_precision_say_the_same(monkeypatch):
    q, k, spec = random(2, 100, 4), random(2, 100, 2, seed=1), AttentionSpec(scale=0.25)
    low, high = score_extremes(q.bfloat16(), k.bfloat16(), spec)
    assert low.dtype == torch.float32
    for ours, expected in zip((low, high), dense_ends(q.bfloat16(), k.bfloat16(), spec), strict=True):
        assert torch.allclose(ours.double(), expected, atol=1e-5)
    monkeypatch.setattr(extremes, "_BUDGET", 1)  # one row at a time
    for ours, expected in zip(score_extremes(q, k, spec), dense_ends(q, k, spec), strict=True):
        assert torch.allclose(ours.double(), expected, atol=1e-5)


def test_a_nan_is_not_lost():
    q, k = random(1, 70, 2), random(1, 70, 2, seed=1)
    q[0, 69, 1, 0] = torch.nan
    low, high = score_extremes(q, k, AttentionSpec(scale=0.25))
    assert low.isnan().tolist() == high.isnan().tolist() == [False, True]


def test_what_the_future_holds_changes_nothing():
    q, k = random(1, 70, 2).abs(), random(1, 70, 2, seed=1)
    k[0, 69], q[0, 69] = 1e6, 0.0
    low, high = score_extremes(q, k, AttentionSpec(scale=0.25))
    assert float(high.max()) < 100 and float(low.min()) > -100
