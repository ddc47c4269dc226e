import copy
import math

import mpmath
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from transformers import GPTNeoXConfig, LlamaConfig
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding
from transformers.models.hunyuan_v1_dense.configuration_hunyuan_v1_dense import HunYuanDenseV1Config
from transformers.models.hunyuan_v1_dense.modeling_hunyuan_v1_dense import HunYuanDenseV1RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from hooks.config.rope import RopeConfig
from hooks.errors import ConfigError
from hooks.functional.rope import inv_freq, length_dependent, rotate
from hooks.modules.rotary import Rotary

mpmath.mp.dps = 50
FAR = 1_000_000
LENGTHS = st.sampled_from([16, 511, 4096, 8192, 131_072])
FACTORS = st.one_of(st.integers(1, 40), st.floats(1, 40))


@st.composite
def schedules(draw, rope_type=None):
    """A complete RopeConfig and a d_head that it fits."""
    rope_type = rope_type or draw(
        st.sampled_from(["default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional"])
    )
    width = 2 * draw(st.integers(2, 64))
    d_head = width if rope_type == "default" else width + 2 * draw(st.integers(0, 16))
    fields = {
        "rope_theta": draw(st.one_of(st.integers(100, 10_000_000), st.floats(100, 1e7))),
        "max_position_embeddings": draw(LENGTHS),
    }
    if d_head != width:
        fields["partial_rotary_factor"] = width / d_head
        assume(int(d_head * (width / d_head)) == width)
    if rope_type in ("linear", "dynamic", "yarn", "llama3"):
        fields["factor"] = draw(FACTORS)
    if rope_type in ("yarn", "longrope", "llama3"):
        fields["original_max_position_embeddings"] = draw(LENGTHS)
    if rope_type == "llama3":
        fields["low_freq_factor"] = draw(st.floats(0.5, 4))
        fields["high_freq_factor"] = fields["low_freq_factor"] + draw(st.floats(0.5, 8))
    if rope_type == "yarn":
        optional = {
            "beta_fast": st.floats(8, 64),
            "beta_slow": st.floats(0.5, 7),
            "attention_factor": st.floats(0.5, 2),
            "truncate": st.booleans(),
        }
        fields |= {name: draw(values) for name, values in optional.items() if draw(st.booleans())}
        if draw(st.booleans()):
            fields |= {"mscale": draw(st.floats(0, 2)), "mscale_all_dim": draw(st.floats(0, 2))}
    if rope_type == "longrope":
        per_pair = st.lists(st.floats(1, 60), min_size=width // 2, max_size=width // 2)
        fields |= {"short_factor": draw(per_pair), "long_factor": draw(per_pair)}
        if draw(st.booleans()):
            fields["factor"] = draw(FACTORS)
    return RopeConfig(rope_type, **fields), d_head


def llama_rotary(rope, d_head):
    """The real transformers module under the same settings."""
    parameters = {name: value for name, value in rope.to_dict().items() if name != "max_position_embeddings"}
    config = LlamaConfig(
        hidden_size=2 * d_head,
        num_attention_heads=2,
        head_dim=d_head,
        max_position_embeddings=rope.max_position_embeddings,
        rope_parameters=parameters,
    )
    return LlamaRotaryEmbedding(config)


def exact_inv_freq(rope, d_head, length):
    """The textbook formulas in 50 digits."""
    r, theta, s = rope.width(d_head), mpmath.mpf(rope.rope_theta), mpmath.mpf(rope.factor or 1)
    trained = mpmath.mpf(rope.original_max_position_embeddings or 1)
    if rope.rope_type == "dynamic":
        seen = max(length, rope.max_position_embeddings)
        theta *= (s * seen / rope.max_position_embeddings - (s - 1)) ** (mpmath.mpf(r) / (r - 2))
    f = [theta ** (mpmath.mpf(-2 * i) / r) for i in range(r // 2)]
    if rope.rope_type == "linear":
        return [each / s for each in f]
    if rope.rope_type == "proportional":
        rotated = int(d_head * (rope.partial_rotary_factor or 1) / 2)
        return [each / s if i < rotated else mpmath.mpf(0) for i, each in enumerate(f)]
    if rope.rope_type == "longrope":
        divisors = rope.long_factor if length > rope.original_max_position_embeddings else rope.short_factor
        return [each / divisor for each, divisor in zip(f, divisors, strict=True)]
    if rope.rope_type == "llama3":
        low, high = mpmath.mpf(rope.low_freq_factor), mpmath.mpf(rope.high_freq_factor)
        turns = [trained * each / (2 * mpmath.pi) for each in f]  # L0/λ
        kept = [min(max((turn - low) / (high - low), 0), 1) for turn in turns]
        return [(1 - m) * each / s + m * each for m, each in zip(kept, f, strict=True)]
    if rope.rope_type == "yarn":
        bounds = [
            r * mpmath.log(trained / (2 * mpmath.pi * beta)) / (2 * mpmath.log(theta))
            for beta in (rope.beta_fast or 32, rope.beta_slow or 1)
        ]
        if rope.truncate is not False:
            bounds = [mpmath.floor(bounds[0]), mpmath.ceil(bounds[1])]
        low, high = max(bounds[0], 0), min(bounds[1], r - 1)
        high += mpmath.mpf("0.001") if low == high else 0
        kept = [1 - min(max((i - low) / (high - low), 0), 1) for i in range(r // 2)]
        return [each / s * (1 - e) + each * e for e, each in zip(kept, f, strict=True)]
    return f


@settings(max_examples=150, deadline=None)
@given(schedules(), st.integers(2, FAR), st.integers(1, FAR))
def test_tables_equal_transformers_bit_for_bit(case, length, other):
    rope, d_head = case
    positions = torch.tensor([[0, 1, min(other, length - 1), length - 2, length - 1]])
    theirs = llama_rotary(rope, d_head)
    cos, sin = theirs(torch.zeros(1), positions)
    frequencies, factor = inv_freq(rope, d_head, length)
    assert torch.equal(frequencies, theirs.inv_freq)
    assert factor == theirs.attention_scaling
    own_cos, own_sin = Rotary(rope, d_head)(positions, length=length, dtype=torch.float32)
    pairs = own_cos.shape[-1]
    assert torch.equal(own_cos, cos[..., :pairs])
    assert torch.equal(own_sin, sin[..., pairs:])


@pytest.mark.parametrize("rope_type", ["default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional"])
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_tables_equal_transformers_to_position_one_million(rope_type, data):
    rope, d_head = data.draw(schedules(rope_type))
    positions = torch.cat([torch.arange(0, FAR, 9973), torch.arange(FAR - 50, FAR + 1)])[None]
    cos, sin = llama_rotary(rope, d_head)(torch.zeros(1), positions)
    own_cos, own_sin = Rotary(rope, d_head)(positions, dtype=torch.float32)
    assert torch.equal(own_cos, cos[..., : own_cos.shape[-1]])
    assert torch.equal(own_sin, sin[..., : own_sin.shape[-1]])


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 64), st.integers(0, 64), st.floats(100, 1e7))
def test_default_partial_equals_gpt_neox(pairs, rest, theta):
    width, d_head = 2 * pairs, 2 * pairs + 2 * rest
    assume(int(d_head * (width / d_head)) == width)
    config = {"rotary_pct": width / d_head, "rotary_emb_base": theta, "max_position_embeddings": 128}
    theirs = GPTNeoXRotaryEmbedding(GPTNeoXConfig(hidden_size=2 * d_head, num_attention_heads=2, **config))
    own, _ = inv_freq(RopeConfig.from_hf(config), d_head)
    assert torch.equal(own, theirs.inv_freq)


@given(st.floats(1, 2000), st.floats(1e3, 1e6), st.sampled_from([8, 64, 128]))
@settings(max_examples=20, deadline=None)
def test_hunyuan_alpha_is_a_static_base(alpha, theta, d_head):
    scaling = {"type": "dynamic", "alpha": alpha, "factor": 1.0, "beta_fast": 32, "beta_slow": 1}
    raw = {"head_dim": d_head, "rope_theta": theta, "rope_scaling": scaling, "max_position_embeddings": 64}
    config = HunYuanDenseV1Config(
        hidden_size=d_head,
        num_attention_heads=1,
        head_dim=d_head,
        rope_parameters={"rope_type": "dynamic", "alpha": alpha, "factor": 1.0, "rope_theta": theta},
    )
    rope = RopeConfig.from_hf(raw)
    assert rope.rope_type == "default"
    assert torch.equal(inv_freq(rope, d_head, 10_000)[0], HunYuanDenseV1RotaryEmbedding(config).inv_freq)


@settings(max_examples=100, deadline=None)
@given(schedules(), st.integers(1, FAR))
def test_frequencies_equal_the_formulas_in_fifty_digits(case, length):
    rope, d_head = case
    exact = exact_inv_freq(rope, d_head, length)
    for precision, tolerance in (("float32", 2e-5), ("float64", 1e-12)):
        own, _ = inv_freq(RopeConfig.from_dict(rope.to_dict() | {"precision": precision}), d_head, length)
        assert own.dtype == getattr(torch, precision)
        for ours, reference in zip(own.tolist(), exact, strict=True):
            assert abs(mpmath.mpf(ours) - reference) <= tolerance * reference


@settings(max_examples=25, deadline=None)
@given(schedules(), st.lists(st.integers(0, FAR), min_size=1, max_size=5))
def test_angles_equal_the_formulas_in_fifty_digits(case, positions):
    rope, d_head = case
    length = max(positions) + 1
    exact = exact_inv_freq(rope, d_head, length)
    # Rounding of position × frequency: 2⁻²⁴ of the angle from each of a handful of operations.
    for precision, unit in (("float32", 3e-7), ("float64", 1e-15)):
        rotary = Rotary(RopeConfig.from_dict(rope.to_dict() | {"precision": precision}), d_head)
        cos, sin = rotary(torch.tensor([positions]), dtype=torch.float64)
        _, factor = inv_freq(rope, d_head, length)
        for row, position in enumerate(positions):
            for pair, frequency in enumerate(exact):
                angle = position * frequency
                allowed = unit * (2 + 4 * float(angle)) * factor
                assert abs(cos[0, row, pair].item() - float(factor * mpmath.cos(angle))) <= allowed
                assert abs(sin[0, row, pair].item() - float(factor * mpmath.sin(angle))) <= allowed


@given(st.floats(1.01, 64), st.integers(2, 10_000), st.floats(0.1, 2), st.floats(0.1, 2))
def test_attention_factors_equal_their_formulas(stretch, trained, mscale, mscale_all_dim):
    gain = {m: 0.1 * m * math.log(stretch) + 1 for m in (1, mscale, mscale_all_dim)}
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": stretch, "original_max_position_embeddings": 8192}
    both = RopeConfig(**yarn, mscale=mscale, mscale_all_dim=mscale_all_dim)
    pairs = (1.0,) * 4
    longrope = RopeConfig(
        "longrope",
        rope_theta=1e4,
        factor=stretch,
        original_max_position_embeddings=trained,
        short_factor=pairs,
        long_factor=pairs,
    )
    assert inv_freq(RopeConfig(**yarn), 8)[1] == pytest.approx(gain[1], rel=1e-12)
    assert inv_freq(both, 8)[1] == pytest.approx(gain[mscale] / gain[mscale_all_dim], rel=1e-12)
    expected = math.sqrt(1 + math.log(stretch) / math.log(trained))
    assert inv_freq(longrope, 8)[1] == pytest.approx(expected, rel=1e-12)


def test_llama3_lowers_the_low_frequencies_and_keeps_the_high_ones():
    # An article has it the other way round: high frequencies attenuated, following the position.
    plain, _ = inv_freq(RopeConfig(rope_theta=5e5), 128)
    llama31 = RopeConfig(
        "llama3",
        rope_theta=5e5,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    smoothed, factor = inv_freq(llama31, 128)
    wavelength = 2 * math.pi / plain
    high, low = wavelength < 8192 / 4, wavelength > 8192
    assert high.sum() > 20
    assert low.sum() > 20
    assert torch.equal(smoothed[high], plain[high])
    assert torch.equal(smoothed[low], plain[low] / 8)
    assert bool((smoothed[~high] < plain[~high]).all())
    assert factor == 1
    assert not length_dependent(llama31)
    assert torch.equal(inv_freq(llama31, 128, FAR)[0], smoothed)


@pytest.mark.parametrize("d_head", [4, 6, 16, 30, 64, 128])
def test_default_is_the_paper_form_of_llms_from_scratch(d_head):
    expected = 1 / (10_000 ** (torch.arange(0, d_head, 2)[: d_head // 2].float() / d_head))
    assert torch.equal(inv_freq(RopeConfig(rope_theta=10_000), d_head)[0], expected)


def test_nested_truncate_counts():
    settings_ = {"rope_theta": 1e6, "factor": 8.0, "original_max_position_embeddings": 4096}
    rounded, exact = RopeConfig("yarn", **settings_), RopeConfig("yarn", **settings_, truncate=False)
    layered = RopeConfig.from_hf(
        {"rope_parameters": {"full_attention": {"rope_type": "yarn", "truncate": False, **settings_}}}
    )
    assert layered == {"full_attention": exact}
    assert not torch.equal(inv_freq(rounded, 64)[0], inv_freq(exact, 64)[0])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 7),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(0, 5),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 2**31),
)
def test_rotation_equals_transformers_bit_for_bit(batch, n, heads, pairs, rest, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, n, heads, 2 * pairs + rest, generator=generator).to(dtype)
    angles = torch.randn(batch, n, pairs, generator=generator) * 100
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    head = x[..., : 2 * pairs]
    expected, _ = apply_rotary_pos_emb(head, head, torch.cat((cos, cos), -1), torch.cat((sin, sin), -1), 2)
    own = rotate(x, cos, sin, interleaved=False)
    assert own.dtype == dtype
    assert torch.equal(own, torch.cat((expected, x[..., 2 * pairs :]), -1))


def test_rotation_in_float32_casts_back_once():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 5, 3, 12, generator=generator).bfloat16()
    angles = torch.randn(2, 5, 4, generator=generator)
    wide = rotate(x.float(), angles.cos(), angles.sin()).bfloat16()
    own = rotate(x, angles.cos(), angles.sin(), in_float32=True)
    narrow = rotate(x, angles.cos().bfloat16(), angles.sin().bfloat16())
    assert own.dtype == torch.bfloat16
    assert torch.equal(own, wide)
    assert not torch.equal(own, narrow)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(0, 4), st.booleans(), st.integers(0, 2**31))
def test_rotation_is_multiplication_by_a_complex_number(pairs, rest, interleaved, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 2, 2 * pairs + rest, generator=generator, dtype=torch.float64)
    angles = torch.randn(2, 3, pairs, generator=generator, dtype=torch.float64) * 10
    first = slice(0, 2 * pairs, 2) if interleaved else slice(0, pairs)
    second = slice(1, 2 * pairs, 2) if interleaved else slice(pairs, 2 * pairs)
    turned = torch.complex(x[..., first], x[..., second]) * torch.polar(torch.ones_like(angles), angles)[:, :, None]
    own = rotate(x, angles.cos(), angles.sin(), interleaved=interleaved)
    torch.testing.assert_close(own[..., first], turned.real, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(own[..., second], turned.imag, rtol=1e-12, atol=1e-12)
    assert torch.equal(own[..., 2 * pairs :], x[..., 2 * pairs :])


@given(st.integers(1, 16), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_layouts_agree_under_the_permutation(pairs, seed):
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(1, 5, 3, 2 * pairs, generator=generator)
    angles = torch.randn(1, 5, pairs, generator=generator)
    permutation = torch.arange(2 * pairs).reshape(2, pairs).T.flatten()
    interleaved = rotate(half[..., permutation], angles.cos(), angles.sin(), interleaved=True)
    assert torch.equal(interleaved, rotate(half, angles.cos(), angles.sin())[..., permutation])


@settings(max_examples=25, deadline=None)
@given(schedules(), st.integers(0, 50_000), st.integers(0, 2**31))
def test_scores_depend_on_distance_alone(case, shift, seed):
    rope, d_head = case
    rotary = Rotary(RopeConfig.from_dict(rope.to_dict() | {"precision": "float64"}), d_head)
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 1, 6, 1, d_head, generator=generator, dtype=torch.float64)

    def scores(start):
        cos, sin = rotary(torch.arange(start, start + 6)[None], length=100_000, dtype=torch.float64)
        return torch.einsum("bqhd,bkhd->bqk", rotate(q, cos, sin), rotate(k, cos, sin))

    torch.testing.assert_close(scores(shift), scores(0), rtol=1e-8, atol=1e-8)


@settings(max_examples=20, deadline=None)
@given(schedules("dynamic"), st.integers(2, 4))
@example((RopeConfig("dynamic", rope_theta=1e4, factor=2.0, max_position_embeddings=16), 4), 2)
def test_dynamic_follows_the_length_and_keeps_no_state(case, times):
    rope, d_head = case
    assume(rope.factor > 1)
    rotary = Rotary(rope, d_head)
    short = torch.arange(4)[None]
    before = rotary(short, dtype=torch.float32)
    longest = times * rope.max_position_embeddings
    chunk = rotary(short, length=longest, dtype=torch.float32)
    after = rotary(short, dtype=torch.float32)
    whole = rotary(torch.cat([short, torch.tensor([[longest - 1]])], 1), dtype=torch.float32)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert not torch.equal(chunk[1], before[1])
    assert torch.equal(chunk[0], whole[0][:, :4])
    assert length_dependent(rope)


def test_learnable_frequencies_get_gradients_and_stay_float32():
    rope = RopeConfig(rope_theta=1e4, learnable=True)
    rotary = Rotary(rope, 16)
    x = torch.randn(1, 7, 2, 16, generator=torch.Generator().manual_seed(0))
    cos, sin = rotary(torch.arange(7)[None], dtype=torch.float32)
    rotate(x, cos, sin)[..., 3].sum().backward()
    gradient = rotary.inv_freq.grad
    assert gradient[3].abs() > 1e-3
    original = rotary.inv_freq.detach().clone()
    parameter = rotary.inv_freq
    rotary.to(torch.bfloat16)
    assert rotary.inv_freq is parameter
    assert rotary.inv_freq.dtype == torch.float32
    assert torch.equal(rotary.inv_freq, original)
    assert torch.equal(rotary.inv_freq.grad, gradient)
    twin = copy.deepcopy(rotary).half()
    with torch.no_grad():
        twin.inv_freq.mul_(2)
    assert torch.equal(rotary.inv_freq, original)
    assert torch.equal(twin.inv_freq, original * 2)
    assert set(rotary.state_dict()) == {"inv_freq"}
    turned, _ = twin(torch.arange(7)[None], dtype=torch.float32)
    assert not torch.equal(turned, cos)


def test_fixed_frequencies_survive_casts_and_leave_no_weights():
    rope = RopeConfig(rope_theta=1e4)
    rotary = Rotary(rope, 64)
    positions = torch.tensor([[4095, 100_000]])
    before = rotary(positions, dtype=torch.float32)[0]
    rotary.to(torch.bfloat16)
    assert torch.equal(rotary(positions, dtype=torch.float32)[0], before)
    assert not rotary.state_dict()
    assert not list(rotary.buffers())
    assert rotary(positions, dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_float64_is_exact_where_float32_is_not():
    position = 131_071
    rope = {"rope_theta": 5e5}
    frequencies = exact_inv_freq(RopeConfig(**rope), 128, position)
    exact = torch.tensor([float(mpmath.cos(position * f)) for f in frequencies], dtype=torch.float64)
    errors = {}
    for precision in ("float32", "float64"):
        cos, _ = Rotary(RopeConfig(**rope, precision=precision), 128)(torch.tensor([[position]]), dtype=torch.float64)
        errors[precision] = (cos[0, 0] - exact).abs().max().item()
    assert errors["float32"] > 1e-3
    assert errors["float64"] < 1e-10


def test_hooks_on_cos_and_sin_change_what_comes_out():
    rotary = Rotary(RopeConfig(rope_theta=1e4), 8)
    seen = {}

    def double(tensor, hook):
        seen[hook] = tensor.shape
        return 2 * tensor

    rotary.hook_sin.add_hook(double)
    cos, sin = rotary(torch.arange(5)[None], dtype=torch.float32)
    _, plain = Rotary(RopeConfig(rope_theta=1e4), 8)(torch.arange(5)[None], dtype=torch.float32)
    assert list(seen.values()) == [(1, 5, 4)]
    assert torch.equal(sin, 2 * plain)
    assert cos.shape == (1, 5, 4)


def test_misfits_raise():
    with pytest.raises(ConfigError, match="rope_theta"):
        inv_freq(RopeConfig(), 8)
    with pytest.raises(ConfigError, match="rotary_dim=16"):
        Rotary(RopeConfig(rope_theta=1e4, rotary_dim=16), 8)
    with pytest.raises(ConfigError, match="4 pairs"):
        rotate(torch.ones(1, 2, 1, 6), torch.ones(1, 2, 4), torch.ones(1, 2, 4))


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotating_in_float32_or_better_keeps_float64(interleaved):
    """Against complex multiplication in float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 5, 2, 8, dtype=torch.float64, generator=generator)
    angles = torch.randn(1, 5, 4, dtype=torch.float64, generator=generator)
    pairs = x.unflatten(-1, (4, 2)) if interleaved else x.unflatten(-1, (2, 4)).transpose(-1, -2)
    turned = torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angles), angles)[:, :, None]
    expected = torch.view_as_real(turned)
    expected = expected.flatten(-2) if interleaved else expected.transpose(-1, -2).flatten(-2)
    found = rotate(x, angles.cos(), angles.sin(), interleaved=interleaved, in_float32=True)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
