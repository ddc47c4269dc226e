"""Patches and knock-outs against whole runs, TransformerLens' own sweeps, and closed forms."""

import numpy as np
import pytest
import torch
from bridges import bridge_of
from tiny import tiny_model as tiny_foreign
from tiny_hooked import random_tokens
from tiny_hooked import tiny_model as tiny_hooked
from transformer_lens import patching
from transformer_lens.tools.analysis.attribution_patching import attribution_patch

from hooks import HookedTransformer, recipes
from hooks.errors import InputError, PositionError, StageError, TokenizerError
from interp import (
    activation_patching,
    attribution,
    attribution_patching,
    capture,
    direct_logit_attribution,
    knock_out_sweep,
    metrics,
)
from interp.analyses.causes import running

M = metrics.logit_difference(5, 7, position=-2)


def metric(logits):
    return logits[0, -2, 5] - logits[0, -2, 7]


@pytest.fixture(scope="module")
def pair():
    """A model with a window and kv heads, and two texts that differ in two tokens."""
    model = tiny_hooked(
        dtype=torch.float64,
        n_layers=3,
        n_ctx=64,
        layer_types=("sliding_attention", *["full_attention"] * 2),
        window_size=9,
    )
    clean = random_tokens(21)
    corrupted = clean.clone()
    corrupted[0, [3, 15]] = torch.tensor([11, 12])
    return model, clean, corrupted


@torch.no_grad()
def whole_run(model, ids, name=None, edit=None):
    """The metric of a whole run in which a tensor is edited."""

    def hook(x, hook):
        x = x.clone()
        edit(x)
        return x

    return float(metric(model.run_with_hooks(ids, fwd_hooks=[] if name is None else [(name, hook)])))


POINTS = {"z": "attn.hook_z", "q": "attn.hook_rot_q", "k": "attn.hook_rot_k", "v": "attn.hook_v"}
POINTS |= {"residual": "hook_resid_pre"}


@pytest.mark.parametrize("at", POINTS)
@pytest.mark.parametrize("by", ["head", "position", "block"])
def test_a_patch_is_that_of_the_whole_run(pair, at, by):
    model, clean, corrupted = pair
    if (at, by) == ("residual", "head"):
        with pytest.raises(InputError, match="has no heads"):
            activation_patching(model, clean, corrupted, M, at=at, by=by)
        return
    found = activation_patching(model, clean, corrupted, M, at=at, by=by)
    before, after = whole_run(model, corrupted), whole_run(model, clean)
    assert (found.attrs["corrupted_metric"], found.attrs["clean_metric"]) == pytest.approx((before, after), abs=1e-12)
    with torch.no_grad():
        _, cache = model.run_with_cache(clean)
    dims = {"head": "kv_head" if at in "kv" else "head", "position": "position"}
    assert found.metric.dims == (("layer",) if by == "block" else ("layer", dims[by]))
    for layer in range(3):
        name = f"blocks.{layer}.{POINTS[at]}"
        for i in range(1 if by == "block" else found.sizes[dims[by]]):
            place = {"head": np.s_[:, :, i], "position": np.s_[:, i], "block": np.s_[:]}[by]

            def put(x, place=place, name=name):
                x[place] = cache[name][place]

            expected = whole_run(model, corrupted, name, put)
            one = found.sel(layer=layer) if by == "block" else found.sel(layer=layer).isel({dims[by]: i})
            assert float(one.metric) == pytest.approx(expected, abs=1e-10)
            assert float(one.restored) == pytest.approx((expected - before) / (after - before), abs=1e-8)


def test_only_what_lies_after_the_patch_runs(pair, monkeypatch):
    model, clean, corrupted = pair
    ran = []
    for layer, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    found = activation_patching(model, clean, corrupted, M, by="position", at="residual", layers=2, positions=[3, -1])
    assert found["position"].values.tolist() == [3, 20]
    assert ran == [0, 1, 2, 0, 1, 2, 2, 2]
    for block in model.blocks:
        block._forward_hooks.clear()


def test_patching_is_transformer_lens_patching_on_the_same_weights():
    foreign = tiny_foreign("qwen3", max_position_embeddings=256)
    model, bridge = HookedTransformer.from_pretrained(foreign), bridge_of(foreign)
    clean = random_tokens(200, vocab=97)
    corrupted = random_tokens(200, vocab=97, seed=1)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(clean)
        theirs = patching.get_act_patch_attn_head_out_all_pos(bridge, corrupted, cache, metric)
    ours = activation_patching(model, clean, corrupted, M)
    np.testing.assert_allclose(ours.metric, theirs, atol=1e-4)


