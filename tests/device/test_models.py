"""Models on a device: every way to run one refuses nothing and gives what the CPU gives."""

import pytest
import tiny
import torch
from tiny_foreign import foreign_model, foreign_tokens
from tiny_hooked import random_tokens, tiny_model

import interp
from hooks import HookedTransformer, RopeConfig, recipes
from hooks.functional import fused_kernel
from hooks.functional.attend import AttentionSpec, attend_full, attend_fused, attend_rows

TYPES = ("sliding_attention", "full_attention")
KINDS = {
    "plain": {},
    "sliding": {"layer_types": TYPES, "window_size": 20},
    "soft-capped": {"attn_scores_soft_cap": 5.0},
    "sinks": {"learned_sinks": True},
    "alibi": {"rope": None, "alibi_slopes": (0.1, 0.2, 0.3, 0.4)},
    "longrope": {
        "rope": RopeConfig(
            rope_type="longrope",
            rope_theta=10_000.0,
            factor=4.0,
            original_max_position_embeddings=64,
            max_position_embeddings=256,
            short_factor=[1.0] * 8,
            long_factor=[2.0] * 8,
        )
    },
    "learned frequencies": {"rope": RopeConfig(rope_theta=10_000.0, learnable=True)},
}
ROWS = "blocks.*.attn.hook_attn_scores_rows"
RECIPES = {
    "remove_sink": recipes.remove_sink(2),
    "remove_sink of two heads": recipes.remove_sink(heads=[1, 3]),
    "limit_distance": recipes.limit_distance(9),
    "keep_top_k": recipes.keep_top_k(3),
    "knock_out": recipes.knock_out(range(70, 90), [1, 66]),
    "boost_keys": recipes.boost_keys([3, 80], 2.0),
    "cap_scores": recipes.cap_scores(1.0),
    "distance_temperature": recipes.distance_temperature(lambda distance: 1 + distance / 10),
}


def padded(tokens):
    """The tokens twice, the first row padded on its left."""
    mask = torch.ones(2, tokens.shape[1], dtype=torch.long)
    mask[0, :5] = 0
    return tokens.expand(2, -1), {"attention_mask": mask}


def close(found, wanted):
    assert torch.allclose(found.cpu(), wanted, rtol=1e-4, atol=1e-4), (found.cpu() - wanted).abs().max()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_runs_on_a_device(device, kind):
    model, tokens = tiny_model(**KINDS[kind]), random_tokens(150)
    there = device.moved(model)
    close(there(tokens), model(tokens))
    close(there.loss_per_token(tokens), model.loss_per_token(tokens))
    batch, mask = padded(tokens)
    close(there(batch, **mask, return_type="loss"), model(batch, **mask, return_type="loss"))
    logits, cache = there.run_with_cache(tokens)
    _, wanted = model.run_with_cache(tokens)
    close(logits, model(tokens))
    for name, found in cache.items():
        assert found.device == device.device
        close(found, wanted[name])
    on_cpu = there.run_with_cache(tokens, names_filter="blocks.*.attn.hook_q", device="cpu")[1]
    assert all(found.is_cpu for found in on_cpu.values())
    resid = there.embed_tokens(tokens.to(device.device))
    close(there.residual_loss(resid, tokens), model.residual_loss(model.embed_tokens(tokens), tokens))
    close(cache.decompose_resid(), wanted.decompose_resid())
    if kind == "plain":
        scaled = RopeConfig(rope_type="linear", factor=2.0)
        close(there.with_config(rope=scaled)(tokens), model.with_config(rope=scaled)(tokens))


@torch.no_grad()
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_run_on_a_device(device, recipe):
    model, tokens = tiny_model(learned_sinks=True), random_tokens(150)
    batch, mask = padded(tokens)
    hooked = {"fwd_hooks": [(ROWS, RECIPES[recipe])]}
    there = device.moved(model)
    for ids, options in ((tokens, {}), (batch, mask)):
        close(there.run_with_hooks(ids, **options, **hooked), model.run_with_hooks(ids, **options, **hooked))


