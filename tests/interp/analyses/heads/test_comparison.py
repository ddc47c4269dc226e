"""Two captures compared: every difference against dense float64, and captures that cannot be compared."""

import numpy as np
import planted
import pytest
import torch
from dense import dense_pattern, dense_scores
from tiny_hooked import random_tokens, tiny_model

from hooks import RopeConfig
from hooks.errors import InputError, StageError
from interp.analyses.heads.comparison import compare, ranked
from interp.captures import Capture, capture
from interp.texts.repeated import repeated_tokens

N = 83


@pytest.fixture(scope="module")
def pair():
    """One model with window in layer 0, and the same weights under another schedule and a wider window."""
    model = tiny_model(window_size=9, layer_types=("sliding_attention", "full_attention"))
    other = model.with_config(rope=RopeConfig(rope_type="linear", factor=3.0))
    tokens = random_tokens(N)
    return capture(model, tokens), capture(other, tokens)


def dense(cap, layer):
    """[head query key] scores (NaN where hidden) and pattern."""
    scores = dense_scores(cap.q(layer), cap.k(layer), cap.spec(layer).scale, window=cap.spec(layer).window)
    return np.where(np.isfinite(scores), scores, np.nan), dense_pattern(scores).numpy()


def profiles(cap, layer):
    """Attention and score by distance from the dense matrices: mean attention, mean score, share."""
    s, p = dense(cap, layer)
    i, j = np.indices((N, N))
    per = []
    for far in range(N):
        at = (i - j == far) & np.isfinite(s[0])
        per.append([p[:, at].mean(1), s[:, at].mean(1), p[:, at].sum(1)] if at.any() else np.full((3, len(p)), np.nan))
    mean, score, total = np.moveaxis(np.array(per), 0, -1)
    return mean, score, np.nan_to_num(total) / np.nansum(total, axis=-1, keepdims=True)


def test_every_difference_is_the_dense_one(pair):
    result = compare(*pair, labels=("as trained", "linear"))
    assert result.attrs["analysis"] == "compare" and result.attrs["layers"] == "0-1"
    assert result["capture"].values.tolist() == ["as trained", "linear"]
    for layer in (0, 1):
        got, sides = result.sel(layer=layer), [dense(cap, layer) for cap in pair]
        by_distance = [profiles(cap, layer) for cap in pair]
        for index, name in enumerate(("attention_at_distance", "score_at_distance")):
            both = np.stack([side[index] for side in by_distance])
            np.testing.assert_allclose(got[name], both, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(got[f"{name}_difference"], both[1] - both[0], rtol=1e-4, atol=2e-5)
        moved = np.abs(by_distance[1][2] - by_distance[0][2]).sum(-1) / 2
        np.testing.assert_allclose(got["profile_divergence"], moved, rtol=1e-4, atol=1e-6)
        i, j = np.indices((N, N))
        sees_first = slice(1, pair[0].spec(layer).window or N)
        want = {
            "first_token_mass": [p[:, sees_first, 0].mean(1) for _, p in sides],
            "mean_distance": [(p * (i - j)).sum(-1).mean(1) for _, p in sides],
            "entropy": [-np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1).mean(1) for _, p in sides],
            "score_mean": [np.nanmean(s, (1, 2)) for s, _ in sides],
            "score_std": [np.nanstd(s, (1, 2)) for s, _ in sides],
            "score_min": [np.nanmin(s, (1, 2)) for s, _ in sides],
            "score_max": [np.nanmax(s, (1, 2)) for s, _ in sides],
        }
        for name, (a, b) in want.items():
            np.testing.assert_allclose(got[name], [a, b], rtol=2e-5, atol=2e-5, err_msg=name)
            np.testing.assert_allclose(got[f"{name}_difference"], b - a, rtol=2e-5, atol=4e-5, err_msg=name)
    np.testing.assert_allclose(result["loss_difference"], pair[1].loss - pair[0].loss, atol=1e-6)
    assert result["position"].values.tolist() == list(range(1, N))


