"""watch_scores against whole score matrices of the same step, in every way in which models are trained."""

import sys
import types

import numpy as np
import plotly.io as pio
import pytest
import torch
from dense import dense_scores
from tiny import tiny_model as foreign_tiny
from tiny_hooked import random_tokens, tiny_model
from torch.utils.checkpoint import checkpoint

from hooks import HookedTransformer, QKNormConfig, RopeConfig
from hooks.errors import InputError
from interp import capture, plots, score_bound, score_ranges, watch_scores
from interp.training import live

FINALS = "blocks.*.attn.hook_[qk]_final"


def optimizer_of(model, rate=1e-2):
    return torch.optim.AdamW(model.parameters(), lr=rate)


def dense_extremes(model, tokens, kv_mask=None):
    """(min, max) over visible pairs of float64 score matrices, [layer head], of the model as it is now."""
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=FINALS)
    ends = []
    for layer in range(model.cfg.n_layers):
        spec = model.attention_spec(layer)
        rows = []
        for row in range(len(tokens)):
            q, k = (cache[f"hook_{t}_final", layer][row] for t in "qk")
            scores = dense_scores(q, k, spec.scale, window=spec.window, softcap=spec.softcap)
            if kv_mask is not None:
                scores = scores.masked_fill(~kv_mask[row], -torch.inf)
            rows.append(scores)
        scores = torch.stack(rows)
        high = scores.amax((0, 2, 3))
        low = scores.masked_fill(scores == -torch.inf, torch.inf).amin((0, 2, 3))
        ends.append(torch.stack([low, high]))
    return torch.stack(ends, 1).numpy()


def same(watched, step, ends):
    seen = watched.isel(step=step)
    np.testing.assert_allclose(seen["score_min"], ends[0], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(seen["score_max"], ends[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qk_norm": QKNormConfig(position="after_rope")},
        {"qk_norm": None},
        {"window_size": 9, "layer_types": ("sliding_attention", "full_attention")},
        {"attn_scores_soft_cap": 2.0},
        {"rope": None, "alibi_slopes": (0.5, 0.25, 0.125, 0.0625), "qk_norm": None},
    ],
)
def test_every_step_has_the_ends_of_the_whole_score_matrix(changes):
    model = tiny_model(**changes).train()
    optimizer, expected = optimizer_of(model), []
    with watch_scores(model) as watch:
        for step in range(3):
            tokens = random_tokens(40, batch=2, seed=step)
            if "alibi_slopes" not in changes:
                expected.append(dense_extremes(model, tokens))
            else:
                with torch.no_grad():
                    _, cache = model.run_with_cache(tokens, names_filter="blocks.*.attn.hook_attn_scores")
                scores = torch.stack([cache["hook_attn_scores", layer] for layer in range(2)])
                low = scores.masked_fill(scores == -torch.inf, torch.inf)
                expected.append(np.stack([low.amin((1, 3, 4)), scores.amax((1, 3, 4))]))
            model(tokens, "loss").backward()
            optimizer.step()
            optimizer.zero_grad()
    watched = watch.dataset()
    assert dict(watched.sizes) == {"step": 3, "layer": 2, "head": 4}
    for step, ends in enumerate(expected):
        same(watched, step, ends)
    assert np.abs(np.diff(watched["score_max"], axis=0)).max() > 1e-3  # the weights did move


def test_a_step_agrees_with_a_capture_of_its_weights_and_text_and_lies_under_the_same_proof():
    model, tokens = tiny_model().train(), random_tokens(48)
    ranges = score_ranges(capture(model, tokens[0])).sel(variant="as_run")
    gains = [tuple(getattr(b.attn, n).effective_gain() for n in ("q_norm", "k_norm")) for b in model.blocks]
    proven = [score_bound(model.cfg.qk_norm, model.cfg.rope, *pair, model.attention_spec(0)) for pair in gains]
    optimizer = optimizer_of(model)
    with watch_scores(model) as watch:
        model(tokens, "loss").backward()
        optimizer.step()
    seen = watch.dataset().isel(step=0)
    np.testing.assert_allclose(seen["score_max"], ranges["max"], atol=1e-5)
    np.testing.assert_allclose(seen["score_min"], ranges["min"], atol=1e-5)
    np.testing.assert_allclose(seen["bound"], proven, rtol=1e-6)
    assert (abs(seen["score_max"]) <= seen["bound"] * (1 + 1e-5)).all()
    assert set(seen["bound_reason"].values) == {""}


def test_without_a_norm_there_is_no_bound_and_a_reason():
    model, tokens = tiny_model(qk_norm=None).train(), random_tokens(12)
    optimizer = optimizer_of(model)
    with watch_scores(model) as watch:
        model(tokens, "loss").backward()
        optimizer.step()
    watched = watch.dataset()
    assert watched["bound"].isnull().all() and all("nothing limits" in why for why in watched["bound_reason"].values)
    np.testing.assert_allclose(watched["float16_limit"], 65504 / 4)


def test_gradients_accumulate_over_passes_and_passes_without_gradients_do_not_count():
    model = tiny_model().train()
    optimizer, parts = optimizer_of(model), [random_tokens(20, seed=s) for s in range(3)]
    ends = np.stack([dense_extremes(model, part) for part in parts])
    loudest = random_tokens(200, seed=9, batch=4)
    other = torch.nn.Linear(2, 2)
    with watch_scores(model) as watch:
        for part in parts:
            (model(part, "loss") / 3).backward()
            torch.optim.SGD(other.parameters(), lr=0.1).step()  # of another model
        with torch.no_grad():
            model(loudest)
        optimizer.step()
        optimizer.step()  # nothing ran in between
    assert watch.dataset().sizes["step"] == 1
    same(watch.dataset(), 0, np.stack([ends[:, 0].min(0), ends[:, 1].max(0)]))
    assert dense_extremes(model, loudest)[1].max() > ends[:, 1].max()


def test_an_optimizer_that_runs_the_model_itself_is_one_step():
    model, tokens = tiny_model().train(), random_tokens(20)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    ends = dense_extremes(model, tokens)

    def closure():
        optimizer.zero_grad()
        loss = model(tokens, "loss")
        loss.backward()
        return loss

    with watch_scores(model) as watch:
        optimizer.step(closure)
    same(watch.dataset(), 0, ends)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant):
    model, tokens = tiny_model().train(), random_tokens(30, batch=2)
    ends, optimizer = dense_extremes(model, tokens), optimizer_of(model)
    with watch_scores(model) as watch:
        resid, context = model.embed_tokens(tokens), model.context(tokens)
        for block in model.blocks:
            resid = checkpoint(block, resid, context, use_reentrant=reentrant)
        model.residual_loss(resid, tokens).mean().backward()
        optimizer.step()
    same(watch.dataset(), 0, ends)


