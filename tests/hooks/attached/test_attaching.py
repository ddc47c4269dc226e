"""Attached foreign models: what is captured is what the module computes, and edits and masks do what they say."""

from functools import partial

import pytest
import torch
from dense import dense_pattern, dense_scores, dense_z
from tiny import tiny_model, tokens
from tiny_foreign import FOREIGN, foreign_model, foreign_tokens
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from hooks import HookedTransformer
from hooks.errors import AttachError, InputError
from interp import capture

DENSE = ("llama", "qwen3", "olmo2", "gemma3_text")


def closeness(a, b):
    """Largest difference, where −inf equals −inf."""
    return float((a - b).detach().nan_to_num(0.0, 0.0, 0.0).abs().max())


def raw_outputs(model, ids, **inputs):
    """What enters each output projection when the model runs on its own, [layer][batch pos head·d]."""
    found = []
    modules = [m for name, m in model.named_modules() if name.endswith("self_attn.o_proj") and "vision" not in name]
    handles = [m.register_forward_pre_hook(lambda _, args: found.append(args[0].detach())) for m in modules]
    with torch.no_grad():
        logits = model(ids, **inputs).logits
    for handle in handles:
        handle.remove()
    return found, logits


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("n", [11, 23])
def test_captured_q_k_v_give_the_modules_own_output(name, n):
    model, ids = foreign_model(name), foreign_tokens(n)
    outputs, logits = raw_outputs(model, ids)
    with HookedTransformer.attach(model) as attached, torch.no_grad():
        assert closeness(attached(ids), logits) < 1e-4
        _, cache = attached.run_with_cache(ids, names_filter="blocks.*.attn.hook_[qkv]_final")
        for layer, z in enumerate(outputs):
            spec = attached.attention_spec(layer)
            for row in range(len(ids)):
                q, k, v = (cache[f"hook_{t}", layer][row] for t in ("q_final", "k_final", "v_final"))
                pattern = dense_pattern(dense_scores(q, k, spec.scale, window=spec.window), spec.sinks)
                assert closeness(dense_z(pattern, v).flatten(-2), z[row].double()) < 1e-5


@pytest.mark.parametrize("name", FOREIGN)
def test_detaching_restores_the_model_to_the_bit(name):
    model, ids = foreign_model(name), foreign_tokens(9)
    with torch.no_grad():
        before = model(ids).logits
    config, keys = model.config._attn_implementation, set(model.state_dict())
    hooks = {n: (len(m._forward_hooks), len(m._forward_pre_hooks), len(vars(m))) for n, m in model.named_modules()}
    attached = HookedTransformer.attach(model)
    attached.detach()
    attached.detach()
    assert model.config._attn_implementation == config
    assert set(model.state_dict()) == keys
    after = {n: (len(m._forward_hooks), len(m._forward_pre_hooks), len(vars(m))) for n, m in model.named_modules()}
    assert after == hooks
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)
    with pytest.raises(AttachError, match="detached"):
        attached(ids)


@pytest.mark.parametrize("family", DENSE)
def test_attached_native_and_bridge_agree(family):
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    model, ids = tiny_model(family), tokens(19)
    native = HookedTransformer.from_pretrained(model)
    _, expected = native.run_with_cache(ids)
    with HookedTransformer.attach(model) as attached:
        assert attached.cfg.rope == native.cfg.rope
        _, cache = attached.run_with_cache(ids)
        for layer in range(native.cfg.n_layers):
            ours, theirs = attached.blocks[layer].attn, native.blocks[layer].attn
            assert torch.equal(ours.W_O, theirs.W_O) and ours.spec.window == theirs.spec.window
            if native.cfg.qk_norm is not None:
                assert closeness(ours.q_norm.effective_gain(), theirs.q_norm.effective_gain()) < 1e-6
    assert len(cache) > 40 and set(cache) <= set(expected)
    assert all(closeness(cache[name], expected[name]) < 1e-4 for name in cache)

    bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)
    logits, theirs = bridge.run_with_cache(ids)
    with HookedTransformer.attach(bridge) as attached:
        _, ours = attached.run_with_cache(ids)
        with torch.no_grad():
            assert closeness(bridge(ids), logits) < 1e-6, "the bridge runs beside the attached model"
    shared = [name for name in cache if name in theirs and cache[name].numel() == theirs[name].numel()]
    assert len(shared) > 30 and {"blocks.1.attn.hook_rot_q", "blocks.1.attn.hook_pattern"} <= set(shared)
    for name in shared:
        x = theirs[name].transpose(1, 2) if name.endswith("_normed") and theirs[name].ndim == 4 else theirs[name]
        assert closeness(x.reshape(cache[name].shape), cache[name]) < 1e-4, name
        assert closeness(ours[name], cache[name]) < 1e-6, name