def test_a_capture_differs_from_itself_in_nothing(pair):
    result = compare(pair[0], pair[0])
    for name in result.data_vars:
        if str(name).endswith("_difference") or name == "profile_divergence":
            assert not np.nan_to_num(result[name]).any(), name
            assert {"layer", "head"} >= set(result[name].dims) - {"distance", "position"}


def test_windows_of_two_models_are_compared_where_either_sees():
    tokens = random_tokens(40)
    narrow, wide = (capture(tiny_model(window_size=w), tokens, layers=[0]) for w in (5, 12))
    result = compare(narrow, wide)
    assert result["distance"].values.tolist() == list(range(12))
    beyond = result.sel(distance=slice(5, None))
    assert np.isnan(beyond["attention_at_distance_difference"]).all()
    assert np.isfinite(beyond["attention_at_distance"].sel(capture="b")).all()
    share = wide.statistics([0])["attention"]
    moved = float((share / share.sum("distance")).sel(distance=slice(5, None)).sum("distance").min())
    assert (result["profile_divergence"] >= moved - 1e-6).all()


def test_the_planted_change_ranks_first():
    model, twin = planted.planted_kinds(), planted.planted_kinds()
    attn = twin.blocks[0].attn
    with torch.no_grad():
        attn.b_K[planted.LOCAL[1]] = attn.b_K[planted.PREVIOUS[1]]
        attn.b_Q[planted.LOCAL[1]] = attn.b_Q[planted.PREVIOUS[1]]
    tokens = repeated_tokens(model.cfg, 39, repeats=8)
    result = compare(capture(model, tokens), capture(twin, tokens))
    for by in ("profile_divergence", "entropy_difference", "score_std_difference"):
        top = ranked(result, by, n=3)
        assert (int(top["layer"][0]), int(top["head"][0])) == planted.LOCAL
        sizes = np.abs(top[by].values)
        assert (np.diff(sizes) <= 0).all() and sizes[1] < 1e-3 * sizes[0]
    assert top.attrs["by"] == "score_std_difference" and top.attrs["analysis"] == "ranked"


def test_only_common_layers_are_compared(pair):
    upper = capture(tiny_model(), random_tokens(N), layers=[1])
    result = compare(pair[0], upper, labels=("both", "upper"))
    assert result["layer"].values.tolist() == [1] and result.attrs["layers"] == "1; only in both: 0"
    with pytest.raises(StageError, match="no layer is in both captures: a 0; b 1"):
        compare(capture(tiny_model(), random_tokens(N), layers=[0]), upper)


def test_what_cannot_be_compared_says_why(pair):
    tokens = random_tokens(N)
    changed = tokens.clone()
    changed[0, 17] = (changed[0, 17] + 1) % 61
    first, second = int(tokens[0, 17]), int(changed[0, 17])
    with pytest.raises(InputError, match=f"different tokens, first at 17: a '{first}', b '{second}'"):
        compare(pair[0], capture(tiny_model(), changed))
    with pytest.raises(InputError, match=r"a read 83 tokens and b 50, .* capture both with n_tokens=50"):
        compare(pair[0], capture(tiny_model(), tokens[:, :50]))
    with pytest.raises(InputError, match=r"a has 4 heads and b 2: .* head_summary"):
        compare(pair[0], capture(tiny_model(n_heads=2), tokens))
    with pytest.raises(InputError, match="two different names"):
        compare(*pair, labels=("x", "x"))
    with pytest.raises(InputError, match="by='entropie': rank by one of first_token_mass_difference"):
        ranked(compare(*pair), "entropie")
    _, cache = tiny_model().run_with_cache(tokens)
    with pytest.raises(InputError, match=r"b has 0 tokens.* give Capture\.from_cache its tokens"):
        compare(pair[0], Capture.from_cache(cache))
    known = compare(pair[0], Capture.from_cache(cache, tokens=tokens))
    assert "loss" not in known and "entropy_difference" in known
