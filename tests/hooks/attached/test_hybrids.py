"""Hybrids: the layers that attend are captured, their QK-norm is seen behind a gate, and its offset is measured."""

import pytest
import torch
from tiny import tiny_model
from tiny_foreign import foreign_model
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hooks import HookedTransformer
from hooks.errors import AttachError
from interp import bound_by_distance, capture, score_ranges

SIZES = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "moe_intermediate_size": 24,
    "num_experts": 4, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 24,
}  # fmt: skip


def hybrid(kind, seed=0):
    """A tiny Qwen3.5 or Qwen3-Next: three layers of linear attention, then one of softmax attention."""
    config = CONFIG_MAPPING[kind]
    sizes = {name: value for name, value in SIZES.items() if hasattr(config(), name)}
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config(**sizes), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * 1.5 / parameter.shape[-1] ** 0.5)
            else:
                parameter += 0.2 * noise
    return model


@pytest.mark.parametrize("kind", ["qwen3_5_text", "qwen3_next"])
def test_a_hybrid_is_captured_where_it_attends(kind):
    model, tokens = hybrid(kind), torch.arange(3, 60)
    own = model.model.layers[3].self_attn
    with HookedTransformer.attach(model) as attached:
        cap = capture(attached, tokens)
        norm = attached.cfg.qk_norm
        assert "layers 0, 1, 2 call no softmax attention" in str(attached.limits)
    assert cap.layers == (3,) and "0-2 left out" in cap.provenance["settings"]["layers"]
    assert norm.unit_offset and norm.kind == "rms" and norm.position == "before_rope"
    assert cap.stages(3) == ("pre_norm", "pre_rope", "final")
    for side, module in (("q", own.q_norm), ("k", own.k_norm)):
        before, after = (getattr(cap, side)(3, stage) for stage in ("pre_norm", "pre_rope"))
        with torch.no_grad():
            torch.testing.assert_close(module(before), after, atol=1e-5, rtol=1e-5)
        assert float((before - after).abs().max()) > 0.1
    bound = bound_by_distance(cap)["bound"]
    ranges = score_ranges(cap)
    assert bool(bound.notnull().all()) and float(ranges["utilisation"].max()) <= 1 + 1e-5


@pytest.mark.parametrize("kind", ["qwen3_5_text", "qwen3_next"])
def test_packed_documents_are_refused_where_a_layer_carries_what_it_read(kind):
    packed = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    with HookedTransformer.attach(hybrid(kind)) as attached, pytest.raises(AttachError, match="carry what they read"):
        attached(torch.arange(3, 11), position_ids=packed)


@pytest.mark.parametrize(("family", "offset"), [("gemma3_text", True), ("qwen3", False), ("olmo2", False)])
def test_the_offset_of_a_gain_is_measured(family, offset):
    model = tiny_model(family)
    with HookedTransformer.attach(model) as attached:
        assert attached.cfg.qk_norm.unit_offset is offset
        assert attached.cfg.qk_norm.unit_offset == HookedTransformer.from_pretrained(model).cfg.qk_norm.unit_offset


def test_what_was_not_seen_is_not_denied():
    with HookedTransformer.attach(foreign_model("deepseek_v3")) as attached:
        assert "seen only as they enter the score" in str(attached.limits)
