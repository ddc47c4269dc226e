"""Integrated gradients and the correction of q and k, against autograd of the whole, dense softmax and real patches."""

import numpy as np
import pytest
import torch
from dense import dense_pattern, dense_scores, dense_z
from tiny_hooked import random_tokens, tiny_model

from hooks.errors import InputError
from interp import activation_patching, attribution_patching, capture, integrated_gradients, metrics, plots

M = metrics.logit_difference(5, 7, position=-2)
SETTINGS = {
    "plain": {},
    "sandwich": {"block_norms": "sandwich", "attn_scores_soft_cap": 2.0},
    "parallel": {"normalization_type": "LN", "parallel_attn_mlp": True, "attn_bias": True},
}


def at_embeddings(model, ids, x):
    """The metric of a whole run from other embeddings, and its gradients to them and to every z."""
    kept = []
    points = [(f"blocks.{n}.attn.hook_z", lambda z, hook: kept.append(z)) for n in range(model.cfg.n_layers)]
    x = x.detach().requires_grad_()
    logits = model.run_with_hooks(ids, fwd_hooks=[("hook_embed", lambda old, hook: x), *points])
    value = logits[0, -2, 5] - logits[0, -2, 7]
    return float(value.detach()), kept, torch.autograd.grad(value, [x, *kept])


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("zero", [False, True])
def test_it_is_the_integral_of_autograd_through_the_whole(name, zero):
    model = tiny_model(dtype=torch.float64, initializer_range=0.1, **SETTINGS[name])
    ids, others = random_tokens(12), random_tokens(12, seed=1)
    found = integrated_gradients(model, ids, M, None if zero else others, steps=256 if zero else 64)
    end = model.embed_tokens(ids).detach()
    start = torch.zeros_like(end) if zero else model.embed_tokens(others).detach()
    (first, z_start, _), (last, z_end, _) = (at_embeddings(model, ids, x) for x in (start, end))
    assert found.attrs["corrupted_metric"] == pytest.approx(first, abs=1e-10)
    assert found.attrs["metric_value"] == pytest.approx(last, abs=1e-10)
    gap = last - first
    assert abs(float(found.effect.sum()) - gap) < 0.01 * abs(gap)
    assert found.attrs["missing"] == pytest.approx(gap - float(found.effect.sum()), abs=1e-10)
    # The same integral by equal steps, of ln α where it begins at zero.
    sums, count = None, 250
    for t in (np.arange(count) + 0.5) / count:
        place = 10 ** (15 * (t - 1)) if zero else t
        weight = place * 15 * np.log(10) / count if zero else 1 / count
        parts = [weight * g for g in at_embeddings(model, ids, start + place * (end - start))[2]]
        sums = parts if sums is None else [a + b for a, b in zip(sums, parts, strict=True)]
    by_position = ((end - start) * sums[0]).sum(-1)[0].numpy()
    close = 4e-3 if zero else 1e-3  # of the sum over equal steps
    np.testing.assert_allclose(found.effect, by_position, atol=close * np.abs(by_position).max())
    by_head = [((b - a).detach() * g).sum((0, 1, 3)).numpy() for a, b, g in zip(z_start, z_end, sums[1:], strict=True)]
    np.testing.assert_allclose(found.effect_by_head, by_head, atol=close * np.abs(by_head).max())


def test_one_step_between_close_texts_is_the_gradient_in_the_middle():
    model, ids = tiny_model(dtype=torch.float64), random_tokens(9)
    found = integrated_gradients(model, ids, M, ids.flip(1), steps=1)
    start, end = (model.embed_tokens(x).detach() for x in (ids.flip(1), ids))
    gradient = at_embeddings(model, ids, (start + end) / 2)[2][0]
    np.testing.assert_allclose(found.effect, ((end - start) * gradient).sum(-1)[0], atol=1e-10)
    assert plots.show(found).data[0].z.shape == (2, 4)


@pytest.mark.parametrize("at", ["q", "k"])
@pytest.mark.parametrize("settings", [{}, {"learned_sinks": True, "attn_scores_soft_cap": 2.0}])
def test_the_correction_is_dense_attention_with_the_clean_side(at, settings):
    model = tiny_model(dtype=torch.float64, **settings)
    ids, clean = random_tokens(15), random_tokens(15, seed=1)
    cap, other = capture(model, ids, gradient_of=M), capture(model, clean)
    found = attribution_patching(cap, other, at, exact_softmax=True)
    for layer in range(2):
        spec, k = cap.spec(layer), (cap if at == "q" else other).k(layer)
        q = (other if at == "q" else cap).q(layer)
        pattern = dense_pattern(dense_scores(q, k, spec.scale, softcap=spec.softcap), spec.sinks)
        moved = ((dense_z(pattern, cap.v(layer)) - cap.z(layer)) * cap.gradient(layer, "z")).sum((0, 2))
        expected = moved if at == "q" else moved.reshape(2, 2).sum(1)
        np.testing.assert_allclose(found.change.sel(layer=layer), expected, atol=1e-9)
    whole = attribution_patching(cap, other, at, by="block", exact_softmax=True)
    np.testing.assert_allclose(whole.change, found.change.sum(found.change.dims[1]), atol=1e-9)


def test_where_all_behind_attention_is_linear_the_correction_is_the_patch():
    """Queries eight times as long saturate softmax; heads that write little leave the rest of the model linear."""
    model = tiny_model(dtype=torch.float64, qk_norm=None, initializer_range=0.3)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.q_proj.weight *= 8
            block.attn.o_proj.weight *= 1e-4
    ids, clean = random_tokens(30), random_tokens(30, seed=1)
    cap, other = capture(model, ids, gradient_of=M), capture(model, clean)
    for at in ("q", "k"):
        real = activation_patching(model, clean, ids, M, at=at)
        change = real.metric.values - real.attrs["corrupted_metric"]
        size = np.abs(change).max()
        np.testing.assert_allclose(
            attribution_patching(cap, other, at, exact_softmax=True).change, change, atol=0.01 * size
        )
        assert np.abs(attribution_patching(cap, other, at).change.values - change).max() > 0.3 * size


def test_what_cannot_be_integrated_or_corrected_is_refused_by_name():
    model, ids = tiny_model(), random_tokens(9)
    with pytest.raises(InputError, match="tokens has 9 tokens and corrupted 8"):
        integrated_gradients(model, ids, M, ids[:, 1:])
    with pytest.raises(InputError, match="m=3"):
        integrated_gradients(model, ids, 3)
    with pytest.raises(InputError, match="steps=0"):
        integrated_gradients(model, ids, M, steps=0)
    broken = metrics.custom(lambda x: x.sum() * torch.inf, 1, "nothing")
    with pytest.raises(InputError, match="nothing is"):
        integrated_gradients(model, ids, broken, steps=1)
    cap = capture(model, ids, gradient_of=M)
    for at, by in (("z", "head"), ("v", "block"), ("k", "position")):
        with pytest.raises(InputError, match=f"not '{at}' by '{by}'"):
            attribution_patching(cap, cap, at, by=by, exact_softmax=True)
    with pytest.raises(InputError, match="q has shape"):
        cap.z(0, q=cap.k(0))
