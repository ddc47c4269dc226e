"""Gradients taken block by block: those of transformers' own eager code, at every stage, without an n × n tensor."""

import re
import resource

import pytest
import torch
from tiny import CLASSES, tiny_model, tokens
from tiny_foreign import FOREIGN, foreign_model, foreign_tokens
from tiny_hooked import random_tokens
from tiny_hooked import tiny_model as tiny_hooked

from hooks import HookedTransformer, recipes
from hooks.errors import InputError, MaterializationError, StageError, TokenizerError
from interp import capture, metrics

OUTPUT = re.compile(r"\.(\d+)\.\w*att\w*\.(o_proj|dense|out_proj)$")
INPUTS = re.compile(r"\.(\d+)\.\w*att\w*\.([qkv])_proj$")


def reference(foreign, ids, metric_of):
    """∂m/∂ of what enters each layer's output projection, and of what its q, k and v projections give."""
    kept, handles = {}, []
    for name, module in foreign.named_modules():
        if found := OUTPUT.search(name):
            key = int(found[1]), "z"
            handles.append(module.register_forward_pre_hook(lambda _, args, key=key: kept.update({key: args[0]})))
        if found := INPUTS.search(name):
            key = int(found[1]), found[2]
            handles.append(module.register_forward_hook(lambda _, __, out, key=key: keep(kept, key, out)))
    value = metric_of(foreign(ids).logits[0])
    for handle in handles:
        handle.remove()
    gradients = torch.autograd.grad(value, list(kept.values()))
    return float(value.detach()), dict(zip(kept, gradients, strict=True))


def keep(kept, key, out):
    """Keep a tensor, and hand on a copy: OLMo clips its own in place."""
    kept[key] = out
    return out.clone()


def first_stage(model, layer):
    """The stage right behind the projection."""
    steps = model.attention_steps(layer, "q")
    return f"pre_{steps[0]}" if steps else "final"


def close(found, expected, of_range=1e-6):
    size = float(expected.abs().max())
    torch.testing.assert_close(found, expected, atol=of_range * size, rtol=0)


@pytest.mark.parametrize("family", CLASSES)
def test_gradients_are_those_of_transformers_eager_code(family):
    foreign = tiny_model(family, dtype=torch.float64)
    model, ids = HookedTransformer.from_pretrained(foreign), tokens(30, batch=1)
    stages = {first_stage(model, layer) for layer in range(model.cfg.n_layers)} - {"final"}
    metric = metrics.logit_difference(5, 11, position=-4)
    cap = capture(model, ids, stages=tuple(stages), gradient_of=metric)
    value, expected = reference(foreign, ids, lambda logits: logits[-4, 5] - logits[-4, 11])
    # transformers' norms round to float32 whatever the model's type.
    assert cap.gradients.metric == metric.name and abs(cap.gradients.value - value) < 1e-5 * max(abs(value), 1)
    assert len(expected) >= model.cfg.n_layers
    for (layer, tensor), gradient in expected.items():
        stage = first_stage(model, layer) if tensor in "qk" else "final"
        found = cap.gradient(layer, tensor, stage)
        if tensor != "v" or model.cfg.clip_qkv is None:  # of v the clipped one is kept
            close(found, gradient[0].unflatten(-1, (-1, model.cfg.d_head)), 1e-5)


