"""How large a score can get: the bound that the norm's weights, clipping and soft-cap prove; quantiles as measured."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooks import AttentionSpec, QKNormConfig, RopeConfig, checks
from hooks.errors import InputError
from interp.analyses.weights.rotation_blocks import RotationBlocks
from interp.common.schedules import frequencies_of

Gain = Float[Tensor, " d_head"] | Float[Tensor, "head d_head"]


@torch.no_grad()
def score_bound(
    qk_norm: QKNormConfig | None,
    rope: RopeConfig | None,
    gain_q: Gain | None,
    gain_k: Gain | None,
    spec: AttentionSpec,
    *,
    distance: int | Sequence[int] | Int[Tensor, " distance"] | np.ndarray | None = None,
    bias_q: Gain | None = None,
    bias_k: Gain | None = None,
    clip_qkv: float | None = None,
    clip_position: str = "projection",
    frequencies: Float[Tensor, " pair"] | None = None,
    length: int | None = None,
    max_distance: int | None = None,
    n_heads: int | None = None,
    n_kv_heads: int | None = None,
    d_head: int | None = None,
) -> float | np.ndarray:
    """The largest |s| that any input can cause, in units of the score that enters softmax.

    A norm leaves q = γq ⊙ u with ‖u‖² < D: D = d_head for RMS and LayerNorm of one head, D = heads · d_head for all
    heads together (one head may get everything), 1 for L2. Rotation after it turns pairs of features, so the score
    uᵀ Dγq R(Δ) Dγk v is largest with all energy in one pair: ``B(Δ) = scale · sqrt(D_q D_k) · max_i σ_i(Δ)``, σ_i
    the largest singular value of pair i's 2 × 2 block (its square of the attention factor included). Without rotation
    after the norm: ``scale · sqrt(D_q D_k) · max_j |γq_j γk_j|``. LayerNorm takes the mean out of u first, and its
    biases add ``‖Dγq R βk‖``, ``‖Dγk Rᵀ βq‖`` and ``|βqᵀ R βk|``. Clipping to ±c bounds the score by
    ``scale · d_head · c²`` unless a norm follows. A soft-cap c makes B into c · tanh(B / c).

    The bound is strict in exact arithmetic (eps > 0); in float32 the observed score may exceed it by a factor
    1 + 1e-5, in bfloat16 by 1 + 2⁻⁶. It is tight, save for LayerNorm with ``distance=None``, for biases and for
    clipping after the norm. ALiBi only lowers scores: the bound then holds for s from above, and nothing bounds it
    from below.

    Args:
        qk_norm: The norm; None if there is none.
        rope: The rotation; None if the layer does not rotate.
        gain_q: Effective gains of the queries' norm, offset and fixed scale included
            (``QKNorm.effective_gain``); with a head axis the result has one too. None without a norm.
        gain_k: The same for keys, with one row per kv head.
        spec: Scale, soft-cap, window.
        distance: Query position − key position, one or several. None gives the largest over all distances that the
            window, or ``max_distance``, leaves; over every real Δ if neither is set.
        bias_q: Biases of the queries' LayerNorm, fixed scale included.
        bias_k: The same for keys.
        clip_qkv: Clip of q and k to ±clip_qkv; None if there is none.
        clip_position: "projection", "norm" or "rope": the step after which q and k are clipped.
        frequencies: inv_freq of the rotation where it was trained; by default that of ``rope``.
        length: Length of the whole input, for schedules that depend on it.
        max_distance: Largest distance that occurs.
        n_heads: Number of query heads, when a full-width norm's gains have no head axis.
        n_kv_heads: Number of kv heads, likewise.
        d_head: Features of a head, when there are no gains.

    Returns:
        A float, or an array [head] [distance] with the axes that gains and ``distance`` have; inf where nothing
        bounds the score.

    Raises:
        InputError: Gains that do not fit each other or the norm, or that are missing.
    """
    _check_kinds(qk_norm, rope, spec)
    gain_q, gain_k = _checked_gain("gain_q", gain_q), _checked_gain("gain_k", gain_k)
    features = _features(gain_q, gain_k, d_head)
    a, b, per_head = _gains(gain_q, gain_k, features)
    distances = None if distance is None else _as_tensor(distance)
    bound = torch.full((a.shape[0], 1 if distances is None else distances.numel()), torch.inf, dtype=torch.float64)
    if features is None and (qk_norm is not None or clip_qkv is not None):
        raise InputError("the bound of a norm needs gain_q and gain_k (ones if it has none), that of a clip d_head.")
    if features is not None:
        blocks = _blocks(rope, frequencies, features, length)
        furthest = _furthest(spec, max_distance)
        after_norm = qk_norm is not None and clip_position != "projection"
        if qk_norm is not None:
            radii = _radii(qk_norm, gain_q, gain_k, features, n_heads, n_kv_heads)
            turning = blocks if qk_norm.position == "before_rope" else RotationBlocks.still(features)
            beta_q, beta_k = _rows(bias_q, gain_q, a), _rows(bias_k, gain_k, a)
            bound = _norm_bound(
                qk_norm,
                turning,
                gains=(a, b),
                radii=radii,
                biases=(beta_q, beta_k),
                distances=distances,
                furthest=furthest,
                clipped=clip_qkv is not None and after_norm,
                clipped_last=clip_qkv is not None and clip_position == "rope",
            )
        if clip_qkv is not None and (qk_norm is None or after_norm):
            last = clip_position == "rope" or (qk_norm is not None and qk_norm.position == "after_rope")
            box = RotationBlocks.still(features) if last else blocks
            bound = torch.minimum(bound, clip_qkv**2 * box.box(distances))
    bound = abs(spec.scale) * bound
    if spec.softcap is not None:
        bound = spec.softcap * torch.tanh(bound / spec.softcap)
    out = bound.numpy()
    if distance is None or np.ndim(distance) == 0:
        out = out[:, 0]
    return out if per_head else (float(out[0]) if out.ndim == 1 else out[0])


def _check_kinds(qk_norm: object, rope: object, spec: object) -> None:
    """Raise for settings that are none."""
    checks.instance("spec", spec, AttentionSpec, "an AttentionSpec")
    if qk_norm is not None:
        checks.instance("qk_norm", qk_norm, QKNormConfig, "a QKNormConfig, or None")
    if rope is not None:
        checks.instance("rope", rope, RopeConfig, "a RopeConfig, or None")


def _checked_gain(name: str, gain: Any) -> Tensor | None:
    """A gain as a tensor [d_head] or [head d_head] of a floating type."""
    good = isinstance(gain, Tensor) and gain.ndim in (1, 2) and gain.is_floating_point() and gain.numel()
    if gain is not None and (not good or gain.is_meta or gain.is_sparse or gain.itemsize < 2):
        raise InputError(f"{name}={checks.shown(gain)}: give a floating tensor [d_head] or [head d_head]")
    return gain


def _as_tensor(distance: int | Sequence[int] | Tensor | np.ndarray) -> Float[Tensor, " distance"]:
    """Distances in float64."""
    if not isinstance(distance, int | np.integer | Sequence | np.ndarray | Tensor):
        raise InputError(f"distance={checks.shown(distance)}: give a whole number, or several")
    checks.wholes("distance", distance, at_least=-(2**53), at_most=2**53)
    if isinstance(distance, Tensor):
        return torch.atleast_1d(distance.cpu().double())
    return torch.from_numpy(np.array(distance, dtype=np.float64, ndmin=1))


def _furthest(spec: AttentionSpec, max_distance: int | None) -> int | None:
    """Largest distance that window and length leave; None if neither limits it."""
    if spec.window is None:
        return max_distance
    return spec.window - 1 if max_distance is None else min(spec.window - 1, max_distance)


def _features(gain_q: Gain | None, gain_k: Gain | None, d_head: int | None) -> int | None:
    """Features of a head, if anything tells."""
    sizes = {gain.shape[-1] for gain in (gain_q, gain_k) if gain is not None}
    if d_head is not None:
        sizes.add(d_head)
    if len(sizes) > 1:
        raise InputError(f"gain_q, gain_k and d_head disagree about the features of a head: {sorted(sizes)}.")
    return next(iter(sizes), None)


def _gains(gain_q: Gain | None, gain_k: Gain | None, features: int | None) -> tuple[Tensor, Tensor, bool]:
    """Gains of q and k in float64, one row per query head, ones where none are given; whether they had a head axis."""

    def as_rows(gain: Gain | None) -> Tensor:
        if gain is None:
            return torch.ones(1, features or 1, dtype=torch.float64)
        return gain.detach().cpu().double().reshape(-1, gain.shape[-1])

    a, b = as_rows(gain_q), as_rows(gain_k)
    heads = max(len(a), len(b))
    for name, gain in (("gain_q", a), ("gain_k", b)):
        if heads % len(gain) or not torch.isfinite(gain).all():
            raise InputError(f"{name} {tuple(gain.shape)} must be finite and its heads divide the other's ({heads}).")
    per_head = any(g is not None and g.ndim == 2 for g in (gain_q, gain_k))
    return a.repeat_interleave(heads // len(a), 0), b.repeat_interleave(heads // len(b), 0), per_head


def _rows(bias: Gain | None, gain: Gain | None, like: Tensor) -> Tensor:
    """A bias in float64, one row per query head, zeros where none is given."""
    if bias is None:
        return torch.zeros_like(like)
    if gain is not None and bias.shape[-1] != gain.shape[-1]:
        raise InputError(f"bias {tuple(bias.shape)} does not fit gain {tuple(gain.shape)}.")
    rows = bias.detach().cpu().double().reshape(-1, bias.shape[-1])
    if len(like) % len(rows):
        raise InputError(f"bias {tuple(bias.shape)} does not fit {len(like)} heads; give the gains a head axis too.")
    return rows.repeat_interleave(len(like) // len(rows), 0)


def _blocks(rope: RopeConfig | None, frequencies: Tensor | None, features: int, length: int | None) -> RotationBlocks:
    """How the rotation pairs features."""
    if rope is None:
        return RotationBlocks.still(features)
    scheduled, factor = frequencies_of(rope, features, length)
    angle = scheduled if frequencies is None else frequencies
    return RotationBlocks(features, angle.detach().cpu().double(), factor, bool(rope.interleaved))


def _radii(
    qk_norm: QKNormConfig,
    gain_q: Gain | None,
    gain_k: Gain | None,
    features: int,
    n_heads: int | None,
    n_kv_heads: int | None,
) -> tuple[float, float]:
    """D of queries and keys: the square of the largest norm of what the gain multiplies."""
    if qk_norm.scope != "full":
        return (1.0, 1.0) if qk_norm.kind == "l2" else (float(features), float(features))
    heads = [
        gain.shape[0] if gain is not None and gain.ndim == 2 else given
        for gain, given in ((gain_q, n_heads), (gain_k, n_kv_heads))
    ]
    if heads[0] is None or heads[1] is None:
        raise InputError('a norm of scope "full" needs gains [head d_head] for q and k, or n_heads and n_kv_heads.')
    return (1.0, 1.0) if qk_norm.kind == "l2" else (float(heads[0] * features), float(heads[1] * features))


def _norm_bound(
    qk_norm: QKNormConfig,
    blocks: RotationBlocks,
    *,
    gains: tuple[Float[Tensor, "head d_head"], Float[Tensor, "head d_head"]],
    radii: tuple[float, float],
    biases: tuple[Float[Tensor, "head d_head"], Float[Tensor, "head d_head"]],
    distances: Float[Tensor, " distance"] | None,
    furthest: int | None,
    clipped: bool,
    clipped_last: bool,
) -> Float[Tensor, "head distance"]:
    """Bound |q·k| over everything that the norm can put out.

    Clipping shrinks features towards 0 and keeps their signs: the vectors stay in the ball, but lose what LayerNorm
    and the directions of biases and pairs would have proved.
    """
    (a, b), (beta_q, beta_k) = gains, biases
    columns = 1 if distances is None else distances.numel()
    if clipped_last:
        distances, furthest = None, None
    if qk_norm.kind == "layer" and not clipped and (blocks.is_still or distances is not None):
        at = None if blocks.is_still else distances
        gain = blocks.centred_norm(a, b, _kept_mean(a, radii[0]), _kept_mean(b, radii[1]), at)
    elif distances is not None:
        gain = blocks.norm(a, b, distances)
    else:
        gain = blocks.largest_norm(a, b, furthest)
    bound = math.sqrt(radii[0] * radii[1]) * gain
    at = None if clipped else distances
    if beta_k.any():
        bound = bound + math.sqrt(radii[0]) * blocks.reach(a, beta_k, at, backwards=False)
    if beta_q.any():
        bound = bound + math.sqrt(radii[1]) * blocks.reach(b, beta_q, at, backwards=True)
    if beta_q.any() and beta_k.any():
        bound = bound + blocks.product(beta_q, beta_k, at)
    return bound.expand(-1, columns)


def _kept_mean(gain: Float[Tensor, "head d_head"], radius: float) -> float:
    """How much of a head's mean survives LayerNorm: none, unless other heads (full width) can balance it."""
    return math.sqrt(max(1 - gain.shape[-1] / radius, 0.0))
