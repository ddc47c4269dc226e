"""The rules read off a mask are the mask: held against the tables that transformers itself builds."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    sdpa_mask,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)

from hooks.attached.masks import mask_rules, table_rules
from hooks.config.attention_spec import AttentionSpec
from hooks.functional.visible import visible_keys

KINDS = {
    "causal": lambda size, pads: causal_mask_function,
    "both ways": lambda size, pads: bidirectional_mask_function,
    "sliding": lambda size, pads: sliding_window_causal_mask_function(size),
    "sliding both ways": lambda size, pads: sliding_window_bidirectional_mask_function(size),
    "chunked": lambda size, pads: chunked_causal_mask_function(size, pads),
}


def table(rules, n_queries, n_keys, batch):
    """[batch query key] of what the rules let through."""
    spec = AttentionSpec(1.0, causal=rules.causal, window=rules.window)
    queries, keys = torch.arange(n_queries) + rules.query_start, torch.arange(n_keys)
    return visible_keys(spec, queries, keys, rules.key_mask).expand(batch, n_queries, n_keys)


@settings(deadline=None, max_examples=120)
@given(
    kind=st.sampled_from(list(KINDS)),
    n=st.integers(1, 19),
    past=st.integers(0, 7),
    size=st.integers(1, 23),
    left=st.lists(st.integers(0, 5), min_size=1, max_size=3),
)
def test_rules_let_through_what_the_table_does(kind, n, past, size, left):
    n_keys, batch = n + past, len(left)
    pads = torch.tensor([min(each, n_keys - 1) for each in left])
    padding = torch.arange(n_keys)[None] >= pads[:, None]
    asked = {"q_length": n, "kv_length": n_keys, "q_offset": past, "kv_offset": 0, "batch_size": batch}
    rule = KINDS[kind](size, pads)
    local = None if kind in ("causal", "both ways") else size
    rules = mask_rules(**asked, mask_function=rule, attention_mask=padding, local_size=local)
    if kind == "chunked" and n_keys > size:
        assert "chunks of" in rules.problem
        return
    assert rules.problem is None
    built = sdpa_mask(**asked, mask_function=rule, attention_mask=padding, allow_is_causal_skip=False)
    assert torch.equal(table(rules, n, n_keys, batch), built[:, 0])


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 15),
    past=st.integers(0, 5),
    window=st.none() | st.integers(1, 9),
    left=st.integers(0, 4),
    floats=st.booleans(),
)
def test_a_table_handed_in_is_read_back(n, past, window, left, floats):
    n_keys = n + past
    padding = (torch.arange(n_keys) >= min(left, n_keys - 1))[None]
    rule = causal_mask_function if window is None else sliding_window_causal_mask_function(window)
    built = sdpa_mask(1, n, n_keys, past, 0, rule, padding, allow_is_causal_skip=False)
    mask = torch.where(built, 0.0, torch.finfo(torch.float32).min) if floats else built
    rules = table_rules(mask, window)
    assert rules.problem is None
    assert torch.equal(table(rules, n, n_keys, 1), built[:, 0])


@pytest.mark.parametrize(
    "rule",
    [
        and_masks(causal_mask_function, lambda b, h, q, k: (q + k) % 2 == 0),
        sliding_window_causal_mask_function(4),
        partial(causal_mask_function),
        lambda b, h, q, k: k <= q,
    ],
)
def test_a_rule_of_its_own_is_not_taken_for_another(rule):
    assert "neither causal" in mask_rules(1, 9, 9, mask_function=rule, local_size=5).problem


@pytest.mark.parametrize("spoil", ["hole", "bias", "heads"])
def test_a_table_without_a_rule_says_so(spoil):
    mask = torch.where(torch.ones(7, 7).tril().bool(), 0.0, torch.finfo(torch.float32).min)[None, None].clone()
    if spoil == "hole":
        mask[..., 5, 3] = torch.finfo(torch.float32).min
    elif spoil == "bias":
        mask[..., 5, 3] = -1.5
    else:
        mask = mask.expand(1, 2, 7, 7)
    assert "attention_mask as" in table_rules(mask, None).problem
