"""Mistral 3's language model inside its multimodal files, and what Granite multiplies its residual stream with."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tiny import Shape, tiny_model, tokens

from hooks import HookedTransformer
from hooks.errors import UnknownModelError
from hooks.families.table import config_from_hf

pytestmark = pytest.mark.filterwarnings("ignore::hooks.errors.NarrowRotaryWarning")
load = HookedTransformer.from_pretrained


def multimodal(theirs, directory, prefix, head):
    """A Mistral 3 checkpoint around a Mistral, under newer or older names."""
    weights = {}
    for name, weight in theirs.state_dict().items():
        weights[head if name == "lm_head.weight" else f"{prefix}{name.removeprefix('model.')}"] = weight.contiguous()
    weights["model.vision_tower.ln_pre.weight"] = torch.ones(3)
    weights["multi_modal_projector.linear_1.weight"] = torch.ones(3, 2)
    save_file(weights, directory / "model.safetensors")
    outer = {
        "model_type": "mistral3",
        "text_config": theirs.config.to_dict(),
        "vision_config": {"model_type": "pixtral"},
        "image_token_index": 10,
        "spatial_merge_size": 2,
        "tie_word_embeddings": False,
    }
    (directory / "config.json").write_text(json.dumps(outer))
    return directory


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("model.language_model.", "lm_head.weight"),
        ("language_model.model.", "language_model.lm_head.weight"),
    ],
)
def test_the_language_model_of_mistral3(tmp_path, prefix, head):
    theirs = tiny_model("mistral", Shape())
    ours = load(multimodal(theirs, tmp_path, prefix, head))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens(30)), theirs(tokens(30)).logits, rtol=1e-4, atol=1e-4)


def test_another_language_model_inside_is_refused():
    inner = tiny_model("llama").config.to_dict() | {"model_type": "ministral3"}
    with pytest.raises(UnknownModelError, match=r"'ministral3'.*mistral only.*attach"):
        config_from_hf({"model_type": "mistral3", "text_config": inner})


@torch.no_grad()
def test_what_granite_multiplies_is_in_what_its_heads_and_neurons_write():
    theirs = tiny_model("granite", Shape(bias=True))
    ours = load(theirs)
    _, cache = ours.run_with_cache(tokens(9))
    scale = theirs.config.residual_multiplier
    for layer, block in enumerate(theirs.model.layers):
        attn = ours.blocks[layer].attn
        torch.testing.assert_close(attn.W_O.flatten(0, 1), block.self_attn.o_proj.weight.T * scale)
        torch.testing.assert_close(attn.b_O, block.self_attn.o_proj.bias * scale)
        torch.testing.assert_close(ours.blocks[layer].mlp.W_out, block.mlp.down_proj.weight.T * scale)
        gained = cache["resid_mid", layer] - cache["resid_pre", layer]
        torch.testing.assert_close(cache["attn_out", layer], gained, rtol=1e-4, atol=1e-4)
        heads = torch.einsum("bphd,hdm->bpm", cache["z", layer], attn.W_O) + attn.b_O
        torch.testing.assert_close(heads, gained, rtol=1e-4, atol=1e-4)
    parts = cache.decompose_resid(None)
    torch.testing.assert_close(parts.sum(0), cache["resid_post", -1], rtol=1e-4, atol=1e-4)
    heads = cache.stack_head_results(1).sum(0) + ours.blocks[0].attn.b_O
    torch.testing.assert_close(heads, cache["attn_out", 0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_watching_each_heads_result_changes_nothing_of_granite():
    ours = load(tiny_model("granite", Shape(bias=True)))
    plain = ours(tokens(9))
    with ours.hooks(fwd_hooks=[("blocks.*.attn.hook_result", lambda result, hook: result)]):
        torch.testing.assert_close(ours(tokens(9)), plain, rtol=1e-5, atol=1e-5)