@pytest.mark.parametrize(
    "metric", [metrics.loss(), metrics.loss([3, 9]), metrics.custom(lambda x: x.var(), [1, 7], "v")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_block_by_block_is_the_whole_at_once(dtype, metric):
    model, ids = tiny_hooked(dtype=dtype, qk_norm=None, learned_sinks=True), random_tokens(20)
    cap = capture(model, ids, gradient_of=metric)
    points = {("z", "final"): "hook_z", ("q", "pre_rope"): "hook_q", ("q", "final"): "hook_rot_q"}
    points |= {("k", "pre_rope"): "hook_k", ("k", "final"): "hook_rot_k", ("v", "final"): "hook_v"}
    kept = {}
    names = {f"blocks.{n}.attn.{point}": (n, *what) for n in range(2) for what, point in points.items()}
    hooks = [(name, lambda x, hook, key=key: kept.update({key: x})) for name, key in names.items()]
    with model.hooks(fwd_hooks=hooks):
        logits = model(ids)[0].to(torch.promote_types(dtype, torch.float32))
    at = range(19) if metric.positions is None else metric.positions
    losses = torch.stack([-logits[i].log_softmax(-1)[ids[0, i + 1]] for i in at])
    value = losses.mean() if metric.kind == "loss" else logits[[1, 7]].var()
    for key, gradient in zip(kept, torch.autograd.grad(value, list(kept.values())), strict=True):
        close(cap.gradient(*key).float(), gradient[0].float(), 1e-6 if dtype != torch.bfloat16 else 2e-2)


@pytest.mark.parametrize("name", FOREIGN)
def test_gradients_of_an_attached_model_are_autograds_through_the_whole(name):
    foreign, ids = foreign_model(name), foreign_tokens(20, batch=1)
    with HookedTransformer.attach(foreign) as attached:
        cap = capture(attached, ids, gradient_of=metrics.logit(3), stages=())
        kept = {}
        points = [(f"blocks.{n}.attn.hook_{x}", (n, x)) for n in range(attached.cfg.n_layers) for x in ("z", "v_final")]
        with attached.hooks(fwd_hooks=[(p, lambda x, hook, key=key: kept.update({key: x})) for p, key in points]):
            value = attached(ids)[0, -1, 3]
        expected = torch.autograd.grad(value, list(kept.values()))
    for (layer, tensor), gradient in zip(kept, expected, strict=True):
        close(cap.gradient(layer, tensor[0]), gradient[0])


def test_hooks_packed_documents_and_chosen_layers_take_part():
    model, places = tiny_hooked(dtype=torch.float64, n_layers=3), torch.cat([torch.arange(9), torch.arange(8)])
    ids, metric = random_tokens(17), metrics.logit(4, position=5)
    packed = capture(model, ids, positions=places, gradient_of=metric)
    alone = capture(model, ids[:, :9], gradient_of=metric)
    for tensor in "zqkv":
        close(packed.gradient(1, tensor)[:9], alone.gradient(1, tensor))
        assert not packed.gradient(1, tensor)[9:].any()
    one = capture(model, ids[:, :9], layers=1, loss=False, gradient_of=metric)
    assert one.layers == (1,) and torch.equal(one.gradient(1, "q"), alone.gradient(1, "q"))
    with model.hooks(fwd_hooks=[("blocks.2.attn.hook_z", recipes.ablate_heads([(2, 1)]))]):
        edited = capture(model, ids[:, :9], gradient_of=metric)
    assert edited.gradients.value != alone.gradients.value
    # Moving what leaves the ablation moves the metric; what went into it moves nothing.
    assert edited.gradient(2, "z")[:, 1].any() and not edited.gradient(2, "q")[:, 1].any()


def test_memory_of_the_way_back_grows_with_the_length_alone():
    model = tiny_hooked(n_ctx=10_000, layer_types=("sliding_attention", "full_attention"), window_size=64)
    capture(model, random_tokens(64), gradient_of=metrics.loss())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    capture(model, random_tokens(4096), gradient_of=metrics.loss())
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 4096 * 4096 * 4 * 4  # the patterns of one layer


def test_what_is_not_there_is_refused_by_name(monkeypatch):
    model, ids = tiny_hooked(), random_tokens(9)
    cap = capture(model, ids, gradient_of=metrics.logit(3))
    with pytest.raises(StageError, match="no gradients"):
        capture(model, ids).gradient(0, "z")
    with pytest.raises(StageError, match="no gradient of q at stage 'post_clip'"):
        cap.gradient(0, "q", "post_clip")
    with pytest.raises(StageError, match="no gradient of v at stage 'pre_rope'"):
        cap.gradient(0, "v", "pre_rope")
    with pytest.raises(StageError, match="tensor='x'"):
        cap.gradient(0, "x")
    with pytest.raises(StageError, match="layer 7"):
        cap.gradient(7, "z")
    with pytest.raises(InputError, match="gradient_of=3"):
        capture(model, ids, gradient_of=3)
    with pytest.raises(TokenizerError, match="no tokenizer"):
        capture(model, ids, gradient_of=metrics.logit(" Paris"))
    with pytest.raises(InputError, match="nothing is inf"):
        capture(model, ids, gradient_of=metrics.custom(lambda x: x.sum() * torch.inf, 1, "nothing"))
    monkeypatch.setattr("interp.recording.in_memory.free_bytes", lambda device: 30_000)
    capture(model, ids)
    with pytest.raises(MaterializationError, match="their gradients"):
        capture(model, ids, gradient_of=metrics.logit(3))


@pytest.mark.slow
@pytest.mark.parametrize("source", ["gemma3-270m", "smollm2-135m"])
def test_gradients_of_a_real_model_are_autograds_through_the_whole(source):
    model = HookedTransformer.from_pretrained(source, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, (1, 512), generator=generator)
    cap = capture(model, ids, gradient_of=metrics.logit(7), stages=())
    kept = {}
    names = [(f"blocks.{n}.attn.hook_{x}", (n, x)) for n in range(model.cfg.n_layers) for x in ("z", "q_final", "v")]
    with model.hooks(fwd_hooks=[(name, lambda x, hook, key=key: kept.update({key: x})) for name, key in names]):
        value = model.unembed_residual(model(ids, stop_at_layer=model.cfg.n_layers)[:, -1:])[0, 0, 7]
    for (layer, tensor), gradient in zip(kept, torch.autograd.grad(value, list(kept.values())), strict=True):
        close(cap.gradient(layer, tensor[0]), gradient[0])