@pytest.mark.parametrize("family", DENSE)
def test_captures_of_attached_and_native_are_the_same(family):
    model, ids = tiny_model(family), tokens(37, batch=1)
    native = capture(HookedTransformer.from_pretrained(model), ids)
    with HookedTransformer.attach(model) as attached:
        ours = capture(attached, ids)
    assert closeness(ours.loss, native.loss) < 1e-4
    for layer in native.layers:
        assert ours.stages(layer) == native.stages(layer)
        for stage in native.stages(layer):
            assert closeness(ours.q(layer, stage), native.q(layer, stage)) < 1e-4
            assert closeness(ours.k(layer, stage), native.k(layer, stage)) < 1e-4


@pytest.mark.parametrize("name", FOREIGN)
def test_running_layer_by_layer_is_running_the_model(name):
    model, ids = foreign_model(name), foreign_tokens(13, batch=1)
    with HookedTransformer.attach(model) as attached, torch.no_grad():
        nll = attached.loss_per_token(ids)
        logits = attached(ids)
        expected = nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:], reduction="none")
        assert closeness(nll[0], expected) < 1e-5
        resid, context = attached.embed_tokens(ids), attached.context(ids)
        for block in attached.blocks:
            resid = block(resid, context)
        assert closeness(attached.unembed_residual(resid), logits) < 1e-5
        assert closeness(attached.residual_loss(resid, ids), nll) < 1e-5


def zero_a_head(z, hook):
    z[:, :, 1] = 0
    return z


def stretch(q, hook):
    return q * torch.linspace(0.5, 1.5, q.shape[-1])


def without_first_key(rows, hook):
    rows = rows.clone()
    rows[..., hook.ctx["key_positions"] == 0] = 0
    return rows


def shift(x, hook):
    return x + 0.1


def keep(seen, x, hook):
    seen[hook.name] = x


EDITS = {
    "blocks.1.attn.hook_z": zero_a_head,
    "blocks.0.attn.hook_q": stretch,
    "blocks.0.attn.hook_k": stretch,
    "blocks.1.attn.hook_q_normed": stretch,
    "blocks.1.attn.hook_rot_k": stretch,
    "blocks.0.attn.hook_v": shift,
    "blocks.0.attn.hook_pattern_rows": without_first_key,
    "blocks.0.attn.hook_attn_scores_rows": lambda rows, hook: rows * 1.5,
    "blocks.0.attn.hook_attn_scores": lambda scores, hook: scores * 1.5,
    "blocks.1.attn.hook_pattern": lambda pattern, hook: pattern * 0.5,
    "blocks.1.attn.hook_result": zero_a_head,
    "blocks.1.attn.hook_out": shift,
    "blocks.0.hook_attn_out": shift,
    "blocks.0.hook_mlp_out": shift,
    "blocks.1.hook_resid_pre": shift,
    "blocks.0.hook_resid_post": shift,
    "hook_embed": shift,
}


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "olmo2"])
@pytest.mark.parametrize("name", EDITS)
def test_an_edit_does_what_it_does_to_the_native_model(family, name):
    model, ids = tiny_model(family), tokens(17)
    native = HookedTransformer.from_pretrained(model)
    with HookedTransformer.attach(model) as attached, torch.no_grad():
        plain = attached(ids)
        edited = attached.run_with_hooks(ids, fwd_hooks=[(name, EDITS[name])])
        assert closeness(edited, plain) > 1e-3
        assert closeness(edited, native.run_with_hooks(ids, fwd_hooks=[(name, EDITS[name])])) < 2e-4
        assert torch.equal(attached(ids), plain)


def test_a_shared_norm_is_edited_for_the_tensor_that_is_asked_for():
    model, ids = foreign_model("llama4"), foreign_tokens(9)
    with HookedTransformer.attach(model) as attached, torch.no_grad():
        names = ["blocks.0.attn.hook_rot_q", "blocks.0.attn.hook_rot_k", "blocks.0.attn.hook_q_normed"]
        _, plain = attached.run_with_cache(ids, names_filter=names)
        with attached.hooks(fwd_hooks=[("blocks.0.attn.hook_rot_q", stretch)]):
            _, edited = attached.run_with_cache(ids, names_filter=names[1:])
    assert torch.equal(edited[names[1]], plain[names[1]])
    x = plain[names[0]] * torch.linspace(0.5, 1.5, 32)
    assert closeness(edited[names[2]], x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()) < 1e-5


