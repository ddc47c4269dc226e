"""Sinks, soft-cap, ALiBi, OLMoE's order of steps, NoPE layers and shared norms, through the whole model."""

import pytest
import torch
from dense import dense_pattern, dense_scores, dense_z
from tiny_hooked import random_tokens, tiny_model
from transformers import GptOssConfig, OlmoeConfig
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.models.olmoe import modeling_olmoe

from hooks import ConfigError, QKNormConfig, RopeConfig
from hooks.modules.attention import AttentionContext

N = 29
SLOPES = (0.5, 0.25, 0.125, 0.0625)
VARIANTS = {
    "sinks": {"learned_sinks": True},
    "softcap": {"attn_scores_soft_cap": 1.5},
    "alibi": {"alibi_slopes": SLOPES, "rope": None},
    "all": {"learned_sinks": True, "attn_scores_soft_cap": 2.5, "alibi_slopes": SLOPES, "window_size": 11},
}
WATCHED = ("hook_q_final", "hook_k_final", "hook_v", "hook_z", "hook_attn_scores", "hook_pattern")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_of_attention_equals_its_definition(variant):
    """At positions that do not start at 0, which ALiBi must not mind."""
    model = tiny_model(**VARIANTS[variant])
    tokens, positions = random_tokens(N), torch.arange(N)[None] + 977
    fused = model(tokens, position_ids=positions)
    logits, cache = model.run_with_cache(
        tokens, position_ids=positions, names_filter=[f"blocks.1.attn.{name}" for name in WATCHED]
    )
    torch.testing.assert_close(fused, logits, atol=1e-4, rtol=1e-4)
    q, k, v, z, scores, pattern = (cache[name, 1][0].detach() for name in WATCHED)
    sinks = model.blocks[1].attn.sinks
    spec = model.attention_spec(1)
    expected = dense_scores(q, k, spec.scale, window=spec.window, softcap=spec.softcap, alibi_slopes=spec.alibi_slopes)
    dense = dense_pattern(expected, None if sinks is None else sinks.detach())
    torch.testing.assert_close(scores.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pattern.double(), dense, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(z.double(), dense_z(dense, v), atol=1e-5, rtol=1e-5)
    if sinks is not None:
        assert float(pattern.sum(-1).max()) < 1


def test_sinks_are_those_of_gpt_oss():
    model = tiny_model(learned_sinks=True, qk_norm=None)
    layer = model.blocks[0].attn
    config = GptOssConfig(
        hidden_size=32, head_dim=16, num_attention_heads=4, num_key_value_heads=2, num_local_experts=2
    )
    module = modeling_gpt_oss.GptOssAttention(config, 0).eval()
    module.sinks = layer.sinks
    _, cache = model.run_with_cache(
        random_tokens(N, batch=2), names_filter=lambda name: name.startswith("blocks.0.attn")
    )
    q, k, v = (cache[name, 0].transpose(1, 2) for name in WATCHED[:3])
    mask = torch.full((N, N), -torch.inf).triu(1)
    z, pattern = modeling_gpt_oss.eager_attention_forward(module, q, k, v, mask, scaling=0.25)
    torch.testing.assert_close(cache["hook_z", 0], z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cache["hook_pattern", 0], pattern, atol=1e-6, rtol=1e-5)


def test_the_attention_of_olmoe():
    """Full-width norm, then clip, then rotation; v is clipped too."""
    qk_norm = QKNormConfig(scope="full", eps=1e-5)
    model = tiny_model(d_model=64, qk_norm=qk_norm, clip_qkv=0.6, clip_position="norm", rope=RopeConfig(rope_theta=1e4))
    ours = model.blocks[0].attn
    config = OlmoeConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, clip_qkv=0.6)
    config._attn_implementation = "eager"
    theirs = modeling_olmoe.OlmoeAttention(config, 0).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x, positions = torch.randn(2, N, 64, generator=torch.Generator().manual_seed(3)), torch.arange(N).expand(2, -1)
    mask = torch.full((1, 1, N, N), -torch.inf).triu(1)
    rotary = modeling_olmoe.OlmoeRotaryEmbedding(config)(x, positions)
    context = AttentionContext(positions, {"full_attention": model.rotary["full_attention"](positions, dtype=x.dtype)})
    expected, _ = theirs(x, rotary, mask)
    torch.testing.assert_close(ours(x, context), expected, atol=1e-5, rtol=1e-5)
    assert model.attention_steps(0, "q") == ("norm", "clip", "rope")
    assert model.attention_steps(0, "v") == ("clip",)


def test_layers_without_rotation_have_no_rotation_point():
    model = tiny_model(nope_layers=(1,))
    names = set(model.registry.infos)
    assert "blocks.0.attn.hook_rot_q" in names
    assert "blocks.1.attn.hook_rot_q" not in names
    _, cache = model.run_with_cache(random_tokens(N), names_filter=["blocks.1.attn.hook_q_normed"])
    assert torch.equal(cache["hook_q_final", 1], cache["hook_q_normed", 1])


def test_a_parallel_block_with_one_norm():
    """Attention and MLP read the same tensor; there is no second norm, and the registry says so."""
    model = tiny_model(parallel_attn_mlp=True, parallel_shared_norm=True, normalization_type="LN")
    assert set(model.registry.infos) == set(model.hook_dict)
    assert not any("ln2" in name for name in [*model.registry.infos, *dict(model.named_parameters())])
    _, cache = model.run_with_cache(random_tokens(N))
    block = model.blocks[1]
    normed = block.ln1(cache["resid_pre", 1])
    torch.testing.assert_close(block.mlp(normed), cache["mlp_out", 1])
    total = cache["resid_pre", 1] + cache["attn_out", 1] + cache["mlp_out", 1]
    torch.testing.assert_close(cache["resid_post", 1], total)
    scaled = cache.apply_ln_to_stack(cache["resid_pre", 1][None], layer=1, mlp_input=True)
    torch.testing.assert_close(scaled[0], normed, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", [{"parallel_attn_mlp": False}, {"block_norms": "sandwich"}])
def test_one_norm_for_both_needs_a_parallel_pre_norm_block(changes):
    with pytest.raises(ConfigError, match="parallel_shared_norm"):
        tiny_model(**{"parallel_attn_mlp": True, "parallel_shared_norm": True, **changes})
