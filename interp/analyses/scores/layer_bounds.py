"""What the weights of a captured layer prove about the size of its scores and of its queries and keys."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from hooks import AttentionSpec, HookedTransformerConfig, checks
from hooks.errors import InputError, TextError
from interp.analyses.scores.bound import score_bound
from interp.analyses.scores.schema import BOUND_BY_DISTANCE
from interp.common.labels import labelled, result_of
from interp.common.progress import track
from interp.tensors.capture_data import CaptureData, check_capture
from interp.tensors.constants import LayerConstants
from interp.tensors.selection import asked_layers

NO_LIMIT = "nothing limits q and k: no QK-norm, no clip and no soft-cap was found in this layer"


def bound_by_distance(
    cap: CaptureData, layers: int | Sequence[int] | None = None, distances: int | Sequence[int] | None = None
) -> xr.Dataset:
    """The largest score that the weights allow at each distance, beside the scores that this text has there.

    ``B(Δ) = scale · d_head · max_i σ_i(Δ)`` for RMS QK-norm before RoPE, σ_i the largest singular value of frequency
    pair i's block Dγq R(Δ) Dγk; `interp.score_bound` has the other norms. Constant where nothing turns after the norm.

    Args:
        cap: a capture.
        layers: which of its layers; None is all of them.
        distances: which distances; None is all that occur. A LayerNorm costs a singular value decomposition for each,
            so at length give some, such as powers of two.

    Returns:
        Dataset over (layer, head, distance): bound, score_min, score_max; over (layer): bound_reason, empty where the
        bound exists and why not where it is NaN.

    Raises:
        InputError: none of the layers has a bound, or a distance does not occur.
        StageError: a layer that was not captured.
        TextError: fewer than two tokens.

    Source:
        ``sup |uᵀ Dγq R(Δ) Dγk v|`` over ‖u‖, ‖v‖ ≤ √d is d times the spectral norm of a block-diagonal matrix.
    """
    chosen = chosen_layers(cap, layers)
    reasons = [bound_reason(cap, layer) for layer in chosen]
    if all(reasons):
        raise InputError(
            f"layer {chosen[0]}: {reasons[0]}, and so in every layer asked for. Look at score_ranges for what was "
            "observed, or give the model a norm or a clip with model.with_config(qk_norm=…) or (clip_qkv=…)."
        )
    stats = cap.statistics(chosen)
    if distances is not None:
        distances = checks.wholes("distances", distances)
        absent = np.setdiff1d(distances, stats["distance"].values)
        if absent.size:
            raise InputError(f"distance {absent[0]} does not occur: they go up to {int(stats['distance'].max())} here")
        stats = stats.sel(distance=np.unique(distances))
    distance = stats["distance"].values
    bounds = np.full((len(chosen), cap.cfg.n_heads, len(distance)), np.nan)
    for row, layer in enumerate(track(chosen, "bounding scores")):
        seen = stats["count"].sel(layer=layer).values > 0
        if not reasons[row]:
            bounds[row][:, seen] = layer_bound(cap, layer, distance=distance[seen])
    out = xr.Dataset(
        {
            "bound": (("layer", "head", "distance"), bounds, {"side": bound_side(cap, chosen)}),
            "score_min": stats["score_min"],
            "score_max": stats["score_max"],
            "bound_reason": ("layer", reasons),
        },
        {"layer": list(chosen), "head": np.arange(cap.cfg.n_heads), "distance": distance},
    ).transpose("layer", "head", "distance", ...)
    what = "proven and observed scores of each head against distance"
    return result_of("bound_by_distance", labelled(out, BOUND_BY_DISTANCE), what)


def layer_bound(
    cap: CaptureData,
    layer: int,
    *,
    cfg: HookedTransformerConfig | None = None,
    steps: Sequence[str] | None = None,
    spec: AttentionSpec | None = None,
    distance: np.ndarray | None = None,
) -> Float[np.ndarray, "*head_and_distance"]:
    """The largest |s| that each head of a captured layer can reach on a text of this length, inf where there is none.

    Args:
        cap: the capture.
        layer: one of its layers.
        cfg: settings of norm, rotation and clip; None for the capture's own.
        steps: the steps behind q and k, in order; None for those of the layer.
        spec: how q and k become scores; None for the layer's own.
        distance: give the bound at each of these distances.
    """
    cfg, steps = cap.cfg if cfg is None else cfg, cap.steps(layer) if steps is None else steps
    constants, n = cap.constants(layer), cap.longest
    constants = constants if spec is None else replace(constants, spec=spec)
    return proven_bound(constants, layer, cfg, steps, length=n, max_distance=n - 1, distance=distance)


def proven_bound(
    constants: LayerConstants,
    layer: int,
    cfg: HookedTransformerConfig,
    steps: Sequence[str],
    *,
    length: int | None = None,
    max_distance: int | None = None,
    distance: np.ndarray | None = None,
) -> Float[np.ndarray, "*head_and_distance"]:
    """The largest |s| that each head can reach with these weights, inf where nothing limits it or too little is known.

    Args:
        constants: what is known of the layer's weights.
        layer: which layer they are of.
        cfg: settings of norm, rotation and clip.
        steps: the steps behind q and k, in order.
        length: of the input, for schedules that depend on it.
        max_distance: the largest distance that occurs; None for every distance.
        distance: give the bound at each of these distances.
    """
    known = not _unknown(constants, layer, cfg, steps)
    normed, turned, clipped = (known and step in steps for step in ("norm", "rope", "clip"))
    bound = score_bound(
        cfg.qk_norm if normed else None,
        cfg.rope_for(layer) if turned else None,
        constants.gain_q if normed else None,
        constants.gain_k if normed else None,
        constants.spec,
        distance=distance,
        bias_q=constants.bias_q if normed else None,
        bias_k=constants.bias_k if normed else None,
        clip_qkv=cfg.clip_qkv if clipped else None,
        clip_position=cfg.clip_position,
        frequencies=constants.inv_freq if turned else None,
        length=length,
        max_distance=max_distance,
        d_head=cfg.d_head,
    )
    shape = (cfg.n_heads,) if distance is None else (cfg.n_heads, len(distance))
    return np.broadcast_to(np.asarray(bound, dtype=np.float64), shape)


def bound_reason(
    cap: CaptureData,
    layer: int,
    *,
    cfg: HookedTransformerConfig | None = None,
    steps: Sequence[str] | None = None,
    spec: AttentionSpec | None = None,
) -> str:
    """Why `layer_bound` proves nothing with these settings; empty where it does."""
    if np.isfinite(layer_bound(cap, layer, cfg=cfg, steps=steps, spec=spec)).all():
        return ""
    cfg, steps = cap.cfg if cfg is None else cfg, cap.steps(layer) if steps is None else steps
    return no_bound(cap.constants(layer), layer, cfg, steps)


def no_bound(constants: LayerConstants, layer: int, cfg: HookedTransformerConfig, steps: Sequence[str]) -> str:
    """Why `proven_bound` is infinite, in a layer where it is."""
    return _unknown(constants, layer, cfg, steps) or NO_LIMIT


def vector_bounds(cap: CaptureData, layer: int) -> tuple[Float[np.ndarray, " head"], Float[np.ndarray, " head"]]:
    """The largest ‖q‖ and ‖k‖ that each query head of a captured layer can see; see `proven_lengths`."""
    return proven_lengths(cap.constants(layer), layer, cap.cfg, cap.steps(layer))


def proven_lengths(
    constants: LayerConstants, layer: int, cfg: HookedTransformerConfig, steps: Sequence[str]
) -> tuple[Float[np.ndarray, " head"], Float[np.ndarray, " head"]]:
    """The largest ‖q‖ and ‖k‖ that each query head can see, and so their largest entries; inf where there is none.

    A norm leaves at most ``√D · max_j |γ_j| + ‖β‖``, a clip to ±c at most ``√d_head · c``, and a rotation multiplies by
    no more than its attention factor.

    Args:
        constants: what is known of the layer's weights.
        layer: which layer they are of.
        cfg: settings of norm, rotation and clip.
        steps: the steps behind q and k, in order.
    """
    q, k = (
        _longest(constants, layer, cfg, steps, gain, bias, heads)
        for gain, bias, heads in (
            (constants.gain_q, constants.bias_q, cfg.n_heads),
            (constants.gain_k, constants.bias_k, cfg.n_kv_heads),
        )
    )
    return q, np.repeat(k, cfg.n_heads // cfg.n_kv_heads)


def chosen_layers(cap: CaptureData, layers: int | Sequence[int] | None) -> tuple[int, ...]:
    """The layers asked for, of a capture that is long enough to measure.

    Raises:
        StageError: no layer, or one that the capture does not hold.
        TextError: fewer than two tokens.
    """
    chosen = asked_layers(check_capture(cap).layers, layers)
    for layer in chosen:
        cap.steps(layer)
    if len(cap.positions) < 2:
        raise TextError(f"{len(cap.positions)} token was captured: ranges of scores need at least 2")
    return chosen


def _unknown(constants: LayerConstants, layer: int, cfg: HookedTransformerConfig, steps: Sequence[str]) -> str:
    """What is not known of these steps, though a bound would need it; empty if nothing."""
    after = steps
    if "norm" in steps:
        if cfg.qk_norm is None or constants.gain_q is None or constants.gain_k is None:
            return "the capture does not hold the norm's gains: capture the model itself instead of reading a cache"
        after = steps[steps.index("norm") + 1 :]
        if "clip" in after and cfg.clip_qkv is None and cfg.qk_norm.kind == "layer":
            return "the value at which this model clips q and k is not known"
    if "rope" in after and cfg.rope_for(layer) is None and ("norm" in steps or "clip" in steps):
        return "how this model rotates q and k is not known, so its norm proves nothing about what comes after it"
    return ""


def _longest(
    constants: LayerConstants,
    layer: int,
    cfg: HookedTransformerConfig,
    steps: Sequence[str],
    gain: Tensor | None,
    bias: Tensor | None,
    heads: int,
) -> Float[np.ndarray, " head"]:
    """The bound on one tensor's vectors, step by step."""
    longest = torch.full((heads,), torch.inf, dtype=torch.float64)
    for step in steps:
        if step == "norm":
            longest = _norm_reach(cfg, gain, bias, heads)
        elif step == "clip" and cfg.clip_qkv is not None:
            longest = longest.clamp_max(cfg.clip_qkv * cfg.d_head**0.5)
        elif step == "rope":
            factor = torch.inf if cfg.rope_for(layer) is None else max(constants.attention_factor, 1.0)
            longest = longest * factor
    return longest.numpy()