def test_attribution_patching_is_that_of_transformer_lens():
    foreign = tiny_foreign("qwen3", max_position_embeddings=256)
    model, bridge = HookedTransformer.from_pretrained(foreign), bridge_of(foreign)
    clean, corrupted = random_tokens(200, vocab=97), random_tokens(200, vocab=97, seed=1)
    theirs = attribution_patch(bridge, clean, corrupted, metric)
    cap, other = capture(model, corrupted, gradient_of=M), capture(model, clean)
    by_head, by_position = np.zeros((3, 4)), np.zeros((3, 200))
    for node, score in theirs.node_scores.items():
        if node.kind == "attn_head_out":
            by_head[node.layer, node.head] += score
            by_position[node.layer, node.position] += score
    np.testing.assert_allclose(attribution_patching(cap, other).change, by_head, atol=1e-4)
    found = attribution_patching(cap, other, by="position").change
    np.testing.assert_allclose(found, by_position, atol=1e-4)
    np.testing.assert_allclose(attribution_patching(cap, other, by="block").change, by_head.sum(1), atol=1e-4)


@pytest.mark.parametrize("at", ["z", "q", "k", "v"])
def test_the_estimate_is_the_slope_of_the_patch(pair, at):
    model, clean, corrupted = pair
    cap, other = capture(model, corrupted, gradient_of=M), capture(model, clean)
    found = attribution_patching(cap, other, at)
    with torch.no_grad():
        _, cache = model.run_with_cache(clean)
    name, step = f"blocks.1.{POINTS[at]}", 1e-6

    def moved(by):
        def edit(x):
            x[:, :, 1] += by * (cache[name][:, :, 1] - x[:, :, 1])

        return whole_run(model, corrupted, name, edit)

    slope = (moved(step) - moved(-step)) / (2 * step)
    assert float(found.change.sel(layer=1)[1]) == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_knock_outs_are_those_of_whole_runs(pair):
    model, ids, _ = pair
    found = knock_out_sweep(model, ids, M)
    start = whole_run(model, ids)
    segments = {"middle": slice(5, 9), "two": [1, -1], "one": 3}
    cut = knock_out_sweep(model, ids, M, segments, layers=[0, 2])
    assert cut.change.dims == ("layer", "head", "segment") and cut["segment"].values.tolist() == [*segments]
    for layer in range(3):
        for head in range(4):

            def nothing(x, head=head):
                x[:, :, head] = 0

            expected = whole_run(model, ids, f"blocks.{layer}.attn.hook_z", nothing)
            one = found.sel(layer=layer, head=head)
            assert float(one.metric) == pytest.approx(expected, abs=1e-10)
            assert float(one.change) == pytest.approx(expected - start, abs=1e-10)
            for name, keys in segments.items() if layer != 1 else ():

                def hide(x, head=head, keys=keys):
                    x[:, head, :, keys] = -torch.inf

                expected = whole_run(model, ids, f"blocks.{layer}.attn.hook_attn_scores", hide)
                assert float(cut.metric.sel(layer=layer, head=head, segment=name)) == pytest.approx(expected, abs=1e-10)


def test_hooks_that_are_active_take_part(pair):
    model, ids, _ = pair
    with model.hooks(fwd_hooks=[("blocks.2.attn.hook_z", recipes.ablate_heads([(2, 1)]))]):
        assert float(knock_out_sweep(model, ids, M, layers=2).change.sel(head=1)[0]) == pytest.approx(0, abs=1e-12)


