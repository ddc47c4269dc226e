"""Positional bias: what the distance between query and key alone does to scores and attention."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from hooks import checks
from hooks.errors import InputError
from interp.analyses.position.schema import POSITIONAL_BIAS, TYPICAL_DISTANCE
from interp.common.labels import check_one_result, labelled, result_of
from interp.tensors.capture_data import CaptureData, check_capture
from interp.tensors.selection import asked_layers


def positional_bias(cap: CaptureData, layers: int | Sequence[int] | None = None) -> xr.Dataset:
    """Scores and attention of each head against the distance Δ = query position − key position.

    attention_mean(Δ) = Σ p / count, attention_share(Δ) = Σ p / Σ over all Δ, over the visible pairs at distance Δ.
    The value-weighted twins weigh p_ij by ‖v_j W_O‖, the size of what it moves: sinks often carry little.

    Args:
        cap: the capture.
        layers: which of its layers; None is all of them.

    Returns:
        Dataset over (layer, head, distance): attention_mean, attention_share, score_mean, score_std, score_min,
        score_max, and attention_value_mean and attention_value_share when the capture holds v; count over (layer,
        distance); positional_r2 over (layer, head); window over (layer), 0 for none.

    Raises:
        StageError: no layer, or one that the capture does not hold.
    """
    chosen = asked_layers(check_capture(cap).layers, layers)
    stats = cap.statistics(chosen)
    count = stats["count"]
    seen = count > 0
    out = xr.Dataset(
        {
            **_attention(stats, "attention"),
            "score_mean": stats["score_mean"],
            "score_std": (stats["score_m2"] / count.where(seen)) ** 0.5,
            "score_min": stats["score_min"],
            "score_max": stats["score_max"],
            "count": count,
            "positional_r2": stats["positional_r2"],
        }
    )
    if "attention_value" in stats:
        out = out.assign(_attention(stats, "attention_value"))
    out["window"] = ("layer", [cap.spec(layer).window or 0 for layer in chosen])
    out = out.transpose("layer", "head", "distance", ...)
    return result_of(
        "positional_bias", labelled(out, POSITIONAL_BIAS), "scores and attention of each head against distance"
    )


def _attention(stats: xr.Dataset, name: str) -> dict[str, xr.DataArray]:
    """Mean per pair and share by distance of attention summed over pairs."""
    total, count = stats[name], stats["count"]
    seen = count > 0
    return {
        f"{name}_mean": total / count.where(seen),
        f"{name}_share": (total / total.sum("distance")).where(seen),
    }


def typical_distance(bias: xr.Dataset, share: float = 0.5) -> xr.DataArray:
    """The distance within which a head spends this share of its attention, over (layer, head), in tokens.

    Args:
        bias: a `positional_bias` Dataset. Keys that follow the query count by |Δ|.
        share: the share, above 0 and at most 1.

    Raises:
        InputError: another share, or results of several texts.
    """
    share = checks.number("share", share, above=0, at_most=1)
    if not isinstance(bias, xr.Dataset) or "attention_share" not in bias:
        raise InputError(f"bias={checks.shown(bias)}: give what interp.positional_bias returned")
    check_one_result("bias", bias["attention_share"], ("layer", "head", "distance"))
    size = np.abs(bias["distance"].values)
    spent = bias["attention_share"].fillna(0).transpose("layer", "head", "distance").values
    mass = np.zeros((int(size.max()) + 1, *spent.shape[:2]))
    np.add.at(mass, size, np.moveaxis(spent, -1, 0))
    distance = (mass.cumsum(0) < share * (1 - 1e-9)).sum(0).clip(max=size.max())
    said = TYPICAL_DISTANCE["typical_distance"].at(percent=f"{share:.0%}", share=f"{share:g}")
    return xr.DataArray(distance, {"layer": bias["layer"], "head": bias["head"]}, said.dims, attrs=said.attrs)
