"""The head table against dense float64 definitions and against heads whose weights were written by hand."""

import math

import numpy as np
import planted
import pytest
import torch
import xarray as xr
from dense import dense_pattern, dense_scores
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_hooked import random_tokens, tiny_model

from hooks import QKNormConfig
from hooks.errors import InputError, StageError
from interp.analyses.heads.comparison import compare
from interp.analyses.heads.scores import SCORES
from interp.analyses.heads.summary import head_summary, head_table, typical_heads
from interp.analyses.scores.bound import score_bound
from interp.captures import Capture, capture, open_capture
from interp.texts.needles import Needle
from interp.texts.repeated import repeated_tokens

VARIANTS = {
    "plain": {},
    "sliding": {"window_size": 9, "layer_types": ("sliding_attention", "full_attention")},
    "softcap": {"attn_scores_soft_cap": 1.5},
    "sinks": {"learned_sinks": True, "qk_norm": None},
    "alibi": {"alibi_slopes": (0.5, 0.25, 0.1, 0.02), "rope": None},
    "many": {"n_heads": 6, "n_key_value_heads": 1, "window_size": 30, "learned_sinks": True},
}


def dense_head_scores(cap, layer, needle=None):
    """Every score of one layer by its definition, from the n × n matrices in float64."""
    spec, tokens, n = cap.spec(layer), cap.tokens.numpy(), len(cap.tokens)
    scores = dense_scores(
        cap.q(layer),
        cap.k(layer),
        spec.scale,
        window=spec.window,
        softcap=spec.softcap,
        alibi_slopes=spec.alibi_slopes,
        query_positions=cap.positions,
        key_positions=cap.positions,
    )
    p, s = dense_pattern(scores, spec.sinks).numpy(), scores.numpy()
    visible = np.isfinite(s[0])
    i, j = np.indices((n, n))
    delta = i - j
    out = {}
    sees_first = visible[:, 0] & (np.arange(n) > 0)
    out["first_token_mass"] = p[:, sees_first, 0].mean(1)
    out["previous_token"] = np.array([np.diag(h, -1).mean() for h in p])
    out["local_mass"] = (p * (delta < 64))[:, 64:].sum(-1).mean(1) if n > 64 else np.full(len(p), np.nan)
    copy = (tokens[:, None] == tokens[None, :]) & (delta > 0)
    follows = np.roll(copy, 1, axis=1)
    follows[:, 0] = False
    for name, pairs in (("duplicate_token", copy & visible), ("induction", follows & visible)):
        rows = pairs.any(1)
        out[name] = (p * pairs).sum(-1)[:, rows].mean(1) if rows.any() else np.full(len(p), np.nan)
    if needle is not None:
        answer = np.arange(needle.answer.start, needle.answer.stop)
        inside = np.arange(needle.needle.start, needle.needle.stop)
        out["needle_mass"] = p[:, answer - 1][:, :, inside].sum(-1).mean(1)
        out["retrieval"] = np.stack([_retrieval(rows, tokens, answer, inside) for rows in s])
    out["mean_distance"] = (p * delta).sum(-1).mean(1)
    entropy = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1)
    out["entropy"] = entropy.mean(1)
    out["normalised_entropy"] = (entropy[:, 1:] / np.log(visible.sum(1)[1:])).mean(1)
    out["positional_r2"] = np.empty(len(p))
    for h in range(len(p)):
        x, d = s[h][visible], delta[visible]
        within = np.concatenate([x[d == at] - x[d == at].mean() for at in np.unique(d)])
        out["positional_r2"][h] = 1 - (within**2).sum() / ((x - x.mean()) ** 2).sum()
    return out, s, visible


def _retrieval(scores, tokens, answer, inside):
    """Least and largest share of distinct needle tokens copied, were any of the all but largest scores the largest."""
    sure, maybe = set(), set()
    for at in answer:
        row = scores[at - 1]
        best = np.flatnonzero(row >= row.max() - 1e-4)
        copies = np.isin(best, inside) & (tokens[best] == tokens[at])
        sure |= {tokens[at]} if copies.all() else set()
        maybe |= {tokens[at]} if copies.any() else set()
    return np.array([len(sure), len(maybe)]) / len(set(tokens[inside]))


_CACHE = {}


def model_of(name):
    if name not in _CACHE:
        _CACHE[name] = tiny_model(**VARIANTS[name])
    return _CACHE[name]