@pytest.mark.parametrize("attached", [False, True])
def test_autocast_watches_what_attention_multiplies(attached):
    # Qwen3's norm hands on float32 under autocast, which torch's attention rounds.
    model = HookedTransformer.attach(foreign_tiny("qwen3").train()) if attached else tiny_model().train()
    tokens = random_tokens(30, batch=2)
    optimizer, expected = optimizer_of(model), []
    with watch_scores(model) as watch, torch.autocast("cpu", torch.bfloat16):
        finals = {}
        names = [f"blocks.{layer}.attn.hook_{t}_final" for layer in range(model.cfg.n_layers) for t in "qk"]
        with model.hooks(fwd_hooks=[(n, lambda x, hook: finals.update({hook.name: x.detach()})) for n in names]):
            model(tokens, "loss").backward()
        optimizer.step()
    points = list(finals.values())
    assert {x.dtype for x in points} == {torch.float32 if attached else torch.bfloat16}
    for q, k in zip(points[::2], points[1::2], strict=True):
        q, k = (x.bfloat16() for x in (q, k))
        scores = torch.stack([dense_scores(a, b, model.attention_spec(0).scale) for a, b in zip(q, k, strict=True)])
        expected.append(scores.amax((0, 2, 3)))
    np.testing.assert_allclose(watch.dataset()["score_max"][0], torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_padding_is_not_watched():
    model, tokens = tiny_model().train(), random_tokens(24, batch=2)
    mask = torch.ones_like(tokens)
    mask[0, :10] = 0
    ends, optimizer = dense_extremes(model, tokens), optimizer_of(model)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter="blocks.*.attn.hook_attn_scores", attention_mask=mask)
    with watch_scores(model) as watch:
        model(tokens, "loss", attention_mask=mask).backward()
        optimizer.step()
    scores = torch.stack([cache["hook_attn_scores", layer] for layer in range(2)])
    low = scores.masked_fill(scores == -torch.inf, torch.inf)
    same(watch.dataset(), 0, np.stack([low.amin((1, 3, 4)), scores.amax((1, 3, 4))]))
    assert not np.allclose(watch.dataset()["score_max"][0], ends[1])


@pytest.mark.parametrize("itself", [False, True])
def test_an_attached_model_is_watched_whoever_calls_it(itself):
    original = foreign_tiny("qwen3").train()
    tokens = torch.randint(original.config.vocab_size, (2, 20), generator=torch.Generator().manual_seed(0))
    with HookedTransformer.attach(original) as model:
        ends, optimizer = dense_extremes(model, tokens), torch.optim.AdamW(original.parameters(), lr=1e-2)
        with watch_scores(model) as watch:
            loss = original(tokens, labels=tokens).loss if itself else model(tokens, "loss")
            loss.backward()
            optimizer.step()
        watched = watch.dataset()
        same(watched, 0, ends)
        assert (watched["score_max"] <= watched["bound"] * (1 + 1e-5)).all()