@torch.no_grad()
def test_recipes_of_heads_and_stream_run_on_a_device(device):
    model, tokens, heads = tiny_model(n_key_value_heads=4), random_tokens(50), [(0, 1), (1, 3)]
    batch, mask = padded(tokens)
    there, kept = device.moved(model), ["blocks.*.attn.hook_z", "blocks.1.hook_resid_pre"]
    elsewhere = model.run_with_cache(random_tokens(50, seed=3), names_filter=kept)[1]
    cap = interp.capture(there, random_tokens(50, seed=3))
    for point, recipe in (
        ("blocks.*.attn.hook_z", recipes.ablate_heads(heads)),
        ("blocks.*.attn.hook_z", recipes.ablate_heads(heads, "mean")),
        ("blocks.*.attn.hook_z", recipes.ablate_heads(heads, elsewhere)),
        ("blocks.*.attn.hook_z", recipes.patch_heads(cap, heads, [2, 30])),
        ("blocks.1.hook_resid_pre", recipes.patch_residual(elsewhere, [2, 30])),
        ("blocks.1.hook_mlp_in", lambda x, hook: 2 + x),
        ("blocks.1.hook_attn_in", lambda x, hook: 2 + x),
    ):
        hooked = {"fwd_hooks": [(point, recipe)]}
        for ids, options in ((tokens, {}), (batch, mask)):
            close(there.run_with_hooks(ids, **options, **hooked), model.run_with_hooks(ids, **options, **hooked))


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt_oss", "deepseek_v3", "qwen3", "gemma2"])
def test_an_attached_model_runs_on_a_device(device, family):
    foreign = family in ("gpt_oss", "deepseek_v3")
    model = foreign_model(family) if foreign else tiny.tiny_model(family)
    tokens = (foreign_tokens if foreign else tiny.tokens)(50, batch=1)
    wanted = model(tokens).logits
    there = HookedTransformer.attach(device.moved(model))
    assert there.device == device.device
    close(there(tokens), wanted)
    close(there.run_with_cache(tokens)[0], wanted)
    batch, mask = padded(tokens)
    close(there(batch, **mask)[1], wanted[0])
    with HookedTransformer.attach(model) as here:
        hooked = {"fwd_hooks": [(ROWS, recipes.remove_sink(heads=[1]))]}
        close(there.run_with_hooks(tokens, **hooked), here.run_with_hooks(tokens, **hooked))
        close(there.loss_per_token(tokens), here.loss_per_token(tokens))


@torch.no_grad()
def test_the_three_ways_to_attend_agree_on_a_device(device):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 90, heads, 8, generator=generator) for heads in (4, 2, 2))
    mask = torch.ones(2, 90, dtype=torch.bool)
    mask[0, :7] = False
    for spec in (AttentionSpec(0.3), AttentionSpec(0.3, causal=False, window=9), AttentionSpec(0.3, softcap=2.0)):
        wanted = attend_full(q, k, v, spec, key_mask=mask)
        for attend in (attend_full, attend_rows, attend_fused):
            close(attend(*(x.to(device.device) for x in (q, k, v)), spec, key_mask=mask.to(device.device)), wanted)


@torch.no_grad()
@pytest.mark.parametrize(
    ("dtype", "d_head", "window", "grouped"),
    [
        (torch.bfloat16, 64, None, True),  # flash reads kv heads as they are
        (torch.float16, 256, None, True),
        (torch.float32, 64, None, False),
        (torch.bfloat16, 288, None, False),
        (torch.bfloat16, 64, 16, False),  # flash takes no mask
    ],
)
def test_cuda_never_gets_grouped_heads_without_flash(cuda, monkeypatch, dtype, d_head, window, grouped):
    """Grouped heads that flash cannot take would go the n × n way."""
    calls, kernel = [], fused_kernel.scaled_dot_product_attention

    def spy(q, k, v, *args, **options):
        calls.append((q.shape[1], k.shape[1], v.shape[1], options["enable_gqa"]))
        return kernel(q, k, v, *args, **options)

    monkeypatch.setattr(fused_kernel, "scaled_dot_product_attention", spy)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 40, heads, d_head, generator=generator).to(dtype) for heads in (6, 2, 2))
    spec = AttentionSpec(d_head**-0.5, window=window)
    found = attend_fused(*(x.to(cuda.device) for x in (q, k, v)), spec)
    assert set(calls) == {(6, 2, 2, True) if grouped else (6, 6, 6, False)}
    wanted = attend_full(q.float(), k.float(), v.float(), spec)
    assert torch.allclose(found.cpu().float(), wanted, rtol=2e-2, atol=2e-2)


@torch.no_grad()
def test_cuda_attends_in_float64_by_rows(cuda, monkeypatch):
    monkeypatch.setattr(fused_kernel, "scaled_dot_product_attention", None)
    q, k, v = (torch.randn(1, 40, heads, 8, dtype=torch.float64) for heads in (4, 2, 2))
    found = attend_fused(*(x.to(cuda.device) for x in (q, k, v)), AttentionSpec(0.3))
    assert torch.allclose(found.cpu(), attend_full(q, k, v, AttentionSpec(0.3)))
