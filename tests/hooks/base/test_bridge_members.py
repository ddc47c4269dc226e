"""TransformerLens' own functions on a native model give what they give on a TransformerBridge of the same weights."""

import numpy as np
import pytest
import torch
from bridges import bridge_of
from tiny import Shape, tokens
from tiny import tiny_model as transformers_model
from tiny_hooked import random_tokens, tiny_model
from transformer_lens import SVDInterpreter
from transformer_lens.tools.analysis.attribution_patching import (
    EdgeAttributionConfig,
    FaithfulnessConfig,
    attribution_patch,
    faithfulness,
)
from transformer_lens.tools.analysis.projection_kernel import attention_head_subspace_affinity

from hooks import HookedTransformer
from hooks.errors import HookNameError, InputError

OWN_HEADS = Shape(kv_heads=4, layers=2)  # what edge attribution asks for: no kv head is shared
FAMILIES = {"llama": OWN_HEADS, "qwen3": OWN_HEADS, "gpt_neox": OWN_HEADS}
SHARED = {"llama": Shape(layers=2), "gemma": Shape(layers=2)}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request):
    """The same weights, native and under a bridge."""
    model = transformers_model(request.param, FAMILIES[request.param])
    return HookedTransformer.from_pretrained(model), bridge_of(model)


def close(got, expected, within=1e-4):
    got, expected = (torch.as_tensor(x).detach() for x in (got, expected))
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) <= within * float(expected.abs().max())


def metric(logits):
    return logits[0, -1, 3] - logits[0, -1, 4]


def prompts():
    return tokens(4, batch=2), tokens(4, batch=2, seed=9)


@pytest.mark.parametrize("granularity", ["node", "edge"])
def test_attribution_patching(pair, granularity):
    config = EdgeAttributionConfig(granularity=granularity)
    ours, theirs = (attribution_patch(model, *prompts(), metric, config) for model in pair)
    for scores in ("node_scores", "edge_scores"):
        found, expected = getattr(ours, scores), getattr(theirs, scores)
        assert set(found) == set(expected) and (found or scores == "edge_scores")
        if expected:
            close([found[key] for key in expected], list(expected.values()))
    assert len(ours.edge_scores) == (0 if granularity == "node" else len(theirs.edge_scores) or 1)
    cfg = pair[0].cfg
    assert not (cfg.use_attn_result or cfg.use_split_qkv_input or cfg.use_hook_mlp_in or cfg.use_attn_in)


@pytest.mark.parametrize("ablation", ["corrupt", "mean"])
def test_faithfulness_of_a_circuit(pair, ablation):
    clean, corrupt = (ids[:1] for ids in prompts())
    edges = attribution_patch(pair[1], clean, corrupt, metric, EdgeAttributionConfig(granularity="edge")).top_edges(40)
    calibration = {"mean_tokens": tokens(4, batch=3, seed=4)} if ablation == "mean" else {}
    results = [
        faithfulness(model, clean, corrupt, metric, edges, FaithfulnessConfig(ablation), **calibration)
        for model in pair
    ]
    close(*[[r.recovered, r.full_metric, r.corrupt_metric, *r.edge_class_recovered.values()] for r in results])


