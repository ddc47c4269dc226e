"""Rotary position embedding: the frequencies of each schedule, cos and sin, and the rotation.

A pair of features (x1, x2) at position p turns by the angle p·f_i, f_i = θ^(−2i/r).

Sources:
    RoPE: Su et al., arXiv 2104.09864, eq. 15 (frequencies) and 34 (rotation).
    linear: Chen et al., arXiv 2306.15595, eq. 4.
    dynamic, yarn: Peng et al., arXiv 2309.00071, §3.3 and eq. 17-23.
    longrope: Ding et al., arXiv 2402.13753.
    llama3: Meta's ``apply_scaling`` of Llama 3.1. proportional: Gemma 4.
    float32 follows transformers 5.23.0 (``modeling_rope_utils.py``, ``models/llama/modeling_llama.py``) operation
    by operation. One difference: transformers looks for yarn's ``truncate`` beside the layer types and so
    ignores a ``truncate: false`` nested under one; here the schedule's own value counts.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooks.config.rope import LENGTH_DEPENDENT, RopeConfig
from hooks.errors import ConfigError
from hooks.functional.float64 import float64_device

T = TypeVar("T")


def length_dependent(rope: RopeConfig) -> bool:
    """Whether the frequencies depend on the length of the whole input (dynamic, longrope)."""
    return rope.rope_type in LENGTH_DEPENDENT


def inv_freq(
    rope: RopeConfig,
    d_head: int,
    length: int | None = None,
    *,
    device: torch.device | str | None = None,
) -> tuple[Float[Tensor, " pair"], float]:
    """Angle per position of every rotated pair, and the factor on cos and sin.

    f_i = θ^(−2i/r), then changed as the schedule says (the functions below).

    Args:
        rope: A complete schedule.
        d_head: Size of one head.
        length: Length of the whole input, for schedules that depend on it; None = within the trained length.
        device: Where to put the result; it is computed on the CPU.

    Returns:
        Frequencies, float32 (bit-equal to transformers) or float64 as ``rope.precision`` says, and the
        attention factor.

    Raises:
        ConfigError: The schedule lacks a field or does not fit ``d_head``.

    Source:
        transformers 5.23.0, ``modeling_rope_utils.ROPE_INIT_FUNCTIONS``.
    """
    rope.check_complete(d_head)
    dtype = torch.float64 if rope.precision == "float64" else torch.float32
    frequencies = _SCHEDULES[rope.rope_type](rope, d_head, length, dtype)
    return frequencies.to(device=device), attention_factor(rope)


def attention_factor(rope: RopeConfig) -> float:
    """What cos and sin are multiplied by, so that scores grow by its square.

    yarn: g(s, mscale)/g(s, mscale_all_dim) when both are set, else g(s, 1), where g(s, m) = 0.1·m·ln s + 1,
    or 1 for s ≤ 1.
    longrope: sqrt(1 + ln s / ln L0), or 1 for s ≤ 1. Otherwise 1.

    Args:
        rope: A complete schedule; its own ``attention_factor`` counts when set.

    Returns:
        The factor.

    Source:
        arXiv 2309.00071 eq. 22; arXiv 2402.13753 §3.2; transformers 5.23.0.
    """
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.rope_type not in ("yarn", "longrope"):
        return 1.0
    stretch = _given(rope.stretch())
    if stretch <= 1:
        return 1.0
    if rope.rope_type == "longrope":
        return math.sqrt(1 + math.log(stretch) / math.log(_given(rope.original_max_position_embeddings)))
    if rope.mscale and rope.mscale_all_dim:
        return _yarn_gain(stretch, rope.mscale) / _yarn_gain(stretch, rope.mscale_all_dim)
    return _yarn_gain(stretch, 1)


def _yarn_gain(stretch: float, mscale: float) -> float:
    """g(s, m) of yarn."""
    return 0.1 * mscale * math.log(stretch) + 1.0


def _given(value: T | None) -> T:
    """A field that ``check_complete`` has found to be set."""
    assert value is not None
    return value


def _powers(theta: float | Tensor, dim: int, dtype: torch.dtype, count: int | None = None) -> Float[Tensor, " pair"]:
    """θ^(2i/dim) for the first ``count`` pairs: the wavelengths over 2π."""
    stop = dim if count is None else 2 * count
    exponents = torch.arange(0, stop, 2, dtype=torch.int64, device="cpu").to(dtype) / dim
    return theta**exponents


def _default(rope: RopeConfig, d_head: int, length: int | None, dtype: torch.dtype) -> Float[Tensor, " pair"]:
    """f_i = θ^(−2i/r)."""
    return 1.0 / _powers(_given(rope.rope_theta), rope.width(d_head), dtype)


def _linear(rope: RopeConfig, d_head: int, length: int | None, dtype: torch.dtype) -> Float[Tensor, " pair"]:
    """f_i / s: position interpolation."""
    return _default(rope, d_head, length, dtype) / _given(rope.factor)


def _dynamic(rope: RopeConfig, d_head: int, length: int | None, dtype: torch.dtype) -> Float[Tensor, " pair"]:
    """f_i at the base θ·(s·L/Lmax − (s − 1))^(r/(r−2)), L = max(length, Lmax)."""
    dim, factor, longest = rope.width(d_head), _given(rope.factor), _given(rope.max_position_embeddings)
    seen: int | Tensor = longest
    if length is not None and length > longest:
        # Beyond the trained length transformers holds the length, and so the base, in a float32 tensor.
        seen = torch.tensor(length, device="cpu") if dtype == torch.float32 else length
    theta = _given(rope.rope_theta) * ((factor * seen / longest) - (factor - 1)) ** (dim / (dim - 2))
    return 1.0 / _powers(theta, dim, dtype)


def _yarn(rope: RopeConfig, d_head: int, length: int | None, dtype: torch.dtype) -> Float[Tensor, " pair"]:
    """(f_i/s)·(1 − e_i) + f_i·e_i, e_i = 1 − clamp((i − low)/(high − low), 0, 1): NTK by parts."""
    dim, powers = rope.width(d_head), _default_powers(rope, d_head, dtype)
    low, high = _yarn_range(rope, dim)
    ramp = torch.clamp((torch.arange(dim // 2, dtype=dtype, device="cpu") - low) / (high - low), 0, 1)
    kept = 1 - ramp
    return (1.0 / (_given(rope.stretch()) * powers)) * (1 - kept) + (1.0 / powers) * kept


def _default_powers(rope: RopeConfig, d_head: int, dtype: torch.dtype) -> Float[Tensor, " pair"]:
    """θ^(2i/r)."""
    return _powers(_given(rope.rope_theta), rope.width(d_head), dtype)


def _yarn_range(rope: RopeConfig, dim: int) -> tuple[float, float]:
    """Pair indices that turn β_fast and β_slow times over the trained length: r·ln(L0/(2πβ))/(2 ln θ)."""
    theta, trained = _given(rope.rope_theta), _given(rope.original_max_position_embeddings)

    def index(rotations: float) -> float:
        return (dim * math.log(trained / (rotations * 2 * math.pi))) / (2 * math.log(theta))

    low, high = index(rope.beta_fast or 32), index(rope.beta_slow or 1)
    if rope.truncate is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    return low, high + 0.001 if low == high else high


def _longrope(rope: RopeConfig, d_head: int, length: int | None, dtype: torch.dtype) -> Float[Tensor, " pair"]:
    """f_i / long_factor_i beyond L0, f_i / short_factor_i up to it."""
    beyond = length is not None and length > _given(rope.original_max_position_embeddings)
    divisors = torch.tensor(rope.long_factor if beyond else rope.short_factor, dtype=dtype, device="cpu")
    return 1.0 / (divisors * _default_powers(rope, d_head, dtype))


def _llama3(rope: RopeConfig, d_head: int, length: int | None, dtype: torch.dtype) -> Float[Tensor, " pair"]:
    """f/s where the wavelength λ = 2π/f > L0/low; f where λ < L0/high; between them (1 − m)·f/s + m·f.

    m = (L0/λ − low)/(high − low). The low frequencies are the ones that change, once and for all.
    """
    factor, trained = _given(rope.factor), _given(rope.original_max_position_embeddings)
    low, high = _given(rope.low_freq_factor), _given(rope.high_freq_factor)
    plain = _default(rope, d_head, length, dtype)
    wavelength = 2 * math.pi / plain
    stretched = torch.where(wavelength > trained / low, plain / factor, plain)
    smooth = (trained / wavelength - low) / (high - low)
    blended = (1 - smooth) * stretched / factor + smooth * stretched
    between = ~(wavelength < trained / high) & ~(wavelength > trained / low)
    return torch.where(between, blended, stretched)


def _proportional(rope: RopeConfig, d_head: int, length: int | None, dtype: torch.dtype) -> Float[Tensor, " pair"]:
    """θ^(−2i/h)/s for the first n = int(p·h//2) pairs, 0 (no rotation) for the rest."""
    rotated = rope.rotated_pairs(d_head)
    frequencies = 1.0 / _powers(_given(rope.rope_theta), d_head, dtype, rotated)
    still = torch.zeros(d_head // 2 - rotated, dtype=dtype, device="cpu")
    return torch.cat((frequencies, still)) / (1.0 if rope.factor is None else rope.factor)


_Schedule = Callable[[RopeConfig, int, int | None, torch.dtype], Float[Tensor, " pair"]]
_SCHEDULES: dict[str, _Schedule] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
    "proportional": _proportional,
}


def same_frequencies(one: RopeConfig, other: RopeConfig, d_head: int) -> bool:
    """Whether two complete schedules start from the same frequencies, so that what one learned fits the other."""
    a, b = (inv_freq(rope, d_head)[0].double() for rope in (one, other))
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=0)