@settings(max_examples=15)
@given(
    name=st.sampled_from(sorted(VARIANTS)),
    n=st.integers(2, 90),
    vocab=st.sampled_from([1, 3, 12, 61]),
    seed=st.integers(0, 99),
)
def test_every_score_is_its_definition(name, n, vocab, seed):
    tokens = random_tokens(n, vocab=vocab, seed=seed)[0]
    cap = capture(model_of(name), tokens)
    half, width = n // 2, max(1, n // 8)
    needle = Needle(tokens, slice(max(0, half - width), half + 1), slice(half + 1, n)) if n > 4 else None
    summary = head_summary(cap, needle=needle)
    assert summary.attrs["analysis"] == "head_summary"
    for layer in cap.layers:
        want, scores, visible = dense_head_scores(cap, layer, needle)
        got = summary.sel(layer=layer)
        assert set(want) == set(map(str, summary.data_vars)) - {"utilisation"}
        spread = scores[:, visible].std(1)
        for key, values in want.items():
            if key == "positional_r2":
                varies = spread > 1e-3
                np.testing.assert_allclose(got[key].values[varies], values[varies], atol=1e-4)
            elif key == "retrieval":
                assert (values[:, 0] <= got[key].values).all() and (got[key].values <= values[:, 1]).all()
            else:
                np.testing.assert_allclose(got[key].values, values, rtol=2e-5, atol=2e-5, err_msg=key)


@pytest.mark.parametrize("shift", [1, 40])
def test_alibi_goes_by_position_and_not_by_index(shift):
    tokens = random_tokens(80, vocab=12, seed=3)[0]
    cap = capture(model_of("alibi"), tokens)
    cap.positions = torch.arange(80) + 7 + shift * (torch.arange(80) >= 45)  # the rest of the text stands further off
    summary = head_summary(cap)
    for layer in cap.layers:
        want, _, _ = dense_head_scores(cap, layer)
        for key in ("duplicate_token", "induction", "entropy", "first_token_mass"):
            got = summary[key].sel(layer=layer).values
            np.testing.assert_allclose(got, want[key], rtol=2e-5, atol=2e-5, err_msg=key)


@pytest.mark.parametrize("name", ["plain", "softcap"])
def test_utilisation_is_the_largest_score_over_the_proven_bound(name):
    cap = capture(model_of(name), random_tokens(90))
    summary = head_summary(cap, [1])
    _, scores, visible = dense_head_scores(cap, 1)
    constants = cap.constants(1)
    bound = score_bound(
        cap.cfg.qk_norm,
        cap.cfg.rope_for(1),
        constants.gain_q,
        constants.gain_k,
        cap.spec(1),
        max_distance=89,
    )
    np.testing.assert_allclose(
        summary["utilisation"].sel(layer=1), np.abs(scores[:, visible]).max(1) / bound, rtol=1e-5
    )
    assert (summary["utilisation"] <= 1).all()


def test_a_window_of_one_key_leaves_nothing_but_the_token_itself():
    summary = head_summary(capture(tiny_model(window_size=1), random_tokens(20, vocab=3)))
    assert not summary[["entropy", "mean_distance", "first_token_mass"]].to_array().any()
    assert summary[["previous_token", "normalised_entropy", "duplicate_token"]].to_array().isnull().all()


def test_utilisation_is_nan_where_nothing_bounds_the_score():
    assert np.isnan(head_summary(capture(model_of("sinks"), random_tokens(9)))["utilisation"]).all()


# --- planted heads -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kinds():
    """The planted heads on token 0 and then random tokens, each of which comes about 20 times."""
    model = planted.planted_kinds()
    body = torch.randint(1, planted.KINDS_VOCAB, (780,), generator=torch.Generator().manual_seed(3))
    cap = capture(model, torch.cat([torch.tensor([0]), body]))
    return cap, head_summary(cap)


def lit(summary, name, above):
    """Heads whose score is above a threshold."""
    values = summary[name].values
    return {(int(a), int(b)) for a, b in zip(*np.nonzero(values > above), strict=True)}


