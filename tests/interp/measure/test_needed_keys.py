"""Counts of keys against the sorted dense float64 pattern, and against rows whose counts are known."""

import numpy as np
import pytest
import torch
from dense import dense_pattern, dense_scores
from hypothesis import given, settings
from hypothesis import strategies as st

from hooks.config.attention_spec import AttentionSpec
from hooks.errors import InputError
from interp.measure.needed_keys import needed_keys

LEVELS, GAPS = (0.5, 0.9, 0.95, 0.99), (0.5, 1.0, 4.0)
NEAR, CLOSE = 1e-6, 3e-5


def check(q, k, spec, portable, **places):
    """Every count lies between those of the sorted dense float64 pattern a little below and a little above."""
    rules = {"causal": spec.causal, "window": spec.window, "softcap": spec.softcap, "alibi_slopes": spec.alibi_slopes}
    scores = dense_scores(q, k, spec.scale, **rules, **places)
    mass = dense_pattern(scores, spec.sinks).sort(-1, descending=True).values.cumsum(-1)
    found = needed_keys(q, k, spec, LEVELS, GAPS, portable=portable, **places)
    for at, level in enumerate(LEVELS):
        low, high = ((mass < level + off).sum(-1) + 1 for off in (-NEAR, NEAR))
        needed = torch.from_numpy(found.needed[:, at])
        never = torch.isnan(needed)
        assert ((low <= needed) & (needed <= high) | never).all()
        assert (mass[..., -1][never] < level + NEAR).all() and (mass[..., -1][~never] > level - NEAR).all()
    top = scores.amax(-1, keepdim=True)
    for at, gap in enumerate(GAPS):
        low, high = ((top - scores <= gap + off).sum(-1) for off in (-CLOSE, CLOSE))
        within = torch.from_numpy(found.within[:, at])
        assert ((low <= within) & (within <= high)).all()
    assert (found.seen == torch.isfinite(scores[0]).sum(-1).numpy()).all()


@st.composite
def problems(draw):
    """q, k, a spec and places of any shape that a model can have, ties included."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    kv_heads, group = draw(st.sampled_from([(1, 1), (1, 4), (2, 2), (3, 1)]))
    heads, d = kv_heads * group, draw(st.sampled_from([4, 17, 64, 256]))
    n_q = draw(st.sampled_from([1, 2, 3, 8, 65, 131, 530]))
    offset = draw(st.sampled_from([0, 0, 30]))
    n_k = n_q + offset
    size = draw(st.sampled_from([0.0, 0.1, 1.0, 3.0, 30.0]))
    q, k = (torch.randn(n, h, d, generator=generator) for n, h in ((n_q, heads), (n_k, kv_heads)))
    ties = draw(st.sampled_from(["none", "none", "all", "some", "in pairs"]))
    if ties == "all":
        k = k[:1].expand(n_k, -1, -1)
    elif ties == "some":
        q, k = q.round(), k.round()
    elif ties == "in pairs":
        k = k[torch.arange(n_k) // 2]
    spec = AttentionSpec(
        scale=d**-0.5,
        causal=draw(st.sampled_from([True, True, False])),
        window=draw(st.sampled_from([None, None, 1, 7, 64])),
        softcap=draw(st.sampled_from([None, None, None, 5.0])),
        sinks=draw(st.sampled_from([None, torch.randn(heads, generator=generator) * 3])),
        alibi_slopes=draw(st.sampled_from([None, None, None, tuple(0.5 ** (1 + h) for h in range(heads))])),
    )
    places = {"query_start": offset}
    if draw(st.booleans()):
        places["key_mask"] = torch.rand(n_k, generator=generator) > 0.3
        places["key_mask"][0] = True
    if draw(st.booleans()):
        places["documents"] = sorted({0, *draw(st.lists(st.integers(0, n_k - 1), max_size=4))})
    return q * size, k, spec, places


@settings(max_examples=40, deadline=None)
@given(problems(), st.booleans())
def test_counts_lie_between_those_of_the_sorted_pattern(problem, portable):
    q, k, spec, places = problem
    check(q, k, spec, portable, **places)


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 100, 1000, 4097])
def test_equal_keys_are_counted_like_a_share(n, portable):
    """A query that sees n equal keys needs ⌈n p⌉ of them: 50 of 100 are half, not 51."""
    q, k, spec = torch.ones(1, 1, 8), torch.ones(n, 1, 8), AttentionSpec(scale=1.0)
    found = needed_keys(q, k, spec, LEVELS, (0.0,), query_start=n - 1, portable=portable)
    assert found.needed[0, :, 0].tolist() == [np.ceil(round(n * level, 6)) for level in LEVELS]
    assert found.within[0, 0, 0] == n


@pytest.mark.parametrize("portable", [False, True])
def test_powers_of_two_and_a_sink_are_counted_as_by_hand(portable):
    """Keys with weights ½, ¼, ⅛ … of a row, in any order: n of them hold 1 − 2⁻ⁿ; a sink of weight 1 halves it."""
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    k = -(order.float() + 1)[:, None, None] * np.log(2)
    q, place = torch.ones(1, 1, 1), {"query_start": 29, "portable": portable}
    found = needed_keys(q, k, AttentionSpec(scale=1.0), (0.5, 0.74, 0.76, 0.99), **place)
    assert found.needed[0, :, 0].tolist() == [1, 2, 3, 7]
    sunk = needed_keys(q, k, AttentionSpec(scale=1.0, sinks=torch.zeros(1)), (0.2, 0.3, 0.49, 0.51), **place)
    assert sunk.needed[0, :3, 0].tolist() == [1, 2, 6] and np.isnan(sunk.needed[0, 3, 0])


def test_scores_too_large_for_float32_are_sorted_in_float64():
    """Scores around 40,000, where float32 knows multiples of 1/256 only, that differ by what float64 tells apart."""
    generator = torch.Generator().manual_seed(1)
    q, k = torch.full((200, 2, 4), 200.0), torch.full((200, 1, 4), 50.0)
    k += torch.randn(200, 1, 4, generator=generator) * 1e-3
    check(q, k, AttentionSpec(scale=1.0), portable=False)


def test_a_query_that_sees_nothing_needs_no_number_of_keys():
    q = torch.ones(3, 1, 4)
    mask = torch.tensor([False, False, True])
    found = needed_keys(q, q, AttentionSpec(scale=1.0), (0.5,), (1.0,), key_mask=mask)
    assert np.isnan(found.needed[0, 0, :2]).all() and found.needed[0, 0, 2] == 1
    assert found.within[0, 0].tolist() == [0, 0, 1] and found.seen.tolist() == [0, 0, 1]


def test_what_is_not_finite_is_refused():
    q = torch.full((2, 1, 4), 1e38)
    with pytest.raises(InputError, match="overflows"):
        needed_keys(q, q, AttentionSpec(scale=1.0), (0.5,))
