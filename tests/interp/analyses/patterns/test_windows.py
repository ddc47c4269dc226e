"""Windows, pooled maps and top keys against dense float64 patterns; text selection; errors that say what to do."""

import numpy as np
import pytest
import torch
from dense import dense_pattern, dense_scores
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_hooked import random_tokens, tiny_model

from hooks.errors import InputError, MaterializationError, PositionError, StageError, TextError
from interp.analyses.patterns.windows import PatternView, attention_map, attention_pattern, top_keys
from interp.captures import capture

N = 75
VARIANTS = {
    "plain": {},
    "sliding": {"window_size": 11, "layer_types": ("sliding_attention", "full_attention")},
    "softcap": {"attn_scores_soft_cap": 1.5},
    "sinks": {"learned_sinks": True},
    "alibi": {"alibi_slopes": (0.5, 0.25, 0.1, 0.02), "rope": None},
    "many": {"n_heads": 6, "n_key_value_heads": 1, "window_size": 30, "learned_sinks": True},
}


def dense(cap, layer):
    """[head query key] float64 from the definition."""
    spec = cap.spec(layer)
    scores = dense_scores(
        cap.q(layer),
        cap.k(layer),
        spec.scale,
        window=spec.window,
        softcap=spec.softcap,
        alibi_slopes=spec.alibi_slopes,
    )
    return scores.numpy(), dense_pattern(scores, spec.sinks).numpy()


@pytest.fixture(scope="module", params=VARIANTS)
def cap(request):
    return capture(tiny_model(**VARIANTS[request.param]), random_tokens(N))


@pytest.fixture(scope="module")
def worded():
    """A capture whose tokens spell a text."""
    words = ["The", " cat", " sat", ".", " The", " dog", " sat", " on", " the", " mat", ".", "é", " end"]
    cap = capture(tiny_model(), random_tokens(len(words)))
    cap.str_tokens = words
    return cap


@settings(max_examples=40)
@given(
    data=st.data(),
    layer=st.integers(0, 1),
    name=st.sampled_from(sorted(VARIANTS)),
)
def test_any_window_is_the_dense_pattern(data, layer, name):
    cap = _captures(name)
    _, pattern = dense(cap, layer)
    head = data.draw(st.integers(0, cap.cfg.n_heads - 1))
    index = st.integers(-N, N - 1)
    choice = st.one_of(
        index,
        st.lists(index, max_size=9),
        st.builds(slice, st.none() | index, st.none() | index, st.sampled_from([None, 1, 3, -2])),
    )
    queries, keys = data.draw(choice), data.draw(choice)
    got = attention_pattern(cap, layer, head, queries, keys)
    rows, columns = (np.atleast_1d(np.arange(N)[x]) for x in (queries, keys))
    np.testing.assert_allclose(got.values, pattern[head][np.ix_(rows, columns)], rtol=2e-5, atol=2e-6)
    np.testing.assert_array_equal(got["query"], rows)
    np.testing.assert_array_equal(got["key"], columns)
    viewed = PatternView(cap)[layer, head, queries, keys]
    np.testing.assert_array_equal(viewed.values, np.squeeze(got.values, _dropped(queries, keys)))


_CACHE = {}


def _captures(name):
    if name not in _CACHE:
        _CACHE[name] = capture(tiny_model(**VARIANTS[name]), random_tokens(N))
    return _CACHE[name]


def _dropped(queries, keys):
    return tuple(axis for axis, choice in enumerate((queries, keys)) if isinstance(choice, int))


def test_blocks_of_rows_and_strips_of_keys_change_nothing(cap, monkeypatch):
    whole = attention_pattern(cap, 0, 1)
    monkeypatch.setattr("interp.analyses.patterns.head_rows._ROWS", 4)
    monkeypatch.setattr("interp.analyses.patterns.head_rows._KEYS", 7)
    np.testing.assert_allclose(attention_pattern(cap, 0, 1), whole, rtol=1e-6, atol=1e-7)