def test_each_planted_head_is_recognised_and_nothing_else_lights_up(kinds):
    _, summary = kinds
    assert lit(summary, "first_token_mass", 0.2) == {planted.SINK}
    assert lit(summary, "previous_token", 0.2) == {planted.PREVIOUS}
    assert lit(summary, "induction", 0.2) == {planted.INDUCTION}
    assert lit(summary, "duplicate_token", 0.2) == {planted.DUPLICATE}
    # The token before is near, too.
    assert lit(summary, "local_mass", 0.5) == {planted.LOCAL, planted.PREVIOUS}
    uniform = {planted.UNIFORM, (0, 5), *((1, head) for head in range(2, 6))}
    assert lit(summary, "normalised_entropy", 1 - 1e-5) == uniform
    assert lit(summary, "positional_r2", 0.5) == {planted.PREVIOUS, planted.LOCAL, planted.ONE_PAIR}
    for name, head in [
        ("first_token_mass", planted.SINK),
        ("previous_token", planted.PREVIOUS),
        ("local_mass", planted.LOCAL),
        ("induction", planted.INDUCTION),
        ("duplicate_token", planted.DUPLICATE),
        ("positional_r2", planted.ONE_PAIR),
    ]:
        assert summary[name].sel(layer=head[0], head=head[1]) > 0.85, name


