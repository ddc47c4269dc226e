"""TransformerLens' own tools on the model: what they report is held against the forward pass and hand-written loops."""

import inspect

import planted
import pytest
import torch
from tiny_hooked import random_tokens, tiny_model
from torch.nn import functional
from torch.utils.data import Dataset
from transformer_lens import patching
from transformer_lens.ActivationCache import ActivationCache as FoldedNormsCache
from transformer_lens.head_detector import detect_head
from transformer_lens.model_protocol import (
    TrainableTransformerLensModel,
    TransformerLensModel,
    TransformerLensModelWithWeights,
)
from transformer_lens.tools.analysis.direct_logit_attribution import direct_logit_attribution
from transformer_lens.tools.analysis.logit_lens import logit_lens
from transformer_lens.tools.training import TrainConfig, train

from hooks import QKNormConfig
from hooks.base.cache import ActivationCache
from hooks.errors import InputError

BIASES = {"attn_bias": True, "attn_out_bias": True, "mlp_bias": True, "unembed_bias": True}
MODELS = {
    "llama": {},
    "olmo2": {"block_norms": "post", "qk_norm": QKNormConfig(scope="full")},
    "gemma": {"block_norms": "sandwich", "rmsnorm_uses_offset": True, "embed_scale": 5.6, "tie_word_embeddings": True},
    "olmo": {"normalization_type": "LN", "norm_affine": False, "qk_norm": None, "clip_qkv": 2.0},
    "layernorm": {"normalization_type": "LN", "norm_bias": True, **BIASES},
    "layernorm-sandwich": {"normalization_type": "LN", "norm_bias": True, "block_norms": "sandwich", **BIASES},
    "cohere": {"normalization_type": "LN", "parallel_attn_mlp": True, "logit_scale": 0.25},
    "ungated": {"gated_mlp": False, "act_fn": "relu", "n_key_value_heads": 4},
}
PRE_NORM = [name for name, changes in MODELS.items() if changes.get("block_norms", "pre") == "pre"]


def run(name, n=7, batch=3):
    model, tokens = tiny_model(**MODELS[name]), random_tokens(n, batch=batch)
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
    return model, tokens, logits, cache


def close(actual, expected, tolerance=1e-4):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_parts_sum_to_the_residual_stream(name):
    model, _, _, cache = run(name)
    for layer, stream in ((1, cache["resid_pre", 1]), (None, cache["resid_post", -1])):
        close(cache.decompose_resid(layer).sum(0), stream)
        for expand in (True, False):
            parts, labels = cache.get_full_resid_decomposition(layer, expand_neurons=expand, return_labels=True)
            close(parts.sum(0), stream)
            assert len(labels) == len(parts) == len(set(labels))
    assert torch.equal(cache.accumulated_resid()[-1], cache["resid_post", -1])
    assert model.cfg.n_layers == 2


@pytest.mark.parametrize("name", [n for n in MODELS if n != "cohere"])
def test_parts_sum_to_the_stream_before_an_mlp(name):
    _, _, _, cache = run(name)
    close(cache.decompose_resid(1, mlp_input=True).sum(0), cache["resid_mid", 1])
    close(cache.get_full_resid_decomposition(1, mlp_input=True).sum(0), cache["resid_mid", 1])
    close(cache.stack_neuron_results(1, mlp_input=True, incl_remainder=True).sum(0), cache["resid_mid", 1])


def test_a_parallel_block_has_no_stream_between_attention_and_mlp():
    _, _, _, cache = run("cohere")
    for method in (cache.decompose_resid, cache.get_full_resid_decomposition):
        with pytest.raises(InputError, match="parallel_attn_mlp"):
            method(1, mlp_input=True)


@pytest.mark.parametrize("name", MODELS)
def test_heads_sum_to_attention_output_before_any_post_norm(name):
    model, _, _, cache = run(name)
    heads = cache.stack_head_results(-1).unflatten(0, (2, 4)).sum(1)
    for layer in range(2):
        close(heads[layer] + model.b_O[layer], cache[f"blocks.{layer}.attn.hook_out"])
    whole, labels = cache.stack_head_results(-1, incl_remainder=True, return_labels=True)
    close(whole.sum(0), cache["resid_post", -1])
    assert labels[5] == "L1H1"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("position", [None, -1, (2, 5)])