def _norm_reach(
    cfg: HookedTransformerConfig, gain: Tensor | None, bias: Tensor | None, heads: int
) -> Float[Tensor, " head"]:
    """The longest vector that a norm puts out, for each head."""
    if cfg.qk_norm is None or gain is None:
        return torch.full((heads,), torch.inf, dtype=torch.float64)
    width = gain.numel() if cfg.qk_norm.scope == "full" else gain.shape[-1]
    radius = 1.0 if cfg.qk_norm.kind == "l2" else width**0.5
    longest = radius * gain.cpu().double().abs().amax(-1)
    return longest if bias is None else longest + bias.cpu().double().norm(dim=-1)


def bound_side(cap: CaptureData, layers: Sequence[int]) -> str:
    """Where a bound holds: on "both" sides of zero, or only "above", because ALiBi lowers scores without end."""
    return "both" if all(cap.spec(layer).alibi_slopes is None for layer in layers) else "above"


def linear(spec: AttentionSpec) -> AttentionSpec:
    """The same visible pairs, with nothing but the scale between q·k and the score."""
    return replace(spec, softcap=None, sinks=None, alibi_slopes=None)


def is_linear(spec: AttentionSpec) -> bool:
    """Whether scores are scale · q·k and nothing else."""
    return spec.softcap is None and spec.alibi_slopes is None