def test_planted_scores_are_their_closed_forms(kinds):
    cap, summary = kinds
    n = len(cap.tokens)
    at = lambda name, head: float(summary[name].sel(layer=head[0], head=head[1]))  # noqa: E731
    i = np.arange(n)
    assert at("first_token_mass", planted.UNIFORM) == pytest.approx(np.mean(1 / (i[1:] + 1)), rel=1e-5)
    assert at("previous_token", planted.UNIFORM) == pytest.approx(np.mean(1 / (i[1:] + 1)), rel=1e-5)
    assert at("entropy", planted.UNIFORM) == pytest.approx(np.mean(np.log(i + 1)), rel=1e-5)
    assert at("mean_distance", planted.UNIFORM) == pytest.approx(np.mean(i / 2), rel=1e-5)
    assert at("local_mass", planted.UNIFORM) == pytest.approx(np.mean(64 / (i[64:] + 1)), rel=1e-5)
    # The duplicate-token head looks at the current token and at its c earlier copies alike.
    earlier = (cap.tokens[:, None] == cap.tokens[None, :]).tril(-1).sum(1).numpy()
    copied = earlier[earlier > 0]
    assert at("duplicate_token", planted.DUPLICATE) == pytest.approx(np.mean(copied / (copied + 1)), rel=1e-4)
    # A head that only knows distances: cosines of the frequencies it uses.
    f = planted.inverse_frequencies(planted.KINDS_VOCAB // 2).numpy()
    pointer = 8.0**2 / math.sqrt(planted.KINDS_VOCAB) * np.cos(np.outer(i - 1, f)).sum(1)
    wave = planted.ONE_PAIR_HEIGHT * np.cos(f[planted.ONE_PAIR_INDEX] * (i - planted.ONE_PAIR_DISTANCE))
    for head, score in ((planted.PREVIOUS, pointer), (planted.ONE_PAIR, wave)):
        weight = np.exp(score - score.max())
        p = weight / np.cumsum(weight)[:, None]
        p[np.triu_indices(n, 1)] = 0
        assert at("previous_token", head) == pytest.approx(p[1:, 1].mean(), abs=1e-4)
        assert at("mean_distance", head) == pytest.approx((p @ i).mean(), rel=1e-3)
        assert at("positional_r2", head) == pytest.approx(1, abs=1e-3)


def test_typical_heads_name_the_planted_ones(kinds):
    _, summary = kinds
    best = typical_heads(summary, n=2)
    for kind, head in [
        ("sink", planted.SINK),
        ("previous token", planted.PREVIOUS),
        ("induction", planted.INDUCTION),
        ("duplicate token", planted.DUPLICATE),
    ]:
        first = best.sel(kind=kind, rank=0)
        assert (int(first["layer"]), int(first["head"])) == head
        assert float(first["score"]) == summary[str(first["score_name"].item())].sel(layer=head[0], head=head[1])
    assert best.attrs["analysis"] == "typical_heads"
    assert typical_heads(summary, n=99).sizes["rank"] == 12


@pytest.mark.parametrize(("length", "repeats"), [(7, 2), (38, 2), (13, 3), (100, 2)])
def test_induction_is_found_at_any_length_and_lag(length, repeats):
    model = planted.planted_kinds()
    tokens = repeated_tokens(model.cfg, length, repeats)
    summary = head_summary(capture(model, tokens))
    best = typical_heads(summary, 1).sel(kind="induction", rank=0)
    assert (int(best["layer"]), int(best["head"])) == planted.INDUCTION and best["score"] > 0.9


def test_a_needle_is_found_by_the_head_that_copies():
    model = planted.planted_kinds()
    needle, hay = torch.arange(1, 9), torch.randint(9, 40, (150,), generator=torch.Generator().manual_seed(0))
    # Token 1 begins needle and answer: each next one follows from the one before.
    tokens = torch.cat([torch.tensor([0]), hay[:60], needle, hay[60:], needle])
    planted_needle = Needle(tokens, slice(61, 69), slice(len(tokens) - 7, len(tokens)))
    summary = head_summary(capture(model, tokens), needle=planted_needle)
    assert lit(summary, "retrieval", 0.1) == {planted.INDUCTION}
    # The duplicate-token head looks at the needle as much, at the token before the one to copy.
    assert lit(summary, "needle_mass", 0.3) == {planted.INDUCTION, planted.DUPLICATE}
    # Seven of eight: token 1 has to be predicted by a token that no needle explains.
    assert summary["retrieval"].sel(layer=1, head=1) == pytest.approx(7 / 8)


# --- the table -----------------------------------------------------------------------------------------------------


def test_the_table_sorts_and_writes(kinds, tmp_path):
    _, summary = kinds
    table = head_table(summary, "induction")
    assert tuple(table.loc[0, ["layer", "head"]]) == planted.INDUCTION
    assert table["induction"].is_monotonic_decreasing and len(table) == 12
    assert list(head_table(summary)["head"][:6]) == list(range(6))
    table.to_csv(tmp_path / "heads.csv", index=False)
    lines = (tmp_path / "heads.csv").read_text().splitlines()
    assert lines[0].startswith("layer,head,layer_type,kv_head,first_token_mass,previous_token") and len(lines) == 13
    assert head_table(summary, "utilisation").shape == table.shape
    with pytest.raises(InputError, match="no score 'inductoin' to sort by; there are layer"):
        head_table(summary, "inductoin")
    with pytest.raises(InputError, match="n=0"):
        typical_heads(summary, 0)


def test_every_variable_says_what_it_is(kinds):
    _, summary = kinds
    for name, variable in summary.data_vars.items():
        assert variable.attrs["description"] == SCORES[name].description
        assert {"units", "formula"} <= set(variable.attrs)
    assert summary["layer_type"].values.tolist() == ["full_attention"] * 2
    grouped = head_summary(capture(tiny_model(), random_tokens(5)))
    assert grouped["kv_head"].values.tolist() == [0, 0, 1, 1]


def test_bad_input_says_what_would_have_helped(kinds):
    cap, _ = kinds
    with pytest.raises(StageError, match="layer 5"):
        head_summary(cap, [5])
    with pytest.raises(StageError, match="no layer was asked for"):
        head_summary(cap, [])
    other = Needle(torch.arange(9), slice(1, 3), slice(5, 7))
    with pytest.raises(InputError, match=r"did not read the needle's 9 tokens: capture\(model, needle.tokens\)"):
        head_summary(cap, needle=other)
    bad = capture(tiny_model(), random_tokens(30))
    bad.k(1)[3] = torch.inf
    with pytest.raises(InputError, match="layer 1: k holds NaN or infinity"):
        head_summary(bad)


def test_a_capture_on_disk_gives_the_same(tmp_path):
    model, tokens = model_of("many"), random_tokens(80, vocab=20)
    held, stored = capture(model, tokens), capture(model, tokens, path=tmp_path / "capture")
    opened = open_capture(tmp_path / "capture")
    for again in (stored, opened):
        xr.testing.assert_identical(head_summary(again), head_summary(held))
        np.testing.assert_array_equal(again.pattern[1, 3, 20:40, :30], held.pattern[1, 3, 20:40, :30])
        xr.testing.assert_identical(again.top_keys(0, 2, 70), held.top_keys(0, 2, 70))
        assert not compare(held, again)["profile_divergence"].any()


def test_a_capture_without_tokens_has_no_scores_of_copies():
    model = tiny_model(qk_norm=QKNormConfig())
    tokens = random_tokens(12)
    _, cache = model.run_with_cache(tokens)
    summary = head_summary(Capture.from_cache(cache))
    assert "induction" not in summary and "from_cache" in summary.attrs["copies"]
    whole = head_summary(Capture.from_cache(cache, tokens=tokens))
    np.testing.assert_array_equal(summary["entropy"], whole["entropy"])
    assert "induction" in whole
