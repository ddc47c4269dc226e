"""Attribution against autograd through dense patterns, transformers' own among them, and against doing without."""

import numpy as np
import pytest
import torch
from dense import dense_pattern, dense_scores, dense_z
from tiny import CLASSES, Shape, tiny_model, tokens
from tiny_hooked import random_tokens
from tiny_hooked import tiny_model as tiny_hooked

from hooks import AttentionSpec, HookedTransformer
from hooks.errors import InputError, StageError
from interp import attribution, capture, metrics, top_edges, top_tokens
from interp.measure import effects
from interp.measure.effects import Layer, attention_effects

N = 33
SPECS = {
    "plain": {},
    "window": {"window": 7},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": torch.tensor([0.5, -1.0, 3.0, 0.0])},
    "alibi": {"alibi_slopes": (0.1, 0.2, 0.0, 1.0)},
    "both ways": {"causal": False, "window": 9, "softcap": 2.0},
}
KV_HEADS = {"MHA": 4, "GQA": 2, "MQA": 1}


def draw(kv_heads, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((N, 4, 16), (N, kv_heads, 16), (N, kv_heads, 16), (N, 4, 16))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def dense(q, k, v, g, spec, documents=(0,)):
    """Effects of every cell, and ``Σ ∂m/∂x x`` of x = scale · q·k, by autograd through the whole pattern."""
    q, k, v, g = (x.double() for x in (q, k, v, g))
    q.requires_grad_()
    rules = {name: getattr(spec, name) for name in ("causal", "window", "softcap", "alibi_slopes")}
    scores = dense_scores(q, k, spec.scale, documents=documents, **rules)
    pattern = dense_pattern(scores, spec.sinks)
    pattern.retain_grad()
    (dense_z(pattern, v) * g).sum().backward()
    # x is linear in q.
    return pattern.detach() * pattern.grad, (q.detach() * q.grad).sum((0, 2))


def sums(cells, n=N, size=5):
    """By query, key, distance from the smallest, and map cell."""
    distance = torch.arange(n)[:, None] - torch.arange(n)
    by = torch.stack([cells[:, distance == d].sum(-1) for d in range(-n + 1, n)], -1)
    at = torch.arange(n) * size // n
    pooled = torch.stack([torch.stack([cells[:, at == a][..., at == b].sum((1, 2)) for b in range(size)], -1)
                          for a in range(size)], 1)  # fmt: skip
    return cells.sum(-1), cells.sum(-2), by, pooled


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("kv_heads", KV_HEADS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("packed", [False, True])
def test_every_sum_is_that_of_autograd_through_the_dense_pattern(name, kv_heads, dtype, packed, monkeypatch):
    spec, (q, k, v, g) = AttentionSpec(scale=0.4, **SPECS[name]), draw(KV_HEADS[kv_heads], dtype)
    g[3:11] = 0  # rows without a gradient are left out
    monkeypatch.setattr(effects, "_BUDGET", 2**14)  # several blocks
    starts = torch.tensor([0, 10, 11]) if packed else None
    layer = Layer(q=q, k=k, v=v, g=g, spec=spec, positions=torch.arange(N), documents=starts)
    found = attention_effects(layer, 5)
    cells, score = dense(q, k, v, g, spec, (0,) if starts is None else starts.tolist())
    tight = 1e-8 if dtype == torch.float64 else 1e-4
    for sign, part in enumerate((cells.clamp_min(0), cells.clamp_max(0))):
        by_query, by_key, by_distance, pooled = sums(part)
        whole = cells.abs().sum()
        padded = torch.zeros_like(by_distance)
        start = found.low + N - 1
        padded[:, start : start + found.distance.shape[-1]] = found.distance[:, sign]
        for ours, truth in (
            (found.query[:, sign], by_query),
            (found.key[:, sign], by_key),
            (padded, by_distance),
            (found.map[:, sign], pooled),
        ):
            torch.testing.assert_close(ours, truth, atol=tight * float(truth.abs().max()), rtol=0)
            assert (ours.sum() - part.sum()).abs() < 1e-5 * whole
    torch.testing.assert_close(found.score, score, atol=tight * float(score.abs().max()), rtol=0)


def complete(cap, effects, exact):
    """Every sum of a capture's effects is ``Σ z · ∂m/∂z``, and every stage's is Σ x · ∂m/∂x."""
    for layer in cap.layers:
        one = effects.sel(layer=layer)
        size = float((one.effect_positive - one.effect_negative).max())
        z = (cap.z(layer).double() * cap.gradient(layer, "z").double()).sum((0, 2)).numpy()
        for axis in (("key",), ("query",), ("distance",), ("map_query", "map_key")):
            name = "effect_map" if len(axis) == 2 else f"effect_by_{axis[0]}"
            np.testing.assert_allclose(one[name].sum(axis), z, atol=exact * size)
            parts = one[f"{name}_positive"] + one[f"{name}_negative"]
            np.testing.assert_allclose(parts, one[name], atol=exact * size)
            assert float(one[f"{name}_positive"].min()) >= 0 >= float(one[f"{name}_negative"].max())
        group = cap.cfg.n_heads // cap.cfg.n_kv_heads
        np.testing.assert_allclose(one.value_effect, z.reshape(-1, group).sum(1), atol=exact * size * group)
        scores = one.effect_by_pair.sum("pair") + one.effect_of_rest
        scale = float(np.abs(one.score_effect).max() + size)
        np.testing.assert_allclose(scores, one.score_effect, atol=exact * scale)
        np.testing.assert_allclose(one.query_effect.sel(stage="final"), one.score_effect, atol=exact * scale)
        by_kv_head = one.score_effect.values.reshape(-1, group).sum(1)
        np.testing.assert_allclose(one.key_effect.sel(stage="final"), by_kv_head, atol=exact * scale * group)


FAMILIES = ("llama", "gemma2", "gemma3_text", "gpt_neox", "phi", "olmo2", "olmo", "hunyuan_v1_dense", "smollm3", "gptj")


@pytest.mark.parametrize("family", FAMILIES)
def test_effects_are_those_of_autograd_through_transformers_patterns(family):
    assert family in CLASSES
    foreign = tiny_model(family, Shape(kv_heads=4 if family in ("gpt_neox", "phi", "gptj") else 2), dtype=torch.float64)
    model, ids = HookedTransformer.from_pretrained(foreign), tokens(30, batch=1)
    cap = capture(model, ids, gradient_of=metrics.logit_difference(5, 11, position=-4))
    found = attribution(cap, map_size=6)
    out = foreign(ids, output_attentions=True)
    value = out.logits[0, -4, 5] - out.logits[0, -4, 11]
    for layer, (p, gradient) in enumerate(zip(out.attentions, torch.autograd.grad(value, out.attentions), strict=True)):
        cells = (p * gradient)[0].detach()
        size = float(cells.abs().sum((1, 2)).max())
        # transformers' norms round to float32 whatever the model's type.
        np.testing.assert_allclose(found.effect_by_key.sel(layer=layer), cells.sum(1), atol=1e-5 * size)
        np.testing.assert_allclose(
            found.effect_by_query_negative.sel(layer=layer), cells.clamp_max(0).sum(2), atol=1e-5 * size
        )
    complete(cap, found, 1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_complete_in_the_types_that_models_run_in(dtype):
    settings = {"dtype": dtype, "learned_sinks": True, "layer_types": ("sliding_attention", "full_attention")}
    model = tiny_hooked(window_size=20, **settings)
    cap = capture(model, random_tokens(150), gradient_of=metrics.loss())
    complete(cap, attribution(cap), 1e-5 if dtype == torch.float32 else 3e-2)


@torch.no_grad()
def metric_of(model, ids, hooks=()):
    logits = model.run_with_hooks(ids, fwd_hooks=list(hooks))
    return float(logits[0, -1, 5] - logits[0, -1, 7])


def test_effects_are_central_differences_of_taking_a_little_away():
    model, ids, step = tiny_hooked(dtype=torch.float64), random_tokens(24), 1e-5
    cap = capture(model, ids, gradient_of=metrics.logit_difference(5, 7))
    effects = attribution(cap)

    def slope(point, edit):
        values = []
        for by in (1 + step, 1 - step):

            def scale(x, hook, by=by):
                x = x.clone()
                edit(x, by)
                return x

            values.append(metric_of(model, ids, [(point, scale)]))
        return (values[0] - values[1]) / (2 * step)

    def at(place):
        def edit(x, by):
            x[place] *= by

        return edit

    for layer in range(2):
        name = f"blocks.{layer}.attn."
        for head in range(4):
            one = effects.sel(layer=layer, head=head)
            assert abs(slope(name + "hook_z", at(np.s_[:, :, head])) - float(one.effect)) < 1e-7
            assert abs(slope(name + "hook_pattern", at(np.s_[:, head, :, 3])) - float(one.effect_by_key[3])) < 1e-7
            assert abs(slope(name + "hook_pattern", at(np.s_[:, head, 9])) - float(one.effect_by_query[9])) < 1e-7
            assert abs(slope(name + "hook_attn_scores", at(np.s_[:, head])) - float(one.score_effect)) < 1e-7
            turned = at(np.s_[:, :, head, [2, 10]])  # the halves of pair 2
            assert abs(slope(name + "hook_rot_q", turned) - float(one.effect_by_pair[2])) < 1e-7
            before = slope(name + "hook_q_normed", at(np.s_[:, :, head]))
            assert abs(before - float(one.query_effect.sel(stage="pre_rope"))) < 1e-7


def test_edges_and_tokens_are_the_largest_of_the_dense_pattern(monkeypatch):
    monkeypatch.setattr(effects, "_BUDGET", 2**14)
    model, ids = (
        tiny_hooked(dtype=torch.float64, layer_types=("sliding_attention", "full_attention"), window_size=9),
        random_tokens(N),
    )
    cap = capture(model, ids, gradient_of=metrics.loss([4, 20, 30]))
    cells = torch.stack([
        dense(cap.q(n), cap.k(n), cap.v(n), cap.gradient(n, "z"), cap.spec(n))[0] for n in (0, 1)
    ])  # fmt: skip
    found = top_edges(cap, 12)
    order = cells.flatten().abs().argsort(descending=True)[:12]
    places = torch.stack(torch.unravel_index(order, cells.shape), 1)
    assert np.array_equal(np.stack([found[x] for x in ("layer", "head", "query", "key")], 1), places.numpy())
    np.testing.assert_allclose(found.effect, cells.flatten()[order], atol=1e-10)
    assert np.array_equal(found.distance, found["query"] - found["key"])
    assert [str(x) for x in found.key_token.values] == [cap.str_tokens[i] for i in found["key"].values]
    some = top_edges(cap, 3, layers=1, heads=[2, 0])
    assert set(some["layer"].values) == {1} and set(some["head"].values) <= {0, 2}
    of_both = cells[1, [0, 2]].abs().flatten().topk(3).values
    np.testing.assert_allclose(np.abs(some.effect), of_both, atol=1e-10)
    everything = top_edges(cap, 10**6)
    assert len(everything["rank"]) == int((cells != 0).sum())

    by_key = cells[:, [1, 3]].sum((0, 1, 2))
    kept = top_tokens(attribution(cap), 4, heads=[1, 3])
    assert np.array_equal(kept.position, by_key.abs().argsort(descending=True)[:4])
    np.testing.assert_allclose(kept.effect, kept.effect_positive + kept.effect_negative, atol=1e-12)
    assert kept.token.values.tolist() == [cap.str_tokens[i] for i in kept.position.values]
    given = top_tokens(attribution(cap), 1, by="query", layers=1)
    assert int(given.position[0]) == int(cells[1].sum((0, 2)).abs().argmax())


def test_what_cannot_be_attributed_is_refused_by_name():
    model, ids = tiny_hooked(), random_tokens(9)
    plain, cap = capture(model, ids), capture(model, ids, gradient_of=metrics.logit(3))
    for ask in (attribution, top_edges):
        with pytest.raises(StageError, match="no gradients"):
            ask(plain)
        with pytest.raises(InputError, match="give a Capture"):
            ask(3)
        with pytest.raises(StageError, match="layer 5"):
            ask(cap, layers=5)
    with pytest.raises(StageError, match="no head 9"):
        top_edges(cap, heads=9)
    with pytest.raises(InputError, match=r"what attribution\(cap\) returned"):
        top_tokens(plain)
    with pytest.raises(StageError, match=r"layers \[4\]"):
        top_tokens(attribution(cap), layers=4)
    with pytest.raises(InputError, match="by='x'"):
        top_tokens(attribution(cap), by="x")
