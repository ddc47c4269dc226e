"""Every family × every rope_type equals transformers: logits, gradients, far positions, left padding, bfloat16."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CASES, CLASSES, MAX_POSITIONS, ROPE_TYPES, Shape, rope_parameters, tiny_model, tokens
from torch.nn import functional

from hooks import HookedTransformer
from hooks.families.table import FAMILIES
from hooks.functional.rope import inv_freq
from hooks.loading.weights import adopt_weights

TOLERANCE = 2e-5
pytestmark = [
    pytest.mark.filterwarnings("ignore::hooks.errors.NarrowRotaryWarning"),
    pytest.mark.filterwarnings("ignore:position .* is beyond"),
]
SHAPES = {
    "mha": Shape(heads=3, kv_heads=3, head_dim=32, d_model=42, tied=True, bias=False),
    "mqa": Shape(heads=5, kv_heads=1, head_dim=34, d_model=35, layers=2),
    "gqa": Shape(heads=6, kv_heads=2, head_dim=16, d_model=48, tied=True),
}
# Every family and schedule in one layout; the whole product takes minutes.
QUICK = {(*case, list(SHAPES)[number % len(SHAPES)]) for number, case in enumerate(CASES)}
PRODUCT = [
    (*case, layout) if (*case, layout) in QUICK else pytest.param(*case, layout, marks=pytest.mark.slow)
    for case in CASES
    for layout in SHAPES
]


def error(theirs: torch.Tensor, ours: torch.Tensor) -> float:
    """Largest difference, in units of the largest value."""
    return float((theirs - ours).abs().max() / theirs.abs().max())


@torch.no_grad()
def both(theirs, ours, ids, *, position_ids=None, attention_mask=None):
    """Logits of both models."""
    reference = theirs(input_ids=ids, position_ids=position_ids, attention_mask=attention_mask, use_cache=False).logits
    return reference, ours(ids, position_ids=position_ids, attention_mask=attention_mask)


def textbook_inv_freq(rope_type: str, d: int, length: int) -> np.ndarray:
    """The schedules from their papers in float64; shares no code with the package or transformers."""
    p = rope_parameters(rope_type, d)
    theta, s = p["rope_theta"], p.get("factor", 1.0)
    i = np.arange(d // 2)
    if rope_type == "proportional":
        return np.where(i < int(p["partial_rotary_factor"] * d // 2), theta ** (-2 * i / d), 0) / s
    if rope_type == "dynamic":
        stretch = s * max(length, MAX_POSITIONS) / MAX_POSITIONS - (s - 1)
        return (theta * stretch ** (d / (d - 2))) ** (-2 * i / d)
    f = theta ** (-2 * i / d)
    if rope_type == "linear":
        return f / s
    if rope_type == "longrope":
        return f / np.array(p["long_factor" if length > p["original_max_position_embeddings"] else "short_factor"])
    if rope_type == "llama3":
        low, high, trained = p["low_freq_factor"], p["high_freq_factor"], p["original_max_position_embeddings"]
        smooth = np.clip((trained * f / (2 * math.pi) - low) / (high - low), 0, 1)
        return (1 - smooth) * f / s + smooth * f
    if rope_type == "yarn":
        trained = p["original_max_position_embeddings"]
        bound = [
            d * math.log(trained / (b * 2 * math.pi)) / (2 * math.log(theta)) for b in (p["beta_fast"], p["beta_slow"])
        ]
        lo, hi = max(math.floor(bound[0]), 0), min(math.ceil(bound[1]), d - 1)
        keep = 1 - np.clip((i - lo) / max(hi - lo, 1e-3), 0, 1)
        return f / s * (1 - keep) + f * keep
    return f


@pytest.mark.parametrize("rope_type", ROPE_TYPES)
@pytest.mark.parametrize("length", [9, 301])
def test_frequencies_first(rope_type, length):
    """Before any model is compared: the frequencies agree with the textbook."""
    shape = SHAPES["mqa"]
    cfg = HookedTransformer.from_pretrained(tiny_model("llama", shape, rope_type)).cfg
    found, _ = inv_freq(cfg.rope, shape.head_dim, length)
    np.testing.assert_allclose(found.double().numpy(), textbook_inv_freq(rope_type, shape.head_dim, length), rtol=3e-6)


@pytest.mark.parametrize(("family", "rope_type", "layout"), PRODUCT)
def test_logits(family, rope_type, layout):
    """In one shot below and beyond the trained length, at position 40,000, and with left padding."""
    shape = SHAPES[layout]
    seed = len(family) * 10 + len(rope_type)
    ids = tokens(2 * MAX_POSITIONS + 3, seed=seed)
    near = torch.arange(41)[None].expand(2, -1)

    theirs = tiny_model(family, shape, rope_type, seed=seed)
    ours = HookedTransformer.from_pretrained(theirs)

    def check(ids, rows=slice(None), **options):
        # transformers' dynamic and longrope schedules remember earlier lengths: compare with a fresh model.
        fresh = copy.deepcopy(theirs) if rope_type in ("dynamic", "longrope") else theirs
        expected, found = both(fresh, ours, ids, **options)
        assert error(expected[:, rows], found[:, rows]) <= TOLERANCE

    check(ids[:, :41])
    check(ids)
    if rope_type == "longrope":
        check(ids[:, : rope_parameters(rope_type, 2)["original_max_position_embeddings"]])  # short factors
    check(ids[:, :41], position_ids=near + 40_000)
    pad = 13
    mask = torch.ones(2, 41, dtype=torch.long)
    mask[:, :pad] = 0
    check(ids[:, :41], slice(pad, None), position_ids=(near - pad).clamp(min=0), attention_mask=mask)


@settings(max_examples=12, deadline=None)
@given(
    case=st.sampled_from(CASES),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    pairs=st.integers(2, 20),
    per_head=st.integers(3, 9),
    tied=st.booleans(),
    bias=st.booleans(),
    n=st.integers(1, 90),
    seed=st.integers(0, 10**6),
)
def test_logits_of_any_shape(case, kv_heads, group, pairs, per_head, tied, bias, n, seed):
    family, rope_type = case
    heads = kv_heads * group
    shape = Shape(heads, kv_heads, 2 * pairs, per_head * heads, 33, 2, tied=tied, bias=bias)
    theirs = tiny_model(family, shape, rope_type, seed=seed)
    expected, found = both(theirs, HookedTransformer.from_pretrained(theirs), tokens(n, seed=seed))
    assert error(expected, found) <= TOLERANCE


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize(
    ("rope_type", "layout"), [("default", "gqa"), pytest.param("longrope", "mha", marks=pytest.mark.slow)]
)
def test_gradients(family, rope_type, layout):
    """Of the mean loss with respect to every weight."""
    theirs = tiny_model(family, SHAPES[layout], rope_type, seed=5)
    ours = HookedTransformer.from_pretrained(theirs)
    ids = tokens(37)
    logits = theirs(input_ids=ids, use_cache=False).logits
    functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    ours(ids, return_type="loss").mean().backward()
    reference = HookedTransformer(ours.cfg, _empty=True)
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    adopt_weights(reference, FAMILIES[family], gradients, "the gradients", check_finite=False)
    expected = {name: parameter.detach() for name, parameter in reference.named_parameters()}
    found = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert expected.keys() == found.keys()
    largest = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in found.items():
        # Gradients that vanish by symmetry (a key bias hardly moves a softmax) are compared on the scale of the rest.
        scale = max(float(expected[name].abs().max()), 1e-2 * largest)
        assert float((gradient - expected[name]).abs().max()) <= 1e-4 * scale, name


@pytest.mark.parametrize("family", CLASSES)
def test_bfloat16(family):
    """Ours is no further from the same weights in float32 than transformers is (its pattern is rounded, ours fused)."""
    theirs = tiny_model(family, SHAPES["gqa"], seed=3, dtype=torch.bfloat16)
    ours = HookedTransformer.from_pretrained(theirs)
    assert ours.dtype == torch.bfloat16
    expected, found = both(theirs, ours, tokens(33))
    exact = tiny_model(family, SHAPES["gqa"], seed=3)
    exact.load_state_dict(theirs.state_dict())
    truth, _ = both(exact, HookedTransformer.from_pretrained(exact), tokens(33))
    assert error(truth, found.float()) <= 1.5 * error(truth, expected.float())


def first_block_in_bfloat16(family, **changes):
    """Share of values, of the first attention and the first MLP, that differ in a bit from transformers' eager run."""
    # At other seeds a few values of torch's own LayerNorm lie between two bfloat16 numbers, and their rows differ.
    seed = {"starcoder2": 5, "nemotron": 5}.get(family, 3)
    theirs = tiny_model(family, SHAPES["gqa"], seed=seed, dtype=torch.bfloat16)
    ours = HookedTransformer.from_pretrained(theirs).with_config(**changes)
    expected, found = {}, {}
    scale = ours.cfg.residual_scale or 1.0  # Granite's block multiplies what ours has multiplied already

    def keep(part):
        return lambda module, inputs, out: expected.__setitem__(
            part, (out[0] if isinstance(out, tuple) else out) * scale
        )

    for part in ("Attention", "MLP"):
        module = next(m for m in theirs.modules() if type(m).__name__.endswith(part))
        module.register_forward_hook(keep(part))
    watched = {"blocks.0.attn.hook_out": "Attention", "blocks.0.mlp.hook_out": "MLP"}
    fwd_hooks = [(name, lambda t, hook: found.__setitem__(watched[hook.name], t)) for name in watched]
    # Watching the pattern makes its precision transformers'.
    with ours.hooks(fwd_hooks=[*fwd_hooks, ("blocks.0.attn.hook_pattern", lambda t, hook: t)]):
        both(theirs, ours, tokens(33))
    return {part: float((expected[part] != found[part]).float().mean()) for part in expected}