def test_attributions_sum_to_the_target_logit(name, position):
    model, tokens, logits, cache = run(name)
    target = tokens.roll(-1, 1)
    if isinstance(position, int):
        target, logits = target[:, position], logits[:, position]
    elif position:
        target, logits = target[:, slice(*position)], logits[:, slice(*position)]
    expected = logits.gather(-1, target[..., None])[..., 0] - model.logit_bias(target)
    cut = {"pos_slice": position}
    stacks = [
        cache.decompose_resid(**cut),
        cache.get_full_resid_decomposition(**cut),
        cache.stack_head_results(incl_remainder=True, **cut),
        cache.stack_neuron_results(-1, incl_remainder=True, **cut),
        cache.accumulated_resid(**cut)[-1:],
    ]
    for stack in stacks:
        close(cache.logit_attrs(stack, target, **cut).sum(0), expected, 1e-3)
        normed = cache.apply_ln_to_stack(stack, **cut).sum(0)
        close((normed * model.tokens_to_residual_directions(target)).sum(-1), expected, 1e-3)
    wrong = target.flip(0)
    difference = expected - (logits.gather(-1, wrong[..., None])[..., 0] - model.logit_bias(wrong))
    close(cache.logit_attrs(stacks[0], target, wrong, **cut).sum(0), difference, 1e-3)


@pytest.mark.parametrize("name", ["llama", "gemma", "layernorm"])
def test_without_the_gain_the_sum_is_wrong(name):
    model, tokens, logits, cache = run(name)
    target = tokens.roll(-1, 1)
    expected = logits.gather(-1, target[..., None])[..., 0] - model.logit_bias(target)
    folded = FoldedNormsCache(cache.cache_dict, model)
    assert (folded.logit_attrs(folded.decompose_resid(), target).sum(0) - expected).abs().max() > 0.1


@pytest.mark.parametrize("name", MODELS)
def test_a_norm_of_the_parts_sums_to_what_the_layer_reads(name):
    model, tokens = tiny_model(**MODELS[name]), random_tokens(6, batch=2)
    seen = {}
    for leaf in ("attn.q_proj", "mlp.up_proj"):
        module = model.get_submodule(f"blocks.1.{leaf}")
        module.register_forward_pre_hook(lambda _, args, leaf=leaf: seen.update({leaf: args[0].detach()}))
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)

    def bias(norm):
        return 0.0 if getattr(norm, "bias", None) is None else norm.bias

    block = model.blocks[1]
    close(cache.decompose_resid(1, apply_ln=True).sum(0), seen["attn.q_proj"] - bias(block.ln1))
    close(cache.get_full_resid_decomposition(1, apply_ln=True).sum(0), seen["attn.q_proj"] - bias(block.ln1))
    if not model.cfg.parallel_attn_mlp:
        close(cache.decompose_resid(1, True, apply_ln=True).sum(0), seen["mlp.up_proj"] - bias(block.ln2))
        close(cache.get_full_resid_decomposition(1, True, apply_ln=True).sum(0), seen["mlp.up_proj"] - bias(block.ln2))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("apply_ln", [False, True])
def test_a_projection_is_the_projection_of_the_parts(name, apply_ln):
    _, _, _, cache = run(name, n=5, batch=2)
    one, two = torch.randn(32, generator=torch.Generator().manual_seed(1)), torch.randn(32, 2)
    for method in (cache.get_full_resid_decomposition, lambda **kw: cache.stack_neuron_results(2, **kw)):
        for cut in (None, -1):
            plain = method(apply_ln=apply_ln, pos_slice=cut)
            close(method(apply_ln=apply_ln, pos_slice=cut, project_output_onto=one), plain @ one, 1e-3)
            close(method(apply_ln=apply_ln, pos_slice=cut, project_output_onto=two), plain @ two, 1e-3)
    with_rest = cache.stack_neuron_results(2, apply_ln=apply_ln, incl_remainder=True, project_output_onto=one)
    stream = cache.decompose_resid(apply_ln=apply_ln).sum(0)
    close(with_rest.sum(0), stream @ one, 1e-3)


def test_a_cache_without_batch_and_a_slice_of_the_batch():
    model, tokens, logits, cache = run("gemma")
    row = cache.apply_slice_to_batch_dim(1)
    assert isinstance(row, ActivationCache)
    attributions = row.logit_attrs(row.decompose_resid(), tokens[0, 0], has_batch_dim=False)
    close(attributions.sum(0), logits[1, :, tokens[0, 0]], 1e-3)
    with torch.no_grad():
        _, flat = model.run_with_cache(tokens[1:2], remove_batch_dim=True)
    close(flat.logit_attrs(flat.get_full_resid_decomposition(), 5, has_batch_dim=False).sum(0), logits[1, :, 5], 1e-3)
    of_two = cache.logit_attrs(cache.decompose_resid(), tokens[:2, 0], batch_slice=[0, 1]).sum(0)
    close(of_two, torch.stack([logits[i, :, tokens[i, 0]] for i in range(2)]), 1e-3)