def test_the_view_reads_like_an_array(cap):
    view, whole = PatternView(cap), np.stack([dense(cap, layer)[1] for layer in cap.layers])
    assert view.shape == whole.shape
    for index in [
        (1, 2, 7, 3),
        (0, -1, slice(-5, None), slice(0, 9, 2)),
        (-1, slice(1, 3), 4),
        (slice(None), [0, 2], slice(3, 5), -1),
        (1,),
        1,
        (np.int64(1), 0, slice(70, 500)),
    ]:
        got, want = view[index], whole[index]
        assert got.shape == want.shape, index
        np.testing.assert_allclose(got.values, want, rtol=2e-5, atol=2e-6)
    assert "cap.pattern" not in repr(view) and f"{N} × {N}" in repr(view)
    with pytest.raises(TypeError):
        iter(view)


def test_the_last_rows_of_a_window_sum_to_what_is_spent_there(cap):
    _, pattern = dense(cap, 0)
    spent = attention_pattern(cap, 0, 2, slice(60, 75), slice(0, 70)).sum("key")
    np.testing.assert_allclose(spent, pattern[2, 60:75, :70].sum(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("size", [1, 7, 16, 128])
def test_pooled_maps_are_the_dense_pattern_pooled(cap, reduce, size):
    scores, pattern = dense(cap, 0)
    parts = [(slice(None), slice(None)), (slice(20, 61), slice(3, None, 2)), ([5, 9, 70], slice(0, 30))]
    for queries, keys in parts:
        got = attention_map(cap, 0, 1, size, reduce, queries=queries, keys=keys)
        rows, columns = np.arange(N)[queries], np.arange(N)[keys]
        visible = np.isfinite(scores[1][np.ix_(rows, columns)])
        p = np.where(visible, pattern[1][np.ix_(rows, columns)], np.nan)
        bins = [np.arange(len(x)) * min(size, len(x)) // len(x) for x in (rows, columns)]
        want = np.full(got.shape, np.nan)
        for a in range(want.shape[0]):
            for b in range(want.shape[1]):
                cell = p[np.ix_(bins[0] == a, bins[1] == b)]
                if np.isfinite(cell).any():
                    want[a, b] = np.nanmean(cell) if reduce == "mean" else np.nanmax(cell)
        np.testing.assert_allclose(got.values, want, rtol=2e-5, atol=2e-6)
        middles = [(rows[bins[0] == a][0] + rows[bins[0] == a][-1]) / 2 for a in range(want.shape[0])]
        np.testing.assert_array_equal(got["map_query"], middles)


def test_top_keys_are_the_largest_of_the_row(cap):
    scores, pattern = dense(cap, 0)
    for query in (0, 4, -1):
        table = top_keys(cap, 0, 1, query, k=6)
        row = pattern[1, query]
        order = np.argsort(-row, kind="stable")[: min(6, int(np.isfinite(scores[1, query]).sum()))]
        np.testing.assert_array_equal(table["key"], order)
        np.testing.assert_allclose(table["attention"], row[order], rtol=1e-5)
        np.testing.assert_allclose(table["score"], scores[1, query, order], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(table["distance"], query % N - order)
        assert table["token"].values.tolist() == [cap.str_tokens[i] for i in order]
        assert table.attrs["attention_to_sink"] == pytest.approx(1 - row.sum(), abs=1e-6)


def test_a_piece_of_text_chooses_the_tokens_that_it_touches(worded):
    for text, tokens in [(" dog", [5]), ("dog sat on", [5, 6, 7]), ("cat", [1]), (". T", [3, 4]), ("é", [11])]:
        got = attention_pattern(worded, 1, 0, text, text)
        assert got["query"].values.tolist() == got["key"].values.tolist() == tokens
    assert got["query_token"].values.tolist() == ["é"]
    assert PatternView(worded)[1, 0, " mat", " dog sat"].shape == (1, 2)
    assert top_keys(worded, 1, 0, "dog sat on").attrs["query_token"] == " on"


def test_text_that_is_absent_or_ambiguous_says_where_to_look(worded):
    with pytest.raises(TextError, match=r"2 times, at tokens 2:3, 6:7: choose one by slice"):
        attention_pattern(worded, 0, 0, " sat")
    with pytest.raises(TextError, match="'Cat' does not occur in this capture, which begins 'The cat"):
        attention_pattern(worded, 0, 0, 3, "Cat")
    with pytest.raises(TextError, match="empty text"):
        attention_pattern(worded, 0, 0, "")
    with pytest.raises(TextError, match="no strings"):
        attention_pattern(capture(tiny_model(), random_tokens(9)), 0, 0, "1")


def test_what_is_not_there_is_named(cap):
    view = PatternView(cap)
    for index, what in [
        ((0, cap.cfg.n_heads), "no head"),
        ((2,), "no layer 2: there are 2"),
        ((0, 0, N), f"queries: index {N} is outside this capture of {N} tokens"),
        ((0, 0, 1, [3, -N - 1]), f"keys: index {-N - 1}"),
        ((0, 0, 0, 0, 0), "four dimensions"),
        ((..., 0), "four dimensions"),
        ((0, [], 0), "selects no head"),
    ]:
        with pytest.raises(IndexError, match=what):
            view[index]
    with pytest.raises(PositionError, match="no head 99"):
        attention_pattern(cap, 0, 99)
    with pytest.raises(StageError, match="layer 7"):
        attention_pattern(cap, 7, 0)
    with pytest.raises(InputError, match="give an index"):
        attention_pattern(cap, 0, 0, 1.5)
    with pytest.raises(InputError, match="give one of 'mean', 'max'"):
        attention_map(cap, 0, 0, reduce="median")
    with pytest.raises(InputError, match="each once and in order"):
        attention_map(cap, 0, 0, queries=[4, 2])
    with pytest.raises(InputError, match="one query"):
        top_keys(cap, 0, 0, slice(0, 2))


def test_a_layer_that_was_not_captured_is_named():
    cap = capture(tiny_model(), random_tokens(9), layers=[1])
    view = PatternView(cap)
    assert view[:, 0, 3].sizes["layer"] == 1
    with pytest.raises(StageError, match=r"layer 0 is not in this capture; it holds \[1\]"):
        view[0, 0]


def test_a_window_that_would_not_fit_is_refused(cap, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Free", (), {"available": 10_000}))
    with pytest.raises(MaterializationError, match=r"needs 22,500 bytes and 10,000 are free.*attention_map"):
        attention_pattern(cap, 0, 0)
    assert attention_pattern(cap, 0, 0, slice(0, 5)).shape == (5, N)


def test_nan_is_an_error_and_not_a_picture():
    cap = capture(tiny_model(), random_tokens(20))
    cap.q(1)[13, 2] = torch.nan
    assert np.isfinite(attention_pattern(cap, 1, 2, slice(0, 13))).all()
    with pytest.raises(InputError, match="layer 1, head 2: the scores of query 13 are not finite"):
        attention_pattern(cap, 1, 2, slice(10, 20))


def test_a_token_that_is_half_a_surrogate_pair_is_escaped():
    cap = capture(tiny_model(), random_tokens(9))
    cap.str_tokens[3] = "\udc9f"
    window = attention_pattern(cap, 0, 0, [4], slice(0, 5))
    assert window["key_token"].values[3] == "\\udc9f"
    assert "\\udc9f" in top_keys(cap, 0, 0, 4, k=5)["token"].values


def test_alibi_of_positions_with_a_gap_goes_by_position():
    cap = capture(tiny_model(rope=None, alibi_slopes=(0.5, 0.25, 0.1, 0.02)), random_tokens(40)[0])
    cap.positions = torch.arange(40) + 9 + 30 * (torch.arange(40) >= 25)
    spec, at = cap.spec(0), {"query_positions": cap.positions, "key_positions": cap.positions}
    scores = dense_scores(cap.q(0), cap.k(0), spec.scale, alibi_slopes=spec.alibi_slopes, **at)
    for head in range(4):
        shown = attention_pattern(cap, 0, head, queries=range(40), keys=range(40))
        np.testing.assert_allclose(shown.values, dense_pattern(scores)[head].numpy(), rtol=1e-6, atol=1e-12)