def cos_and_sin(
    positions: Int[Tensor, "*batch pos"],
    frequencies: Float[Tensor, " pair"],
    factor: float,
    *,
    precision: str | None,
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "*batch pos pair"], Float[Tensor, "*batch pos pair"]]:
    """m·cos(p·f_i) and m·sin(p·f_i).

    Args:
        positions: Position p of every token.
        frequencies: f_i, rad/token.
        factor: The attention factor m.
        precision: "float64" for angles in float64; else they are taken in float32.
        dtype: Type of the result.

    Returns:
        cos and sin, one value per pair, where the positions are. A row of them does not depend on the others.
    """
    angle_dtype = torch.float64 if precision == "float64" else torch.float32
    device = float64_device(positions.device) if angle_dtype == torch.float64 else positions.device
    angles = positions[..., None].to(device).to(angle_dtype) * frequencies.to(device, angle_dtype)
    cos, sin = ((turned * factor).to(dtype).to(positions.device) for turned in (angles.cos(), angles.sin()))
    return cos, sin


def rotate(
    x: Float[Tensor, "batch pos head d_head"],
    cos: Float[Tensor, "batch pos pair"],
    sin: Float[Tensor, "batch pos pair"],
    *,
    interleaved: bool = False,
    in_float32: bool = False,
) -> Float[Tensor, "batch pos head d_head"]:
    """Turn the first 2·pair features of every head; the rest passes through.

    (x1, x2) → (x1·cos − x2·sin, x2·cos + x1·sin), where x1, x2 are the halves of the rotated features, or
    their even and odd members when interleaved.

    Args:
        x: Queries or keys.
        cos: As ``Rotary`` gives it.
        sin: Likewise.
        interleaved: Which features form a pair.
        in_float32: Rotate in float32 or better and cast back (OLMo 2).

    Returns:
        A new tensor of x's type, bit-equal to transformers' ``q * cos + rotate_half(q) * sin``.

    Raises:
        ConfigError: cos and sin have more pairs than x has.

    Source:
        arXiv 2104.09864 eq. 34; transformers 5.23.0 ``apply_rotary_pos_emb``.
    """
    pairs = cos.shape[-1]
    if 2 * pairs > x.shape[-1]:
        raise ConfigError(f"cos has {pairs} pairs, which do not fit d_head={x.shape[-1]}")
    if in_float32:
        cos, sin = (each.to(torch.promote_types(each.dtype, torch.float32)) for each in (cos, sin))
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    rotated, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
    x1, x2 = (rotated[..., 0::2], rotated[..., 1::2]) if interleaved else rotated.split(pairs, dim=-1)
    # In place where autograd allows it: at 32k tokens every temporary the size of q counts.
    y1, y2 = x1 * cos, x2 * cos
    y1 -= x2 * sin
    y2 += x1 * sin
    y1, y2 = y1.to(x.dtype), y2.to(x.dtype)
    if interleaved:
        return torch.cat((torch.stack((y1, y2), dim=-1).flatten(-2), rest), dim=-1)
    return torch.cat((y1, y2, rest), dim=-1)