@pytest.mark.parametrize("name", PRE_NORM)
def test_accumulated_bias_is_what_biases_add(name):
    model, _, _, cache = run(name)
    neurons = cache.stack_neuron_results(2).sum(0)
    heads = cache.stack_head_results(2).sum(0)
    close(heads + neurons + cache["hook_embed"] + model.accumulated_bias(2), cache["resid_post", 1])
    first = cache.stack_head_results(1).sum(0) + cache["hook_embed"]
    if not model.cfg.parallel_attn_mlp:
        close(first + model.accumulated_bias(0, mlp_input=True), cache["resid_mid", 0])
    close(first + cache["mlp_out", 0] + model.accumulated_bias(1, include_mlp_biases=False), cache["resid_pre", 1])


def test_a_bias_behind_a_post_norm_is_no_constant():
    assert tiny_model(**MODELS["gemma"]).accumulated_bias(2).abs().max() == 0
    with pytest.raises(InputError, match="get_full_resid_decomposition"):
        tiny_model(**MODELS["layernorm-sandwich"]).accumulated_bias(1)


@pytest.mark.parametrize("name", ["gemma", "layernorm", "cohere"])
@pytest.mark.parametrize("cap", [-1.0, 0.5])
def test_the_logit_lens_ends_at_the_logits(name, cap):
    model = tiny_model(**MODELS[name], output_logits_soft_cap=cap)
    tokens = random_tokens(5, batch=2)
    logits, cache = model.run_with_cache(tokens)
    lens = logit_lens(model, tokens, positions=None)
    close(lens.values[-1], logits)
    close(cache.logit_lens(positions=None).values[0], model.unembed_residual(cache["resid_pre", 0]))
    last = cache.accumulated_resid(apply_ln=True)[-1]
    close(model.apply_output_logits_transform(last @ model.W_U + model.b_U), logits)


@pytest.mark.parametrize("unit", ["component", "head"])
def test_direct_logit_attribution(unit):
    model, tokens, logits, cache = run("gemma")
    found = direct_logit_attribution(model, tokens, answer_tokens=tokens[:, 0], unit=unit, cache=cache)
    close(found.attribution.sum(0), logits[torch.arange(3), -1, tokens[:, 0]], 1e-3)


@pytest.mark.parametrize("name", ["gemma", "layernorm", "cohere"])
def test_loss_per_token_is_cross_entropy(name):
    model, tokens, logits, _ = run(name)
    expected = functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    close(model.loss_per_token(tokens).flatten(), expected, 1e-5)


def test_weights_in_transformer_lens_layout():
    model, tokens = tiny_model(**BIASES), random_tokens(4)
    _, cache = model.run_with_cache(tokens)
    x = cache["normalized", 1, "ln1"] * model.blocks[1].ln1.gain
    for name in "QKV":
        weight, bias = getattr(model, f"W_{name}")[1], getattr(model, f"b_{name}")[1]
        close(torch.einsum("bpm,hmd->bphd", x, weight) + bias, cache[name.lower(), 1])
    close(torch.einsum("bphd,hdm->bpm", cache["z", 1], model.W_O[1]) + model.b_O[1], cache["hook_out", 1, "attn"])
    x = cache["normalized", 1, "ln2"] * model.blocks[1].ln2.gain
    gate = model.blocks[1].mlp.b_gate
    close(x @ model.W_gate[1] + gate, cache["pre", 1])
    close(functional.silu(cache["pre", 1]) * (x @ model.W_in[1] + model.b_in[1]), cache["post", 1])
    close(cache["post", 1] @ model.W_out[1] + model.b_out[1], cache["hook_out", 1, "mlp"])
    close(model.W_E[tokens], cache["hook_embed"])
    assert model.blocks[0].attn.W_Q.data_ptr() == model.blocks[0].attn.q_proj.weight.data_ptr()
    close(model.QK.AB[1, 3], model.W_Q[1, 3] @ model.W_K[1, 1].T)
    close(model.OV.AB[1, 2], model.W_V[1, 1] @ model.W_O[1, 2])


