"""The range of scores at each captured stage, beside the bound that the weights prove there."""

import numpy as np
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from hooks import AttentionSpec
from interp.analyses.scores.layer_bounds import bound_side, layer_bound, linear
from interp.analyses.scores.moments import PerHead, ScoreMoments
from interp.analyses.scores.schema import STAGE_RANGES
from interp.common.labels import labelled
from interp.common.progress import track
from interp.measure.statistics import attention_statistics
from interp.tensors.capture_data import CaptureData
from interp.tensors.stages import steps_before

_DONE = {"clip": "clipping", "norm": "QK-norm", "rope": "rotation"}
_NEXT = {"clip": "before clipping", "norm": "before QK-norm", "rope": "before rotation"}


def stage_ranges(cap: CaptureData) -> xr.Dataset:
    """Range of s = scale · q·k with the q and k of each captured stage, and the proven bound where there is one.

    At the stage ``final`` s is the score that enters softmax, soft-cap and ALiBi included; before it, s is what the
    score would be if the remaining steps were left out.

    Returns:
        Dataset over (layer, head, stage), NaN where a layer lacks a stage, with layer_type and stage_label.
    """
    stages = stages_in_order(cap)
    shape = (len(cap.layers), cap.cfg.n_heads, len(stages))
    values = {name: np.full(shape, np.nan) for name in STAGE_RANGES}
    for row, layer in enumerate(track(cap.layers, "measuring score ranges")):
        for stage in cap.stages(layer):
            for name, per_head in _one(cap, layer, stage).items():
                values[name][row, :, stages.index(stage)] = per_head
    out = xr.Dataset(
        {name: (STAGE_RANGES[name].dims, array) for name, array in values.items()},
        coords={
            "layer": list(cap.layers),
            "head": np.arange(cap.cfg.n_heads),
            "stage": stages,
            "stage_label": ("stage", [stage_label(cap, stage) for stage in stages]),
            "layer_type": ("layer", [cap.cfg.layer_type(layer) for layer in cap.layers]),
        },
    )
    out["bound"].attrs["side"] = bound_side(cap, cap.layers)
    return labelled(out, STAGE_RANGES)


def stages_in_order(cap: CaptureData) -> list[str]:
    """Every stage that some layer holds, in the order of computation."""
    longest = max(cap.layers, key=lambda layer: len(cap.stages(layer)))
    rest = [stage for layer in cap.layers for stage in cap.stages(layer)]
    return list(dict.fromkeys((*cap.stages(longest)[:-1], *(s for s in rest if s != "final"), "final")))


def stage_label(cap: CaptureData, stage: str) -> str:
    """A stage in words, such as: after QK-norm, before rotation."""
    if stage == "final":
        return "As it enters softmax"
    step = stage.removeprefix("pre_")
    layer = next(layer for layer in cap.layers if stage in cap.stages(layer))
    done = cap.steps(layer)[: cap.steps(layer).index(step)]
    words = ", ".join([*(f"after {_DONE[s]}" for s in done[-1:]), _NEXT[step]])
    return words[0].upper() + words[1:]


def _one(cap: CaptureData, layer: int, stage: str) -> dict[str, np.ndarray]:
    """The range, its moments and its bound for every head of one layer at one stage."""
    spec = cap.spec(layer) if stage == "final" else linear(cap.spec(layer))
    moments = ScoreMoments.of(_by_distance(cap, layer, stage))
    steps = cap.steps(layer)
    bound = finite(layer_bound(cap, layer, steps=steps[: steps_before(stage, steps)], spec=spec))
    return {
        "score_min": moments.low,
        "score_max": moments.high,
        "score_mean": moments.mean,
        "score_std": moments.std,
        "bound": bound,
        "utilisation": utilisation(moments, bound, spec),
        "q_norm": rms_norm(cap.q(layer, stage), cap.cfg.n_heads),
        "k_norm": rms_norm(cap.k(layer, stage), cap.cfg.n_heads),
    }


def utilisation(moments: ScoreMoments, bound: PerHead, spec: AttentionSpec) -> PerHead:
    """The largest score as a share of its bound; with ALiBi, which only lowers scores, the largest from above alone."""
    return (moments.largest if spec.alibi_slopes is None else moments.high) / bound


def finite(bound: np.ndarray) -> np.ndarray:
    """A bound with NaN where there is none."""
    return np.where(np.isinf(bound), np.nan, bound)


def rms_norm(x: Float[Tensor, "pos any_head d_head"], heads: int) -> PerHead:
    """sqrt(mean over positions ‖x‖²) of what each query head reads."""
    norms = x.float().pow(2).sum(-1).mean(0).sqrt().cpu().numpy()
    return np.repeat(norms, heads // len(norms))


def _by_distance(cap: CaptureData, layer: int, stage: str) -> xr.Dataset:
    """Score statistics by distance at a stage; those of the final one are the capture's own."""
    if stage == "final":
        return cap.statistics([layer]).isel(layer=0)
    return attention_statistics(
        cap.q(layer, stage),
        cap.k(layer, stage),
        linear(cap.spec(layer)),
        groups=("distances",),
        documents=cap.documents,
    )
