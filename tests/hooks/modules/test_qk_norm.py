from itertools import product

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_hooked import tiny_model
from transformers.models.chameleon.modeling_chameleon import ChameleonLayerNorm
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.stablelm.modeling_stablelm import StableLmLayerNormPerHead

from hooks.config.qk_norm import QKNormConfig
from hooks.errors import InputError
from hooks.modules.qk_norm import QKNorm

# Name: config, reference class from (n_heads, d_head), whether it takes all heads as one vector.
REFERENCES = {
    "qwen3": (QKNormConfig(eps=1e-6), lambda h, d: Qwen3RMSNorm(d, 1e-6), False),
    "gemma3": (
        QKNormConfig(eps=1e-6, unit_offset=True, scale_before_cast=True),
        lambda h, d: Gemma3RMSNorm(d, 1e-6),
        False,
    ),
    "olmo2": (
        QKNormConfig(eps=1e-5, scope="full", scale_before_cast=True),
        lambda h, d: Olmo2RMSNorm(h * d, 1e-5),
        True,
    ),
    "olmoe": (QKNormConfig(eps=1e-5, scope="full"), lambda h, d: Qwen3RMSNorm(h * d, 1e-5), True),
    "cohere": (
        QKNormConfig(kind="layer", scope="per_head", eps=1e-5, scale_before_cast=True),
        lambda h, d: CohereLayerNorm((h, d), 1e-5),
        False,
    ),
}


def heads(shape, dtype, seed=0):
    """Features of widely different sizes, with an offset so that a forgotten mean shows."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (x * torch.logspace(-2, 2, shape[1])[:, None, None] + 0.3).to(dtype)


def with_gains(norm, seed=1):
    """The same module with random gains and biases."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    return norm