def test_effects_rank_heads_as_taking_them_out_does():
    """Where the metric is nearly linear in a head's z, its effect is what is lost without it."""
    model, ids = tiny_hooked(dtype=torch.float64, initializer_range=0.02), random_tokens(40)
    effects = attribution(capture(model, ids, gradient_of=M)).effect
    change = knock_out_sweep(model, ids, M).change
    assert np.corrcoef(-effects.values.ravel(), change.values.ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"block_norms": "sandwich", "learned_sinks": True},
        {"normalization_type": "LN", "parallel_attn_mlp": True, "attn_bias": True, "attn_out_bias": True},
        {"block_norms": "post", "residual_scale": 0.5, "logit_scale": 0.3},
    ],
)
def test_direct_attribution_with_all_else_that_writes_is_the_logit(settings):
    model, ids, at = tiny_hooked(dtype=torch.float64, **settings), random_tokens(30), 17
    cap = capture(model, ids, stages=())
    found = direct_logit_attribution(cap, 9, position=at - 30)
    with torch.no_grad():
        logits, cache = model.run_with_cache(ids)
        divisor = cache["ln_final.hook_scale"][0, at]
        towards = model.ln_final.centred(model.ln_final.gain * model.tokens_to_residual_directions(9)) / divisor
        rest = cache["hook_embed"][0, at] @ towards + model.logit_bias(9)
        for layer in range(2):
            rest = rest + cache[f"blocks.{layer}.hook_mlp_out"][0, at] @ towards
            attn_out, heads = cache[f"blocks.{layer}.hook_attn_out"][0, at] @ towards, found.logit.sel(layer=layer)
            block = model.blocks[layer]
            bias = block.attn.b_O
            if settings.get("block_norms"):
                bias = (
                    block.ln1_post.centred(block.ln1_post.gain * bias)
                    / cache[f"blocks.{layer}.ln1_post.hook_scale"][0, at]
                )
                bias = bias + (0 if block.ln1_post.bias is None else block.ln1_post.bias)
            assert float(heads.sum()) == pytest.approx(float(attn_out - bias @ towards), abs=1e-8)
            rest = rest + bias @ towards
    assert float(found.logit.sum()) + float(rest) == pytest.approx(float(logits[0, at, 9]), abs=1e-8)
    assert not found.logit.sel(key=slice(at + 1, None)).any()


def test_direct_attribution_needs_the_model_it_is_of():
    model, ids = tiny_hooked(), random_tokens(9)
    cap = capture(model, ids)
    first = direct_logit_attribution(cap, 3)
    cap._model = None
    with pytest.raises(InputError, match="give model="):
        direct_logit_attribution(cap, 3)
    assert direct_logit_attribution(cap, 3, model=model).equals(first)
    with pytest.raises(InputError, match="another model"):
        direct_logit_attribution(cap, 3, model=tiny_hooked(n_layers=3))
    with pytest.raises(InputError, match="model=3"):
        direct_logit_attribution(cap, 3, model=3)
    with pytest.raises(PositionError, match="no position 9"):
        direct_logit_attribution(cap, 3, 9, model=model)
    with pytest.raises(InputError, match="outside the vocabulary"):
        direct_logit_attribution(cap, 999, model=model)
    with pytest.raises(TokenizerError):
        direct_logit_attribution(cap, " x", model=model)


def test_what_cannot_be_patched_is_refused_by_name(pair):
    model, clean, corrupted = pair
    for arguments, error, says in (
        ((model, clean, corrupted[:, :-1], M), InputError, "clean has 21 tokens and corrupted 20"),
        ((model, clean, corrupted, M, "pattern"), InputError, "at='pattern'"),
        ((model, clean, corrupted, M, "z", "layer"), InputError, "by='layer'"),
        ((model, clean, corrupted, 3), InputError, "m=3"),
        ((3, clean, corrupted, M), InputError, "model=3"),
        ((model, 1.5, corrupted, M), InputError, "clean=1.5"),
        ((model, clean, "text", M), TokenizerError, "no tokenizer"),
        ((model, clean, clean[:, :1], M), InputError, "corrupted has 1 token"),
    ):
        with pytest.raises(error, match=says):
            activation_patching(*arguments)
    with pytest.raises(InputError, match='goes with by="position"'):
        activation_patching(model, clean, corrupted, M, positions=[1])
    with pytest.raises(PositionError, match="no position 50"):
        activation_patching(model, clean, corrupted, M, by="position", positions=50)
    with pytest.raises(StageError, match="no attention in layer 9"):
        knock_out_sweep(model, clean, M, layers=9)
    for segments, says in (({}, "give each part's name"), (3, "segments=3"), ({"x": []}, "at least one token")):
        with pytest.raises(InputError, match=says):
            knock_out_sweep(model, clean, M, segments)
    alike = activation_patching(model, clean, clean, M, by="block")
    assert np.isnan(alike.restored).all() and running.attending(model) == (0, 1, 2)
    cap = capture(model, corrupted, gradient_of=M)
    with pytest.raises(InputError, match="texts of as many tokens"):
        attribution_patching(cap, capture(model, clean[:, :9]))
    with pytest.raises(StageError, match="no gradients"):
        attribution_patching(capture(model, clean), cap)
