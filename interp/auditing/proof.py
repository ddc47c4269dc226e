"""What the weights of a layer prove about its scores: bounds by distance, and what fits into float16 and float8."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hooks import HookedTransformerConfig
from hooks.functional.rope import length_dependent
from interp.analyses.scores.layer_bounds import linear, no_bound, proven_bound, proven_lengths
from interp.analyses.scores.precision import PRECISIONS
from interp.analyses.weights.circuits import circuit_norm, longest, triangular
from interp.analyses.weights.rotation_blocks import RotationBlocks
from interp.auditing.source import CONFIG_ONLY, LayerWeights

PerHead = Float[np.ndarray, " head"]
# Texts that are longer are bounded over every real angle, without going through their distances.
_LONGEST = 1 << 17
FORMATS = {
    "float16": PRECISIONS["float16"].limit,
    "float8_e4m3fn": float(torch.finfo(torch.float8_e4m3fn).max),
    "float8_e5m2": float(torch.finfo(torch.float8_e5m2).max),
}


@dataclass(frozen=True)
class Proof:
    """Bounds of one layer, in units of the score that enters softmax.

    Attributes:
        bound: at each distance, NaN where the window ends before it.
        largest: at any distance of a text of the model's length.
        source: what proves it; empty where nothing does.
        reason: why there is none; empty where there is one.
        headroom: limit of each format over the largest number, NaN without a bound.
    """

    bound: Float[np.ndarray, "head distance"]
    largest: PerHead
    source: str
    reason: str
    headroom: Float[np.ndarray, "head dtype"]


def prove(cfg: HookedTransformerConfig, weights: LayerWeights, distances: np.ndarray) -> Proof:
    """The bounds of one layer, from its QK-norm, or else from the norm before attention and the projections.

    Args:
        cfg: the model's settings.
        weights: what was read of the layer.
        distances: where to bound the score.
    """
    spec, layer, steps = weights.constants.spec, weights.layer, weights.steps
    constants = replace(weights.constants, spec=linear(spec))
    rope = cfg.rope_for(layer)
    furthest = None if cfg.n_ctx > _LONGEST or (rope is not None and length_dependent(rope)) else cfg.n_ctx - 1
    seen = distances if spec.window is None else distances[distances < spec.window]
    options = {"length": cfg.n_ctx, "max_distance": furthest}
    largest = proven_bound(constants, layer, cfg, steps, **options)
    at = proven_bound(constants, layer, cfg, steps, distance=seen, **options)
    lengths = proven_lengths(constants, layer, cfg, steps)
    source = "" if not np.isfinite(largest).all() else "QK-norm" if "norm" in steps else "clip"
    if "norm" not in steps and weights.q is not None and math.isfinite(weights.q.radius) and weights.blocks is not None:
        before, before_at, reach = _before_attention(cfg, weights, seen)
        if source == "" or bool((before < largest).all()):
            source = "norm before attention"
        lengths = tuple(np.minimum(one, other) for one, other in zip(lengths, reach, strict=True))
        largest, at = np.minimum(largest, before), np.minimum(at, before_at)
    product = largest / abs(spec.scale)
    if spec.softcap is not None:
        largest, at = (spec.softcap * np.tanh(each / spec.softcap) for each in (largest, at))
        source = source or "soft-cap"
    reason = "" if np.isfinite(largest).all() else _why(cfg, weights)
    bound = np.full((cfg.n_heads, len(distances)), np.nan)
    bound[:, : len(seen)] = np.where(np.isfinite(at), at, np.nan)
    largest = np.where(np.isfinite(largest), largest, np.nan)
    return Proof(bound, largest, source, reason, _headroom(product, *lengths))


def _before_attention(
    cfg: HookedTransformerConfig, weights: LayerWeights, distances: np.ndarray
) -> tuple[PerHead, Float[np.ndarray, "head distance"], tuple[PerHead, PerHead]]:
    """Bounds from inputs of length √d_model: over all distances, at each, and the longest q and k.

    At a distance ``d_model ‖A_qᵀ R(Δ) A_k‖₂``, tight without biases; over all of them ``max ‖q‖ · max ‖k‖``. Clipping
    keeps vectors from growing, and nothing else of it.
    """
    q, k, blocks = weights.q, weights.k, weights.blocks
    assert q is not None and k is not None and blocks is not None
    upper_q, upper_k = triangular(q.weight), triangular(k.weight)
    times = cfg.n_heads // cfg.n_kv_heads
    factor = max(math.sqrt(blocks.stretch), 1.0)
    reach_q, reach_k = (factor * longest(x, upper) for x, upper in ((q, upper_q), (k, upper_k)))
    if "clip" in weights.steps and cfg.clip_qkv is not None:
        reach_q, reach_k = (each.clamp_max(factor * cfg.clip_qkv * cfg.d_head**0.5) for each in (reach_q, reach_k))
    reach_k = reach_k.repeat_interleave(times)
    scale = abs(weights.constants.spec.scale)
    largest = scale * reach_q * reach_k
    at = largest[:, None].expand(-1, len(distances))
    if "clip" not in weights.steps:
        k, upper = k.expanded(cfg.n_heads), upper_k.repeat_interleave(times, 0)
        at = _each(lambda x: scale * circuit_norm(q, k, blocks.matrix(x), (upper_q, upper)), distances, blocks)
        if blocks.is_still:
            largest = torch.minimum(largest, at[:, 0])
    return largest.numpy(), at.numpy(), (reach_q.numpy(), reach_k.numpy())


def _each(
    norm: Callable[[Tensor], Tensor], distances: np.ndarray, blocks: RotationBlocks
) -> Float[Tensor, "head distance"]:
    """A norm at each distance, computed once where nothing turns."""
    at = torch.as_tensor(distances, dtype=torch.float64)
    if blocks.is_still:
        return norm(at[0])[:, None].expand(-1, len(at))
    return torch.stack([norm(each) for each in at], dim=1)


def _why(cfg: HookedTransformerConfig, weights: LayerWeights) -> str:
    """Why there is no bound."""
    if weights.missing == CONFIG_ONLY:
        return f"{CONFIG_ONLY}: gains and projections prove it"
    return no_bound(weights.constants, weights.layer, cfg, weights.steps)


def _headroom(product: PerHead, length_q: PerHead, length_k: PerHead) -> Float[np.ndarray, "head dtype"]:
    """Limit of each format over the largest number in it: entries of q and k; in float16 their product too."""
    step = PRECISIONS["float16"].step
    entry = np.maximum(length_q, length_k)
    # Rounding both entries of every term moves q·k by at most (2 step + step²) ‖q‖‖k‖.
    with np.errstate(invalid="ignore"):
        moved = (2 + step) * step * length_q * length_k
        most = dict.fromkeys(FORMATS, entry) | {"float16": np.maximum(product + moved, entry)}
    columns = [limit / np.maximum(most[name], np.finfo(float).tiny) for name, limit in FORMATS.items()]
    found = np.stack(columns, axis=-1)
    return np.where(found > 0, found, np.nan)