@pytest.mark.parametrize("family", CLASSES)
def test_bfloat16_rounds_where_transformers_does(family):
    """Equal to the bit, but for the few values of torch's own LayerNorm that lie between two bfloat16 numbers."""
    differing = first_block_in_bfloat16(family)
    if family == "gptj":  # multiplies q and k in float32 where it attends eagerly; the MLP reads the same norm's output
        del differing["Attention"]
    assert max(differing.values()) <= 0.02


@pytest.mark.parametrize(
    ("family", "changes", "part"),
    [
        ("mistral", {"norm_scale_before_cast": True}, "Attention"),
        ("gpt_neox", {"norm_scale_before_cast": False}, "MLP"),
        ("cohere2", {"round_cos_sin": False}, "Attention"),
        ("olmo", {"rope_in_float32": False}, "Attention"),
        ("glm4", {"rope_in_float32": True}, "Attention"),
    ],
)
def test_rounding_elsewhere_is_noticed(family, changes, part):
    assert first_block_in_bfloat16(family, **changes)[part] > 0.05


@pytest.mark.parametrize("family", ["apertus", "exaone4", "olmo3", "stablelm"])
def test_a_gain_rounded_elsewhere_is_noticed(family):
    qk_norm = HookedTransformer.from_pretrained(tiny_model(family)).cfg.qk_norm
    other = dataclasses.replace(qk_norm, scale_before_cast=not qk_norm.scale_before_cast)
    assert first_block_in_bfloat16(family, qk_norm=other)["Attention"] > 0.05