@pytest.mark.parametrize("name", REFERENCES)
@settings(max_examples=15, deadline=None)
@given(
    n_heads=st.integers(1, 5),
    d_head=st.sampled_from([4, 7, 64, 80, 256]),
    n=st.integers(1, 40),
    batch=st.integers(1, 2),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_bit_equal_to_transformers(name, n_heads, d_head, n, batch, dtype, seed):
    config, reference, flat = REFERENCES[name]
    theirs = with_gains(reference(n_heads, d_head), seed).to(dtype)
    ours = QKNorm(config, n_heads, d_head).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    x = heads((batch, n, n_heads, d_head), dtype, seed)
    expected = theirs(x.flatten(-2)).view(x.shape) if flat else theirs(x)
    got = ours(x)
    assert got.dtype == dtype
    assert torch.equal(got, expected)
    ours.hook_scale.add_hook(lambda scale, hook: None)
    assert torch.equal(ours(x), expected), "looking at the divisor changed the output"


@pytest.mark.parametrize("name", REFERENCES)
def test_gradients_equal_transformers(name):
    config, reference, flat = REFERENCES[name]
    theirs = with_gains(reference(3, 16))
    ours = QKNorm(config, 3, 16)
    ours.load_state_dict(theirs.state_dict())
    x = heads((2, 9, 3, 16), torch.float32).requires_grad_()
    toward = heads((2, 9, 3, 16), torch.float32, seed=5)
    out = theirs(x.flatten(-2)).view(x.shape) if flat else theirs(x)
    expected = torch.autograd.grad((out * toward).sum(), [x, *theirs.parameters()])
    for watched in (False, True):
        if watched:
            ours.hook_scale.add_hook(lambda scale, hook: None)
        got = torch.autograd.grad((ours(x) * toward).sum(), [x, *ours.parameters()])
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stablelm_and_chameleon_use_torchs_layer_norm(dtype):
    """Their kernel works in another order, so the last bits may differ; nothing else may."""
    x = torch.randn(2, 9, 3, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    stable = with_gains(StableLmLayerNormPerHead(64, 3)).to(dtype)
    ours = QKNorm(QKNormConfig(kind="layer", scope="per_head", eps=1e-5, scale_before_cast=True), 3, 64).to(dtype)
    ours.load_state_dict({"weight": torch.stack([norm.weight for norm in stable.norms])})
    last_bit = torch.finfo(dtype).eps
    torch.testing.assert_close(ours(x), stable(x.transpose(1, 2)).transpose(1, 2), rtol=2 * last_bit, atol=4e-6)

    chameleon = with_gains(ChameleonLayerNorm((3, 64))).to(dtype)
    config = QKNormConfig(kind="layer", scope="per_head", eps=1e-5, bias=True)
    ours = QKNorm(config, 3, 64).to(dtype)
    ours.load_state_dict(chameleon.state_dict())
    torch.testing.assert_close(ours(x), chameleon(x), rtol=2 * last_bit, atol=8 * last_bit)


def test_l2_is_torchs_normalize_and_takes_a_fixed_scale():
    x = heads((2, 5, 3, 8), torch.float32)
    x[0, 0] = 0
    bare = QKNorm(QKNormConfig(kind="l2", affine=False, eps=1e-12), 3, 8)
    assert torch.equal(bare(x), F.normalize(x, dim=-1, eps=1e-12))
    times_ten = QKNorm(QKNormConfig(kind="l2", affine=False, eps=1e-12, scale=10.0), 3, 8)
    torch.testing.assert_close(times_ten(x), 10 * F.normalize(x, dim=-1, eps=1e-12))
    assert not list(bare.parameters())


def by_hand(x, config, gain, bias, divisor=None):
    """(normalised x, divisor) in float64 from the definition, one vector at a time."""
    vectors = x.double()
    vectors = vectors.reshape(*x.shape[:2], 1, -1) if config.scope == "full" else vectors
    if config.kind == "layer":
        vectors = vectors - vectors.mean(-1, keepdim=True)
    if config.kind == "l2":
        own = vectors.square().sum(-1, keepdim=True).sqrt().clamp_min(config.eps)
    else:
        own = (vectors.square().mean(-1, keepdim=True) + config.eps).sqrt()
    normed = (vectors / (own if divisor is None else divisor)).reshape(x.shape)
    return (normed * gain + bias) * config.scale, own


@pytest.mark.parametrize("observed_in_place", [False, True])
@pytest.mark.parametrize(("kind", "scope"), product(["rms", "layer", "l2"], ["head", "per_head", "full"]))
def test_editing_the_divisor_changes_the_output_as_by_hand(kind, scope, observed_in_place):
    config = QKNormConfig(
        kind=kind, scope=scope, eps=1e-3, bias=kind == "layer", unit_offset=True, scale=2.5, scale_before_cast=True
    )
    norm = with_gains(QKNorm(config, 3, 8))
    x = heads((2, 6, 3, 8), torch.float32)
    gain = norm.weight.double() + 1
    bias = torch.zeros_like(gain) if norm.bias is None else norm.bias.double()
    if scope == "full":
        gain, bias = gain.view(3, 8), bias.view(3, 8)
    expected, divisor = by_hand(x, config, gain, bias)
    torch.testing.assert_close(norm(x).double(), expected, rtol=1e-5, atol=1e-5)

    seen = []

    def edit(scale, hook):
        seen.append(scale.detach().clone())
        changed = scale.mul_(1.7) if observed_in_place else scale * 1.7
        return changed.add_(0.1) if observed_in_place else changed + 0.1

    norm.hook_scale.add_hook(edit)
    expected, _ = by_hand(x, config, gain, bias, divisor * 1.7 + 0.1)
    with torch.no_grad():
        torch.testing.assert_close(norm(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert seen[0].shape == ((2, 6, 1, 1) if scope == "full" else (2, 6, 3, 1))
    torch.testing.assert_close(seen[0].double(), divisor, rtol=1e-5, atol=0)
    torch.testing.assert_close(norm.effective_gain().double(), gain.expand(3, 8) * 2.5)


def test_freezing_the_divisor_leaves_only_the_direct_gradient():
    norm = with_gains(QKNorm(QKNormConfig(), 2, 8))
    x = heads((1, 4, 2, 8), torch.float32).requires_grad_()
    divisor = (x.detach().pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    norm.hook_scale.add_hook(lambda scale, hook: scale.detach())
    (grad,) = torch.autograd.grad(norm(x).sum(), x)
    torch.testing.assert_close(grad, (norm.weight / divisor).detach(), rtol=1e-4, atol=1e-5)


def test_fresh_gains_are_the_identity_and_have_the_scopes_shape():
    for scope, shape in (("head", (8,)), ("per_head", (3, 8)), ("full", (24,))):
        for offset in (False, True):
            norm = QKNorm(QKNormConfig(kind="layer", scope=scope, unit_offset=offset, bias=True), 3, 8)
            assert norm.weight.shape == norm.bias.shape == shape
            assert torch.equal(norm.effective_gain(), torch.ones(3, 8))
    assert torch.equal(QKNorm(QKNormConfig(affine=False, scale=3.0), 3, 8).effective_gain(), torch.full((3, 8), 3.0))


def test_float64_stays_float64():
    norm = with_gains(QKNorm(QKNormConfig(scope="full"), 2, 8)).double()
    x = heads((1, 5, 2, 8), torch.float64)
    expected, _ = by_hand(x, norm.config, norm.weight.view(2, 8), 0.0)
    torch.testing.assert_close(norm(x), expected, rtol=1e-13, atol=1e-13)


def test_other_heads_than_it_was_made_for_are_named():
    with pytest.raises(InputError, match=r"3 heads of 8.*\(1, 2, 4, 8\)"):
        QKNorm(QKNormConfig(), 3, 8)(torch.ones(1, 2, 4, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_gain_has_the_type_that_is_asked_for(dtype):
    norm = QKNorm(QKNormConfig(kind="layer", bias=True), 2, 4, dtype=dtype)
    assert (norm.weight.dtype, norm.bias.dtype) == (dtype, dtype)
    model = tiny_model(dtype=dtype, qk_norm=QKNormConfig())
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