@pytest.mark.parametrize("family", DENSE)
def test_left_padding_is_not_attended_to(family):
    model, ids = tiny_model(family), tokens(15)
    mask = torch.ones_like(ids)
    mask[0, :6] = 0
    native = HookedTransformer.from_pretrained(model)
    with HookedTransformer.attach(model) as attached, torch.no_grad():
        ours = attached(ids, attention_mask=mask)
        assert closeness(ours[0, 6:], attached(ids[:1, 6:])[0]) < 1e-4
        assert closeness(ours[mask.bool()], native(ids, attention_mask=mask)[mask.bool()]) < 1e-4
        for name in ("blocks.1.attn.hook_pattern_rows", "blocks.1.attn.hook_pattern"):
            seen = {}
            with attached.hooks(fwd_hooks=[(name, partial(keep, seen))]):
                attached(ids, attention_mask=mask)
            assert float(seen[name][0, :, :, :6].abs().max()) == 0


def test_clipped_values_can_be_seen_on_both_sides():
    with HookedTransformer.attach(foreign_model("olmoe")) as attached:
        _, cache = attached.run_with_cache(foreign_tokens(9), names_filter="blocks.*.attn.hook_v*")
        held = capture(attached, foreign_tokens(9, batch=1))
    before, after = cache["hook_v", 1], cache["hook_v_post_clip", 1]
    assert float(before.abs().max()) > 1.5
    assert torch.equal(before.clamp(-1.5, 1.5), after)
    assert held.stages(0) == ("final",), "between norm and rotation the model clips where nobody can look"


def test_positions_can_be_given_and_reach_rows_hooks():
    model, ids = tiny_model("qwen3"), tokens(8, batch=1)
    positions = torch.arange(8) * 3 + 5
    seen = []

    def note(rows, hook):
        seen.append(hook.ctx["query_positions"])

    native = HookedTransformer.from_pretrained(model)
    with HookedTransformer.attach(model) as attached, torch.no_grad():
        ours = attached.run_with_hooks(
            ids, position_ids=positions[None], fwd_hooks=[("blocks.0.attn.hook_pattern_rows", note)]
        )
        assert torch.equal(seen[0], positions)
        assert closeness(ours, native(ids, position_ids=positions[None])) < 1e-4


def test_generation_with_a_cache_runs_on_an_attached_model():
    model, ids = foreign_model("gpt_oss"), foreign_tokens(9)
    options = {"max_new_tokens": 7, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, **options)
    with HookedTransformer.attach(model):
        assert torch.equal(model.generate(ids, **options), expected)


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize("hook", [None, "hook_pattern_rows", "hook_pattern"])
def test_gradients_are_the_models_own(name, hook):
    model, ids = foreign_model(name), foreign_tokens(12)
    parameters = [model.get_input_embeddings().weight, model.model.layers[0].self_attn.o_proj.weight]
    if name == "gpt_oss":
        parameters.append(model.model.layers[0].self_attn.sinks)
    expected = torch.autograd.grad(model(ids).logits.pow(2).mean(), parameters)
    with HookedTransformer.attach(model) as attached:
        hooks = [] if hook is None else [(f"blocks.*.attn.{hook}", lambda x, hook: x * 1.0)]
        ours = torch.autograd.grad(attached.run_with_hooks(ids, fwd_hooks=hooks).pow(2).mean(), parameters)
    for a, b in zip(ours, expected, strict=True):
        assert closeness(a, b) < 1e-4 * float(b.abs().max()) + 1e-7


def test_a_text_tower_beside_an_image_tower():
    model, ids = foreign_model("gemma3"), foreign_tokens(13, batch=1)
    outputs, logits = raw_outputs(model, ids)
    with HookedTransformer.attach(model) as attached, torch.no_grad():
        _, cache = attached.run_with_cache(ids)
        assert closeness(attached(ids), logits) < 1e-4
        assert [attached.attention_spec(i).window for i in range(2)] == [7, None]
        assert all(closeness(cache["z", i].flatten(-2), outputs[i]) < 1e-5 for i in range(2))
        held = capture(attached, ids)
        assert held.stages(0) == ("pre_norm", "pre_rope", "final")
        picture = torch.tensor([[5, 91, 90, 90, 90, 90, 92, 6]])
        inputs = {"pixel_values": torch.randn(1, 3, 28, 28), "token_type_ids": (picture == 90).long()}
        with pytest.raises(AttachError, match="image tokens"):
            attached(picture, **inputs)
        with pytest.raises(InputError, match="pixel_value'"):
            attached(ids, pixel_value=inputs["pixel_values"])


def test_the_output_weights_of_gpt2_lie_the_other_way_round():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()
    ids, projection = foreign_tokens(13), model.transformer.h[0].attn.c_proj
    with HookedTransformer.attach(model) as attached, torch.no_grad():
        _, cache = attached.run_with_cache(ids, names_filter="blocks.0.attn.hook_z")
        heads = torch.einsum("bphd,hdm->bpm", cache["z", 0], attached.blocks[0].attn.W_O) + projection.bias
        assert closeness(heads, projection(cache["z", 0].flatten(2))) < 1e-6
        watched, _ = attached.run_with_cache(ids, names_filter="blocks.*.attn.hook_result")
        assert closeness(watched, attached(ids)) < 1e-5