@pytest.mark.parametrize("family", ["qwen3", "olmo2", "gemma3_text", "hunyuan_v1_dense", "stablelm", "phi", "apertus"])
def test_a_permuted_gain_is_noticed(family):
    theirs = tiny_model(family, seed=8)
    ours = HookedTransformer.from_pretrained(theirs)
    with torch.no_grad():
        norm = ours.blocks[0].attn.q_norm
        norm.weight = torch.nn.Parameter(norm.weight.roll(1))
    assert error(*both(theirs, ours, tokens(31))) > 10 * TOLERANCE


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "hunyuan_v1_dense", "exaone4", "apertus"])
def test_a_swapped_order_is_noticed(family):
    theirs = tiny_model(family, seed=8)
    ours = HookedTransformer.from_pretrained(theirs)
    swapped = {"before_rope": "after_rope", "after_rope": "before_rope"}[ours.cfg.qk_norm.position]
    ours = ours.with_config(qk_norm=dataclasses.replace(ours.cfg.qk_norm, position=swapped))
    assert error(*both(theirs, ours, tokens(31))) > 10 * TOLERANCE


@pytest.mark.parametrize("family", ["llama", "qwen3", "olmo2", "hunyuan_v1_dense"])
@pytest.mark.parametrize("rope_type", ["linear", "dynamic", "yarn", "llama3"])
def test_a_wrong_factor_is_noticed(family, rope_type):
    theirs = tiny_model(family, rope_type=rope_type, seed=8)
    ours = HookedTransformer.from_pretrained(theirs)
    wrong = dataclasses.replace(ours.cfg.rope, factor=ours.cfg.rope.factor * 1.01)
    assert error(*both(theirs, ours.with_config(rope=wrong), tokens(99))) > 10 * TOLERANCE


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("olmo", {"clip_qkv": None}),
        ("mistral", {"window_size": 8}),
        ("qwen2", {"layer_types": ("sliding_attention",) * 3}),
        ("gemma2", {"attn_scores_soft_cap": -1.0}),
        ("gemma2", {"output_logits_soft_cap": -1.0}),
        ("gemma2", {"attn_scale": -1.0}),
        ("smollm3", {"nope_layers": ()}),
        ("exaone4", {"nope_layers": (0,)}),
        ("cohere", {"logit_scale": None}),
        ("phi", {"act_fn": "silu"}),
    ],
)
def test_a_setting_left_out_is_noticed(family, changes):
    """So the tiny models do use what is special to their families."""
    theirs = tiny_model(family, seed=8)
    ours = HookedTransformer.from_pretrained(theirs)
    assert error(*both(theirs, ours.with_config(**changes), tokens(31))) > 10 * TOLERANCE


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("cohere", {"interleaved": False}),
        ("glm4", {"interleaved": False}),
        ("gpt_neox", {"partial_rotary_factor": 1.0}),
    ],
)
def test_another_pairing_is_noticed(family, change):
    theirs = tiny_model(family, seed=8)
    ours = HookedTransformer.from_pretrained(theirs)
    assert error(*both(theirs, ours, tokens(31))) <= TOLERANCE
    ours = ours.with_config(rope=dataclasses.replace(ours.cfg.rope, **change))
    assert error(*both(theirs, ours, tokens(31))) > 10 * TOLERANCE
