"""The range of scores at each captured stage, beside the bound that the weights prove there."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from torch import Tensor

from hooks import AttentionSpec
from interp.progress import track
from interp.ranges import score_bound
from interp.stages import steps_before

if TYPE_CHECKING:
    from interp.captures import Capture

_DONE = {"clip": "clipping", "norm": "QK-norm", "rope": "rotation"}
_NEXT = {"clip": "before clipping", "norm": "before QK-norm", "rope": "before rotation"}
_VARIABLES = {
    "score_min": ("score", "smallest score of a visible pair", "min s_ij"),
    "score_max": ("score", "largest score of a visible pair", "max s_ij"),
    "score_mean": ("score", "mean score of the visible pairs", "mean s_ij"),
    "score_std": ("score", "standard deviation of the score", "sqrt(mean (s_ij − mean)²)"),
    "bound": ("score", "no score of this head can be larger in size, whatever the text", "see interp.score_bound"),
    "utilisation": ("1", "largest observed score as a share of the bound", "max |s_ij| / bound"),
    "q_norm": ("1", "root mean square of the queries' norms", "sqrt(mean ‖q_i‖²)"),
    "k_norm": ("1", "root mean square of the keys' norms", "sqrt(mean ‖k_j‖²)"),
}


def stage_ranges(cap: "Capture") -> xr.Dataset:
    """Range of s = scale · q·k with the q and k of each captured stage, and the proven bound where there is one.

    At the stage ``final`` s is the score that enters softmax, soft-cap and ALiBi included; before it, s is what the
    score would be if the remaining steps were left out.

    Returns:
        Dataset over (layer, head, stage), NaN where a layer lacks a stage, with layer_type and stage_label.
    """
    stages = _stages_in_order(cap)
    shape = (len(cap.layers), cap.cfg.n_heads, len(stages))
    values = {name: np.full(shape, np.nan) for name in _VARIABLES}
    for row, layer in enumerate(track(cap.layers, "measuring score ranges")):
        for stage in cap.stages(layer):
            for name, per_head in _one(cap, layer, stage).items():
                values[name][row, :, stages.index(stage)] = per_head
    attrs = {name: dict(zip(("units", "description", "formula"), row, strict=True)) for name, row in _VARIABLES.items()}
    return xr.Dataset(
        {name: (("layer", "head", "stage"), array, attrs[name]) for name, array in values.items()},
        coords={
            "layer": list(cap.layers),
            "head": np.arange(cap.cfg.n_heads),
            "stage": stages,
            "stage_label": ("stage", [_label(cap, stage) for stage in stages]),
            "layer_type": ("layer", [cap.cfg.layer_type(layer) for layer in cap.layers]),
        },
    )


def _stages_in_order(cap: "Capture") -> list[str]:
    """Every stage that some layer holds, in the order of computation."""
    longest = max(cap.layers, key=lambda layer: len(cap.stages(layer)))
    rest = [stage for layer in cap.layers for stage in cap.stages(layer)]
    return list(dict.fromkeys((*cap.stages(longest)[:-1], *(s for s in rest if s != "final"), "final")))


def _label(cap: "Capture", stage: str) -> str:
    """A stage in words, such as: after QK-norm, before rotation."""
    if stage == "final":
        return "As it enters softmax"
    step = stage.removeprefix("pre_")
    layer = next(layer for layer in cap.layers if stage in cap.stages(layer))
    done = cap.steps(layer)[: cap.steps(layer).index(step)]
    words = ", ".join([*(f"after {_DONE[s]}" for s in done[-1:]), _NEXT[step]])
    return words[0].upper() + words[1:]


def _one(cap: "Capture", layer: int, stage: str) -> dict[str, np.ndarray]:
    """The range, its moments and its bound for every head of one layer at one stage."""
    q, k = cap.q(layer, stage), cap.k(layer, stage)
    by_distance = _by_distance(cap, layer, stage)
    count = by_distance["count"].values.astype(np.float64)
    seen = count > 0
    mean_at = by_distance["score_mean"].transpose("head", "distance").values[:, seen].astype(np.float64)
    m2_at = by_distance["score_m2"].transpose("head", "distance").values[:, seen].astype(np.float64)
    mean = (mean_at * count[seen]).sum(-1) / count.sum()
    m2 = m2_at.sum(-1) + (count[seen] * (mean_at - mean[:, None]) ** 2).sum(-1)
    low = by_distance["score_min"].min("distance").values
    high = by_distance["score_max"].max("distance").values
    bound = _bounds(cap, layer, stage)
    group = cap.cfg.n_heads // k.shape[1]
    # ALiBi only lowers scores: with it the bound holds from above alone.
    lowered = stage == "final" and cap.spec(layer).alibi_slopes is not None
    largest = high if lowered else np.maximum(np.abs(low), np.abs(high))
    return {
        "score_min": low,
        "score_max": high,
        "score_mean": mean,
        "score_std": np.sqrt(m2 / count.sum()),
        "bound": bound,
        "utilisation": largest / bound,
        "q_norm": _rms_norm(q),
        "k_norm": np.repeat(_rms_norm(k), group),
    }


def _by_distance(cap: "Capture", layer: int, stage: str) -> xr.Dataset:
    """Score statistics by distance at a stage; those of the final one are the capture's own."""
    if stage == "final":
        return cap.statistics([layer]).isel(layer=0)
    from interp.statistics import attention_statistics

    return attention_statistics(
        cap.q(layer, stage), cap.k(layer, stage), _linear(cap.spec(layer)), groups=("distances",)
    )


def _bounds(cap: "Capture", layer: int, stage: str) -> np.ndarray:
    """What the weights prove about each head's scores at a stage; NaN where they prove nothing."""
    cfg, constants, steps = cap.cfg, cap.constants(layer), cap.steps(layer)
    done = steps[: steps_before(stage, steps)]
    normed = "norm" in done
    bound = score_bound(
        cfg.qk_norm if normed else None,
        cfg.rope_for(layer) if "rope" in done else None,
        constants.gain_q if normed else None,
        constants.gain_k if normed else None,
        constants.spec if stage == "final" else _linear(constants.spec),
        bias_q=constants.bias_q if normed else None,
        bias_k=constants.bias_k if normed else None,
        clip_qkv=cfg.clip_qkv if "clip" in done else None,
        clip_position=cfg.clip_position,
        frequencies=constants.inv_freq if "rope" in done else None,
        length=len(cap.tokens),
        max_distance=len(cap.tokens) - 1,
        d_head=cfg.d_head,
    )
    heads = np.broadcast_to(np.asarray(bound, dtype=np.float64), cfg.n_heads)
    return np.where(np.isinf(heads), np.nan, heads)


def _linear(spec: AttentionSpec) -> AttentionSpec:
    """The same visible pairs, with nothing but the scale between q·k and the score."""
    return replace(spec, softcap=None, sinks=None, alibi_slopes=None)


def _rms_norm(x: Tensor) -> np.ndarray:
    """sqrt(mean over positions ‖x‖²) of each head."""
    return x.float().pow(2).sum(-1).mean(0).sqrt().cpu().numpy()
