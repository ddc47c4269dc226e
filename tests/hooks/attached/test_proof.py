"""Attaching proves itself: outputs with and without are compared near and far, and so is the rotation it claims."""

import pytest
import torch
from tiny import tiny_model
from tiny_foreign import FOREIGN, foreign_model
from torch import Tensor
from transformers import GPTJConfig, GPTJForCausalLM, LlamaConfig, LlamaForCausalLM

from hooks import HookedTransformer, RopeConfig
from hooks.errors import AttachError

SIZES = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
}  # fmt: skip


def llama(**options):
    """A tiny Llama with its own seed, in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LlamaForCausalLM._from_config(LlamaConfig(**SIZES | options), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)) / 6)
    return model


@pytest.mark.parametrize("beyond", [0, 40])
def test_a_model_that_computes_something_else_when_attached_is_refused(beyond):
    """It hides the first key where its mask is the table that it expects, beyond a length that its config names."""
    model = llama(sliding_window=40)

    def edit(module, args, kwargs):
        mask = kwargs["attention_mask"]
        if isinstance(mask, Tensor) and mask.is_floating_point() and mask.shape[-1] > beyond:
            mask = mask.clone()
            mask[..., 1:, 0] = torch.finfo(mask.dtype).min
        return args, kwargs | {"attention_mask": mask}

    handle = model.model.layers[1].self_attn.register_forward_pre_hook(edit, with_kwargs=True)
    with pytest.raises(AttachError, match=r"something else when attached: on \d+ tokens its output is off by \d"):
        HookedTransformer.attach(model)
    assert model.config._attn_implementation == "eager"
    handle.remove()
    HookedTransformer.attach(model).detach()


@pytest.mark.parametrize("name", [*FOREIGN, "gemma3_text", "olmo2"])
def test_the_models_that_attach_prove_themselves_and_stay_as_they_are(name):
    model = foreign_model(name) if name in FOREIGN else tiny_model(name)
    model.train()
    with HookedTransformer.attach(model) as attached:
        assert model.training and all(module.training for module in model.modules())
        assert all(isinstance(limit, str) for limit in attached.limits)
        assert str(attached.limits).count("\n") == len(attached.limits) - 1
        assert "something else" not in str(attached.limits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("back", [True, False])
def test_frequencies_rounded_by_a_cast_are_no_proven_schedule(dtype, back):
    model = llama().to(dtype)
    with HookedTransformer.attach(model.float() if back else model) as attached:
        assert attached.cfg.rope is None
        assert "inv_freq) are off by" in attached.cfg.provenance["rope"]
        assert any("cfg.rope is None" in limit and "cast" in limit for limit in attached.limits)


def test_a_model_loaded_in_bfloat16_keeps_its_schedule():
    model = llama()
    for parameter in model.parameters():  # as from_pretrained(dtype=torch.bfloat16) leaves it: frequencies in float32
        parameter.data = parameter.data.to(torch.bfloat16)
    with HookedTransformer.attach(model) as attached:
        assert attached.cfg.rope == HookedTransformer.from_pretrained(llama()).cfg.rope
        assert any("beyond position 255" in limit for limit in attached.limits)


def test_a_schedule_that_holds_only_near_is_not_claimed():
    model = llama()

    def warp(module, args, kwargs):
        positions = kwargs.get("position_ids", args[-1])
        return args[:1], {"position_ids": positions.where(positions < 100, 2 * positions)}

    model.model.rotary_emb.register_forward_pre_hook(warp, with_kwargs=True)
    with HookedTransformer.attach(model) as attached:
        assert attached.cfg.rope is None and "at the first positions, but not at 249" in str(attached.limits)


def test_the_rotation_that_gptj_has_in_its_code_is_found():
    sizes = {"vocab_size": 97, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 96}
    model = GPTJForCausalLM(GPTJConfig(**sizes, rotary_dim=8)).eval()
    with HookedTransformer.attach(model) as attached:
        assert attached.cfg.rope == RopeConfig(rope_theta=10_000.0, rotary_dim=8, interleaved=True)