def test_the_three_protocols_hold():
    model = tiny_model()
    for protocol in (TransformerLensModel, TrainableTransformerLensModel, TransformerLensModelWithWeights):
        assert isinstance(model, protocol)
    for member in ("cfg", "blocks", "ln_final"):  # checks from Python 3.12 on, and beartype's, read the class
        assert isinstance(inspect.getattr_static(model, member), property)


def metric(logits):
    return logits[:, -1, 3].sum() - logits[:, -1, 4].sum()


SWEEPS = {
    "resid_pre": ("hook_resid_pre", ("layer", "pos")),
    "resid_mid": ("hook_resid_mid", ("layer", "pos")),
    "attn_out": ("hook_attn_out", ("layer", "pos")),
    "mlp_out": ("hook_mlp_out", ("layer", "pos")),
    "attn_head_out_all_pos": ("attn.hook_z", ("layer", "head")),
    "attn_head_out_by_pos": ("attn.hook_z", ("layer", "pos", "head")),
    "attn_head_q_all_pos": ("attn.hook_q", ("layer", "head")),
    "attn_head_q_by_pos": ("attn.hook_q", ("layer", "pos", "head")),
    "attn_head_k_all_pos": ("attn.hook_k", ("layer", "head")),
    "attn_head_k_by_pos": ("attn.hook_k", ("layer", "pos", "head")),
    "attn_head_v_all_pos": ("attn.hook_v", ("layer", "head")),
    "attn_head_v_by_pos": ("attn.hook_v", ("layer", "pos", "head")),
    "attn_head_pattern_all_pos": ("attn.hook_pattern", ("layer", "row")),
    "attn_head_pattern_by_pos": ("attn.hook_pattern", ("layer", "row", "dest")),
}


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_patching_sweep_is_the_loop_by_hand(sweep):
    model = tiny_model(**MODELS["gemma"])
    clean, corrupted = random_tokens(4, seed=1), random_tokens(4, seed=2)
    point, axes = SWEEPS[sweep]
    with torch.no_grad():
        _, cache = model.run_with_cache(clean)
        found = getattr(patching, f"get_act_patch_{sweep}")(model, corrupted, cache, metric)
        expected = torch.empty_like(found)
        for index in torch.cartesian_prod(*(torch.arange(n) for n in found.shape)).tolist():
            where = {axis: [i] for axis, i in zip(axes, index, strict=True)}
            cell = {
                ("layer", "pos"): lambda w: (slice(None), w["pos"]),
                ("layer", "head"): lambda w: (slice(None), slice(None), w["head"]),
                ("layer", "pos", "head"): lambda w: (slice(None), w["pos"], w["head"]),
                ("layer", "row"): lambda w: (slice(None), w["row"]),
                ("layer", "row", "dest"): lambda w: (slice(None), w["row"], w["dest"]),
            }[axes](where)
            name = f"blocks.{index[0]}.{point}"

            def swap(tensor, hook, cell=cell, name=name):
                tensor = tensor.clone()
                tensor[cell] = cache[name][cell]
                return tensor

            with model.hooks(fwd_hooks=[(name, swap)]):
                expected[tuple(index)] = metric(model(corrupted))
    close(found, expected, 1e-5)
    assert found.std() > 1e-3


def test_every_head_sweep_at_once_pads_kv_heads():
    model = tiny_model()
    _, cache = model.run_with_cache(random_tokens(4, seed=1))
    every = patching.get_act_patch_attn_head_all_pos_every(model, random_tokens(4, seed=2), cache, metric)
    assert every.shape == (5, 2, 4)


def normed(x, gain, eps):
    return x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * gain


@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_direct_path_patching_changes_one_reader_only(component):
    model = tiny_model(n_key_value_heads=4)
    clean, corrupted = random_tokens(5, seed=1), random_tokens(5, seed=2)
    with torch.no_grad():
        _, clean_cache = model.run_with_cache(clean)
        _, cache = model.run_with_cache(corrupted)
        found = patching.get_act_patch_direct_path(
            model, corrupted, clean_cache, cache, metric, src_layer=0, src_head=1, component=component, verbose=False
        )
        attn, ln1 = model.blocks[1].attn, model.blocks[1].ln1
        write = (clean_cache["z", 0][:, :, 1] - cache["z", 0][:, :, 1]) @ model.blocks[0].attn.W_O[1]
        read = normed(cache["resid_pre", 1] + write, ln1.weight, model.cfg.eps)
        for head in range(4):

            def replace(tensor, hook, head=head):
                tensor = tensor.clone()
                tensor[:, :, head] = read @ getattr(attn, f"W_{component.upper()}")[head]
                return tensor

            logits = model.run_with_hooks(corrupted, fwd_hooks=[(f"blocks.1.attn.hook_{component}", replace)])
            close(found[1, head], metric(logits), 1e-4)
    assert model.cfg.use_split_qkv_input is False
    assert found[1].std() > 1e-3