@pytest.mark.parametrize("mode", ["Q", "K", "V"])
@pytest.mark.parametrize("shapes", [FAMILIES, SHARED], ids=["own", "shared"])
def test_composition_scores(mode, shapes):
    for family, shape in shapes.items():
        model = transformers_model(family, shape)
        ours, theirs = HookedTransformer.from_pretrained(model), bridge_of(model)
        scores = ours.all_composition_scores(mode)
        close(scores.scores, theirs.all_composition_scores(mode).scores)
        assert scores.head_labels == theirs.all_composition_scores(mode).head_labels == ours.all_head_labels
        group = ours.cfg.n_heads // ours.cfg.n_kv_heads
        q, k, v, o = ours.W_Q.double(), ours.W_K.double(), ours.W_V.double(), ours.W_O.double()
        writes = v[0, 1 // group] @ o[0, 1]
        by = {"Q": q[1, 3] @ k[1, 3 // group].T, "K": k[1, 3 // group] @ q[1, 3].T, "V": v[1, 3 // group] @ o[1, 3]}
        close(scores.scores[0, 1, 1, 3], (writes @ by[mode]).norm() / writes.norm() / by[mode].norm())
        assert scores.scores[1].abs().max() == 0 and scores.scores[0, :, 0].abs().max() == 0
    with pytest.raises(InputError, match="mode='O': give one of 'Q', 'K', 'V'"):
        ours.all_composition_scores("O")


@pytest.mark.parametrize("family", ["llama", "gemma", "qwen3", "gpt_neox"])
@pytest.mark.parametrize("shape", [OWN_HEADS, Shape(layers=2)], ids=["own", "shared"])
def test_parameters_by_name_and_their_singular_vectors(family, shape):
    model = transformers_model(family, shape)
    ours, theirs = HookedTransformer.from_pretrained(model), bridge_of(model)
    own, other = ours.tl_parameters(), theirs.tl_parameters()
    assert set(other) <= set(own)
    for name, weight in other.items():
        close(own[name], weight, 1e-6 if weight.abs().max() else 0)
    assert all(own[name].abs().max() == 0 for name in set(own) - set(other))  # biases that it has not
    ask = [("OV", {"head_index": head}) for head in (0, 3)] + [("w_in", {}), ("w_out", {})]
    for kind, head in ask:
        found, expected = (
            SVDInterpreter(each).get_singular_vectors(kind, layer_index=1, num_vectors=3, **head).abs()
            for each in (ours, theirs)
        )
        close(found, expected)
    assert ours.n_params_total == theirs.n_params_total
    assert ours.all_head_labels == theirs.all_head_labels
    assert ours.cfg.d_vocab_out == theirs.cfg.d_vocab_out == 97
    assert [i for i, _ in ours.blocks_with("attn")] == [i for i, _ in theirs.blocks_with("attn")] == [0, 1]


@pytest.mark.parametrize("role", ["Q", "K", "V"])
def test_affinity_of_heads(pair, role):
    if pair[0].cfg.d_model < pair[0].cfg.d_head:
        pytest.fail("heads must be narrower than the stream")
    ours, theirs = (attention_head_subspace_affinity(model, target_role=role) for model in pair)
    close(ours.scores, theirs.scores)


def push(n_heads=None):
    """A hook that adds fixed noise, to one head's copy of the stream where there are several."""

    def add(stream, hook):
        noise = torch.randn(stream.shape[-1], generator=torch.Generator().manual_seed(3))
        if n_heads is None:
            return stream + noise
        stream = stream.clone()
        stream[:, :, 1] += noise
        return stream

    return add


@pytest.mark.parametrize(
    ("point", "switch", "heads"),
    [("blocks.1.hook_mlp_in", "use_hook_mlp_in", None), ("blocks.0.attn.hook_attn_in", "use_attn_in", 4)],
)
def test_what_a_branch_reads_is_edited_as_under_a_bridge(pair, point, switch, heads):
    ids, results = tokens(6), []
    for model in pair:
        getattr(model, f"set_{switch}")(True)
        assert getattr(model.cfg, switch)
        results.append(model.run_with_hooks(ids, fwd_hooks=[(point, push(heads))]))
        seen = model.run_with_cache(ids, names_filter=[point])[1]
        results.append(seen[point])
        getattr(model, f"set_{switch}")(False)
    close(results[0], results[2])
    close(results[1], results[3])
    assert float((results[0] - pair[0](ids)).detach().abs().max()) > 0.1


MODELS = {
    "llama": {},
    "olmo2": {"block_norms": "post"},
    "gemma": {"block_norms": "sandwich"},
    "cohere": {"normalization_type": "LN", "parallel_attn_mlp": True, "parallel_shared_norm": True},
    "gptj": {"normalization_type": "LN", "parallel_attn_mlp": True},
}


@pytest.mark.parametrize("name", MODELS)
def test_inputs_of_a_branch_are_copies_that_change_nothing_else(name):
    model, ids = tiny_model(n_key_value_heads=4, **MODELS[name]), random_tokens(6, batch=2)
    plain, cache = model.run_with_cache(ids)
    assert not any(name.endswith(("mlp_in", "attn_in")) for name in cache)
    asked = ["blocks.*.hook_mlp_in", "blocks.*.attn.hook_attn_in"]
    logits, inputs = model.run_with_cache(ids, names_filter=asked)
    torch.testing.assert_close(logits, plain, atol=1e-5, rtol=1e-5)
    stream = cache["resid_pre", 1] if "parallel_attn_mlp" in MODELS[name] else cache["resid_mid", 1]
    close(inputs["mlp_in", 1], stream, 1e-5)
    close(inputs["attn_in", 1], cache["resid_pre", 1][:, :, None].expand(-1, -1, 4, -1), 1e-5)

    push = torch.linspace(-2, 3, 32)

    def in_place(x, hook):
        x.add_(push)

    # The MLP reads another stream, by a hook and by hand in its own modules; the stream stays.
    block, hooks = model.blocks[1], [("blocks.1.hook_mlp_in", in_place)]
    with torch.no_grad():
        with model.hooks(fwd_hooks=hooks):
            got, seen = model.run_with_cache(ids, names_filter=["blocks.1.hook_mlp_out", "blocks.1.hook_resid_post"])
        before = block.ln1 if block.shared_norm else block.ln2
        read = before(stream + push, hooked=False) if hasattr(before, "weight") else stream + push
        wrote = block.ln2_post(block.mlp(read))
    torch.testing.assert_close(seen["mlp_out", 1], wrote, atol=1e-4, rtol=1e-4)
    kept = cache["resid_post", 1] - cache["mlp_out", 1] + wrote
    torch.testing.assert_close(seen["resid_post", 1], kept, atol=1e-4, rtol=1e-4)
    assert float((got - plain).detach().abs().max()) > 1e-2


def test_common_copies_come_before_those_of_q_k_and_v():
    model, ids, seen = tiny_model(n_key_value_heads=4), random_tokens(5), {}
    hooks = [
        ("blocks.0.hook_attn_in", lambda x, hook: 2 * x),
        ("blocks.0.hook_q_input", lambda x, hook: x.add_(1.0)),
        ("blocks.0.hook_v_input", lambda x, hook: seen.update(v=x.clone())),
        ("hook_embed", lambda x, hook: seen.update(embed=x.clone())),
    ]
    model.run_with_hooks(ids, fwd_hooks=hooks)
    assert torch.equal(seen["v"], 2 * seen["embed"][:, :, None].expand(-1, -1, 4, -1))


def test_shared_kv_heads_have_no_common_copy():
    model = tiny_model()
    with pytest.raises(HookNameError, match=r"query heads share kv heads.*hook_q_input"):
        model.add_hook("blocks.0.attn.hook_attn_in", lambda x, hook: None)
    with pytest.raises(InputError, match="use_attn_in=True: query heads share kv heads"):
        model.set_use_attn_in(True)
    with pytest.raises(InputError, match="use_hook_mlp_in=1: give True or False"):
        model.set_use_hook_mlp_in(1)
    model.set_use_attn_in(False)


def test_parts_have_transformer_lens_names():
    model = tiny_model(unembed_bias=True, normalization_type="LN", norm_bias=True, attn_only=False)
    assert torch.equal(model.embed.W_E, model.W_E) and model.embed.W_E.shape == (61, 32)
    assert torch.equal(model.unembed.W_U, model.W_U) and model.unembed.W_U.shape == (32, 61)
    assert torch.equal(model.unembed.b_U, model.b_U) and model.b_U.abs().max() > 0
    assert torch.equal(model.blocks[0].ln1.w, model.blocks[0].ln1.weight)
    assert torch.equal(model.ln_final.b, model.ln_final.bias)
    bare = tiny_model(normalization_type="LN", norm_affine=False, attn_only=True, d_mlp=None)
    assert bare.ln_final.w is None and torch.equal(bare.unembed.b_U, torch.zeros(61))
    assert "ln_final.w" not in bare.tl_parameters() and bare.blocks_with("mlp") == bare.blocks_with("ln2") == []
    assert [i for i, _ in bare.blocks_with("ln1")] == [0, 1]
    assert bare.n_params_total == sum(int(np.prod(p.shape)) for p in bare.parameters())
