"""TransformerLens' identities and patching sweeps on Gemma 3 270M and SmolLM2 135M."""

import pandas as pd
import pytest
import torch
from torch.nn import functional
from transformer_lens import patching
from transformer_lens.head_detector import detect_head

from hooks import HookedTransformer

pytestmark = pytest.mark.slow
TEXT = (
    "The hooked transformer keeps every query and key. The hooked transformer keeps every norm and every rotation, so "
    "that each can be read, edited and measured. When Mary and John went to the store, John gave a drink to Mary, and "
    "Mary gave a drink to John, because both of them were thirsty and the store was still open at that time."
)


@pytest.fixture(scope="module", params=["gemma3-270m", "smollm2-135m"])
def run(request):
    model = HookedTransformer.from_pretrained(request.param, dtype=torch.float32)
    tokens = model.to_tokens(TEXT)[:, :64]
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
    return model, tokens, logits, cache


def test_parts_sum_to_the_residual_stream(run):
    model, _, _, cache = run
    stream = cache["resid_post", -1]
    size = stream.abs().max()
    for parts in (
        cache.decompose_resid(),
        cache.get_full_resid_decomposition(expand_neurons=False),
        cache.get_full_resid_decomposition(pos_slice=-1),
    ):
        end = stream if parts.ndim == 4 else stream[:, -1]
        assert (parts.sum(0) - end).abs().max() < 1e-5 * size
    for layer in (0, model.cfg.n_layers - 1):
        heads = cache.stack_head_results(layer + 1)[layer * model.cfg.n_heads :]
        out = cache[f"blocks.{layer}.attn.hook_out"]
        torch.testing.assert_close(heads.sum(0), out, atol=1e-5 * out.abs().max().item(), rtol=1e-4)


def test_attributions_sum_to_the_target_logit(run):
    _, tokens, logits, cache = run
    target = tokens.roll(-1, 1)
    expected = logits.gather(-1, target[..., None])[..., 0]
    stacks = [
        cache.decompose_resid(),
        cache.get_full_resid_decomposition(expand_neurons=False),
        cache.stack_head_results(incl_remainder=True),
    ]
    for stack in stacks:
        torch.testing.assert_close(cache.logit_attrs(stack, target).sum(0), expected, atol=1e-3, rtol=1e-5)


def test_loss_per_token_is_cross_entropy(run):
    model, tokens, logits, _ = run
    expected = functional.cross_entropy(logits[0, :-1], tokens[0, 1:], reduction="none")
    torch.testing.assert_close(model.loss_per_token(tokens)[0], expected, atol=1e-4, rtol=1e-5)


def test_text_goes_through_the_tools(run):
    model, tokens, logits, cache = run
    token = model.to_single_token(" Mary")
    assert model.to_string([token]) == model.to_single_str_token(token) == " Mary"
    assert len(model.to_str_tokens(TEXT)) == model.to_tokens(TEXT).shape[1] and tokens.shape[1] == 64
    found = cache.logit_attrs(cache.decompose_resid(pos_slice=-1), " Mary", " John", pos_slice=-1).sum(0)
    difference = logits[:, -1, token] - logits[:, -1, model.to_single_token(" John")]
    torch.testing.assert_close(found, difference, atol=1e-3, rtol=1e-5)


def test_a_previous_token_head_is_found(run):
    model, tokens, _, _ = run
    scores = detect_head(model, model.to_string(tokens[0, 1:]), "previous_token_head")
    assert scores.shape == (model.cfg.n_layers, model.cfg.n_heads)
    assert scores.max() > 0.4


SWEEPS = {
    "resid_pre": ("hook_resid_pre", ("layer", "pos"), lambda pos: (slice(None), pos)),
    "attn_head_out_all_pos": ("attn.hook_z", ("layer", "head"), lambda head: (slice(None), slice(None), head)),
    "attn_head_q_all_pos": ("attn.hook_q", ("layer", "head"), lambda head: (slice(None), slice(None), head)),
    "attn_head_k_all_pos": ("attn.hook_k", ("layer", "head"), lambda head: (slice(None), slice(None), head)),
    "attn_head_v_all_pos": ("attn.hook_v", ("layer", "head"), lambda head: (slice(None), slice(None), head)),
    "attn_head_pattern_all_pos": ("attn.hook_pattern", ("layer", "head_index"), lambda head: (slice(None), head)),
}


@pytest.mark.parametrize("run", ["smollm2-135m"], indirect=True)
@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_patching_sweep_is_the_loop_by_hand(run, sweep):
    model = run[0]
    names = ("Mary and John", "John and Mary")
    clean, corrupted = (model.to_tokens(f"When {name} went to the store, John gave a drink to") for name in names)
    assert clean.shape == corrupted.shape and (clean != corrupted).sum() == 2
    mary, john = model.to_single_token(" Mary"), model.to_single_token(" John")

    def metric(logits):
        return logits[0, -1, mary] - logits[0, -1, john]

    point, axes, cell_of = SWEEPS[sweep]
    last = model.cfg.n_layers - 1
    second = [0, model.cfg.n_kv_heads - 1] if "head" in axes[1] else [int((clean != corrupted)[0].nonzero()[0]), -1]
    cells = pd.DataFrame([(layer, i) for layer in (0, last // 2, last) for i in second], columns=list(axes))
    with torch.no_grad():
        _, cache = model.run_with_cache(clean, names_filter=f"blocks.*.{point}")
        patch = getattr(patching, f"get_act_patch_{sweep}")
        found = patch(model, corrupted, cache, metric, index_axis_names=None, index_df=cells)
        expected = []
        for layer, index in cells.itertuples(index=False):
            cell, name = cell_of(index), f"blocks.{layer}.{point}"

            def swap(tensor, hook, cell=cell, name=name):
                tensor = tensor.clone()
                tensor[cell] = cache[name][cell]
                return tensor

            with model.hooks(fwd_hooks=[(name, swap)]):
                expected.append(metric(model(corrupted)))
        unpatched = metric(model(corrupted))
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=1e-4)
    assert (found - unpatched).abs().max() > 1e-3
