"""Texts on which heads show: repeated tokens, their copies (all or subsampled), and a planted needle."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_hooked import random_tokens, tiny_config, tiny_model

from hooks.errors import InputError, TextError
from interp.analyses.heads.copies import Copies
from interp.analyses.heads.summary import head_summary
from interp.captures import capture
from interp.texts.needles import plant_needle
from interp.texts.repeated import repeated_tokens


@settings(max_examples=25)
@given(n=st.integers(2, 300), vocab=st.integers(1, 40), budget=st.integers(1, 4000), seed=st.integers(0, 9))
def test_subsampled_copies_stand_for_all(n, vocab, budget, seed):
    tokens = random_tokens(n, vocab=vocab, seed=seed)[0]
    every, some = Copies.of(tokens), Copies.of(tokens, pair_budget=budget)
    assert every.n_measured == every.n_queries == some.n_queries == n - len(tokens.unique())
    assert sum(g.weight * g.ranks.numel() for g in some.groups) == pytest.approx(every.n_queries)
    pairs = sum(g.ranks.numel() * g.places.shape[1] for g in some.groups)
    assert pairs <= max(budget, sum(g.places.numel() for g in every.groups))
    for group in some.groups:
        assert (tokens[group.places] == tokens[group.places[:, :1]]).all() and (group.places.diff() > 0).all()
        assert (group.ranks >= 1).all() and (group.ranks.diff() > 0).all()
    if some.n_measured < some.n_queries:
        assert f"{some.n_measured:,} of {some.n_queries:,}" in some.extent and "seed 0" in some.extent


def test_subsampling_is_near_the_exact_score(monkeypatch):
    cap = capture(tiny_model(), random_tokens(600, vocab=8)[0])
    exact = head_summary(cap)
    monkeypatch.setattr(
        "interp.analyses.heads.summary.Copies.of", lambda tokens, of=Copies.of: of(tokens, pair_budget=12_000)
    )
    sampled = head_summary(cap)
    assert "subsampled" in sampled.attrs["copies"] and "all 592" in exact.attrs["copies"]
    for name in ("induction", "duplicate_token"):
        np.testing.assert_allclose(sampled[name], exact[name], rtol=0.1)
        assert (sampled[name] != exact[name]).all()


def test_chunks_change_nothing(monkeypatch):
    cap = capture(tiny_model(window_size=9), random_tokens(200, vocab=11)[0])
    whole = head_summary(cap)
    monkeypatch.setattr("interp.analyses.heads.copies._CHUNK", 3000)
    small = head_summary(cap)
    for name in ("induction", "duplicate_token"):
        np.testing.assert_allclose(small[name], whole[name], rtol=1e-5)


def test_repeated_tokens_are_distinct_and_repeat():
    cfg = tiny_config(d_vocab=61)
    state = torch.random.get_rng_state()
    tokens = repeated_tokens(cfg, 50, repeats=3, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert tokens.shape == (150,) and len(tokens[:50].unique()) == 50
    assert torch.equal(tokens[:50], tokens[100:]) and not torch.equal(tokens, repeated_tokens(cfg, 50, 3, seed=2))
    longer = repeated_tokens(cfg, 100)
    assert longer.max() < 61 and len(longer[:100].unique()) == 61
    with pytest.raises(InputError, match=r"(length|repeats)=1: give a whole number of at least 2"):
        repeated_tokens(cfg, 9, repeats=1)


class _Tokenizer:
    """Words are characters; 0 begins a text, 1 ends it, 7 was added."""

    all_special_ids = (0, 1)
    bos_token_id = 0

    def __len__(self):
        return 50

    def get_added_vocab(self):
        return {"<added>": 7}


class _Worded:
    """As much of a model as the helpers for texts need."""

    cfg = tiny_config(d_vocab=61)
    tokenizer = _Tokenizer()

    def to_tokens(self, text, prepend_bos=True):
        ids = [0] * (prepend_bos is not False) + [10 + ord(c) % 40 for c in text]
        return torch.tensor([ids])


def test_special_tokens_are_left_out_and_a_text_begins_as_the_tokenizer_wants():
    tokens = repeated_tokens(_Worded(), 47)  # pyright: ignore[reportArgumentType]
    assert tokens[0] == 0 and len(tokens) == 95
    assert set(tokens[1:].tolist()) == set(range(50)) - {0, 1, 7}


@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_a_needle_is_planted_at_its_depth(depth):
    needle = plant_needle(_Worded(), 400, depth, sentence="needle", question="where?", haystack="hay " * 200)
    ids = _Worded().to_tokens("needle", prepend_bos=False)[0]
    assert len(needle.tokens) == 400 and needle.tokens[0] == 0
    assert torch.equal(needle.tokens[needle.needle], ids) and torch.equal(needle.tokens[needle.answer], ids)
    rest = 400 - 2 * 6 - 6
    assert needle.needle.start == 1 + round(depth * (rest - 1))
    with pytest.raises(InputError, match="give more"):
        plant_needle(_Worded(), 15, sentence="needle", question="where?")
    with pytest.raises(InputError, match="depth=2"):
        plant_needle(_Worded(), 400, 2)
    with pytest.raises(InputError, match="sentence='' has no tokens"):
        plant_needle(_Worded(), 400, sentence="")
    with pytest.raises(TextError, match="the haystack has 9 tokens and n_tokens=400 needs 382"):
        plant_needle(_Worded(), 400, sentence="needle", question="where?", haystack="hay hay ")