@pytest.mark.parametrize("name", ["olmo2", "gemma"])
def test_direct_path_patching_refuses_post_norms(name):
    model = tiny_model(**MODELS[name])
    tokens = random_tokens(4)
    _, cache = model.run_with_cache(tokens)
    with pytest.raises(ValueError, match="per-head attention outputs are normalized"):
        patching.get_act_patch_direct_path(model, tokens, cache, cache, metric, 0, 0, verbose=False)


@pytest.mark.parametrize("name", ["llama", "olmo2", "layernorm"])
def test_split_inputs_are_computed_when_watched_and_change_nothing(name):
    model, tokens = tiny_model(**MODELS[name]), random_tokens(5, batch=2)
    logits, cache = model.run_with_cache(tokens)
    assert "blocks.0.attn.hook_q_input" not in cache
    names = [f"hook_{t}_input" for t in "qkv"]
    split_logits, split = model.run_with_cache(tokens, names_filter=["blocks.*.attn." + n for n in names])
    close(split_logits, logits, 1e-5)
    assert [split[n, 1].shape[2] for n in names] == [4, 2, 2]
    assert torch.equal(split["hook_q_input", 0][:, :, 3], cache["resid_pre", 0])
    assert "blocks.0.attn.hook_q_input" not in model.hook_names("blocks.*.attn.hook_q*")


@pytest.mark.parametrize("kind", ["previous_token_head", "duplicate_token_head", "induction_head"])
def test_the_detector_finds_planted_heads(kind):
    model = planted.planted_model()
    half = torch.randperm(planted.VOCAB, generator=torch.Generator().manual_seed(4))[:9]
    tokens = torch.cat([half, half])[None]
    where = {
        "previous_token_head": planted.PREVIOUS,
        "duplicate_token_head": planted.DUPLICATE,
        "induction_head": planted.INDUCTION,
    }[kind]
    scores = detect_head(model, tokens, kind, exclude_current_token=kind == "duplicate_token_head")
    assert scores.argmax() == where[0] * 4 + where[1]
    assert scores[where] > 0.45  # an induction head has nothing to copy in the first half
    assert scores.flatten().sort().values[-2] < scores[where] - 0.2


class Counting(Dataset):
    """Sequences that count up in steps of one or two, from anywhere."""

    def __init__(self, size, length, vocab):
        generator = torch.Generator().manual_seed(0)
        start = torch.randint(vocab, (size, 1), generator=generator)
        step = torch.randint(1, 3, (size, 1), generator=generator)
        self.tokens = (start + step * torch.arange(length)) % vocab

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"tokens": self.tokens[index]}


@pytest.mark.parametrize("position", ["before_rope", "after_rope"])
def test_training_lowers_the_loss_and_keeps_the_bound(position):
    from interp import score_bound

    model = tiny_model(qk_norm=QKNormConfig(position=position), initializer_range=0.1)
    data = Counting(200 * 8, 12, model.cfg.d_vocab)
    with torch.no_grad():
        before = model(data.tokens[:32], return_type="loss")
    train(model, TrainConfig(num_epochs=1, batch_size=8, lr=3e-3, device="cpu", print_every=None), data)
    model.eval()
    with torch.no_grad():
        after = model(data.tokens[:32], return_type="loss")
        _, cache = model.run_with_cache(data.tokens[:32], names_filter="blocks.*.attn.hook_attn_scores")
    assert after < 0.5 * before
    for layer, block in enumerate(model.blocks):
        attn, cfg = block.attn, model.cfg
        gains = attn.q_norm.effective_gain(), attn.k_norm.effective_gain()
        scores = cache["attn_scores", layer]
        largest = scores.masked_fill(scores.isinf(), 0).abs().amax((0, 2, 3)).double()
        bound = torch.as_tensor(score_bound(cfg.qk_norm, cfg.rope_for(layer), *gains, attn.spec))
        assert bound.shape == largest.shape == (cfg.n_heads,)
        assert (largest <= bound * (1 + 1e-5)).all()