def test_a_logger_gets_every_number_and_nothing_is_watched_after_the_loop():
    model, tokens, logged = tiny_model().train(), random_tokens(12), []
    optimizer = optimizer_of(model)
    with watch_scores(model, on_step=lambda step, numbers: logged.append((step, numbers))) as watch:
        for _ in range(2):
            model(tokens, "loss").backward()
            optimizer.step()
        model(tokens, "loss").backward()
        watch.step()
    model(tokens, "loss").backward()
    optimizer.step()
    assert [step for step, _ in logged] == [0, 1, 2] and watch.dataset().sizes["step"] == 3
    assert logged[1][1]["score_max/L1H3"] == pytest.approx(float(watch.dataset()["score_max"][1, 1, 3]), rel=1e-6)
    assert {name.split("/")[0] for name in logged[0][1]} == {"score_max", "score_min", "bound"}


@pytest.mark.parametrize("name", ["q_proj", "q_norm"])
def test_scores_that_are_no_numbers_are_said(name):
    model, tokens = tiny_model().train(), random_tokens(12)
    optimizer = optimizer_of(model)
    with watch_scores(model) as watch:
        with torch.no_grad():
            getattr(model.blocks[0].attn, name).weight.fill_(float("nan"))
        model(tokens, "loss").backward()
        optimizer.step()
    seen = watch.dataset().isel(step=0, layer=0)
    assert seen["score_max"].isnull().all() and bool(seen["bound"].isnull().all()) == (name == "q_norm")


def test_training_is_the_same_to_the_bit_with_and_without():
    def trained(watched):
        model = tiny_model().train()
        optimizer = optimizer_of(model)
        with watch_scores(model if watched else tiny_model()):
            for step in range(3):
                model(random_tokens(16, seed=step), "loss").backward()
                optimizer.step()
        return model.state_dict()

    with_it, without = trained(True), trained(False)
    assert all(torch.equal(with_it[name], value) for name, value in without.items())


def test_what_cannot_be_watched_is_refused_in_words():
    with pytest.raises(InputError, match="attach"):
        watch_scores(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="on_step"):
        watch_scores(tiny_model(), on_step="wandb")
    with watch_scores(tiny_model()) as watch, pytest.raises(InputError, match="no step was watched"):
        watch.dataset()
    with pytest.raises(InputError, match="Jupyter"):
        watch.show()


def test_the_figure_follows_the_training(monkeypatch):
    shown = []

    class Handle:
        def update(self, bundle, raw):
            shown.append(bundle)

    def display(bundle, raw, display_id):
        shown.append(bundle)
        return Handle()

    module = types.ModuleType("IPython")
    module.get_ipython = lambda: object()
    module.display = types.ModuleType("IPython.display")
    module.display.display = display
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", module.display)
    monkeypatch.setattr(live, "_SECONDS", 0.0)
    monkeypatch.setattr(pio.renderers, "default", "plotly_mimetype")
    model, tokens = tiny_model().train(), random_tokens(12)
    optimizer = optimizer_of(model)
    with watch_scores(model) as watch:
        watch.show()
        for _ in range(3):
            model(tokens, "loss").backward()
            optimizer.step()
    assert len(shown) == 4 and all(shown)


def test_its_figure_has_the_largest_scores_and_the_bound():
    model = tiny_model().train()
    optimizer = optimizer_of(model)
    with watch_scores(model) as watch:
        for step in range(5):
            model(random_tokens(16, seed=step), "loss").backward()
            optimizer.step()
    watched = watch.dataset()
    figure = plots.show(watched)
    line = next(trace for trace in figure.data if trace.name == "layer 1")
    top = watched["score_max"].sel(layer=1).max("head").values
    np.testing.assert_allclose(np.sign(line.y) * (10 ** np.abs(line.y) - 1), top, rtol=1e-5)
    assert sum(trace.name == "bound" for trace in figure.data) == 2
    assert len(plots.show(watched.isel(step=slice(1))).data) == 4


def test_learned_frequencies_and_the_widest_schedule():
    model = tiny_model(rope=RopeConfig(rope_theta=1e4, learnable=True)).train()
    optimizer = optimizer_of(model)
    ends = dense_extremes(model, random_tokens(20))
    with watch_scores(model) as watch:
        model(random_tokens(20), "loss").backward()
        optimizer.step()
    same(watch.dataset(), 0, ends)
