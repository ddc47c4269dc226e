"""Positional bias: what the distance between query and key alone does to scores and attention."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from hooks.errors import InputError
from interp.common.labels import described, result_of
from interp.tensors.capture_data import CaptureData
from interp.tensors.selection import layer_numbers


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
    chosen = cap.layers if layers is None else layer_numbers(layers)
    stats = cap.statistics(chosen)
    count = stats["count"]
    seen = count > 0
    out = xr.Dataset(
        {
            **_attention(stats["attention"], count, "1", "attention", "p"),
            "score_mean": stats["score_mean"],
            "score_std": described(
                (stats["score_m2"] / count.where(seen)) ** 0.5,
                "score",
                "standard deviation of the score between pairs at this distance",
                "sqrt(score_m2 / count)",
            ),
            "score_min": stats["score_min"],
            "score_max": stats["score_max"],
            "count": count,
            "positional_r2": stats["positional_r2"],
        }
    )
    if "attention_value" in stats:
        moved = "attention, weighted by the size of the value that it moves,"
        twins = _attention(stats["attention_value"], count, "value norm", moved, "p ‖v W_O‖", "arXiv:2004.10102")
        out = out.assign({name.replace("attention_", "attention_value_"): twin for name, twin in twins.items()})
    out["window"] = described(
        xr.DataArray([cap.spec(layer).window or 0 for layer in chosen], dims="layer"),
        "token",
        "keys that a query of this layer can see, itself included; 0 means all before it",
        "0 ≤ Δ < window",
    )
    out = out.transpose("layer", "head", "distance", ...)
    return result_of("positional_bias", out, "scores and attention of each head against distance")


def _attention(
    total: xr.DataArray, count: xr.DataArray, units: str, what: str, p: str, source: str = ""
) -> dict[str, xr.DataArray]:
    """Mean per pair and share by distance of attention summed over pairs."""
    seen = count > 0
    mean, share = total / count.where(seen), (total / total.sum("distance")).where(seen)
    return {
        "attention_mean": described(mean, units, f"mean {what} of a pair at this distance", f"Σ {p} / count", source),
        "attention_share": described(
            share, "1", f"share of all the head's {what} that goes to this distance", f"Σ {p} at Δ / Σ {p}", source
        ),
    }


def typical_distance(bias: xr.Dataset, share: float = 0.5) -> xr.DataArray:
    """The distance within which a head spends this share of its attention, over (layer, head), in tokens.

    Args:
        bias: a `positional_bias` Dataset. Keys that follow the query count by |Δ|.
        share: the share, above 0 and at most 1.

    Raises:
        InputError: another share.
    """
    if not 0 < share <= 1:
        raise InputError(f"share={share}: give a share of the attention above 0 and at most 1, such as 0.5")
    size = np.abs(bias["distance"].values)
    spent = bias["attention_share"].fillna(0).transpose("layer", "head", "distance").values
    mass = np.zeros((int(size.max()) + 1, *spent.shape[:2]))
    np.add.at(mass, size, np.moveaxis(spent, -1, 0))
    distance = (mass.cumsum(0) < share * (1 - 1e-9)).sum(0).clip(max=size.max())
    return described(
        xr.DataArray(distance, coords={"layer": bias["layer"], "head": bias["head"]}, dims=("layer", "head")),
        "token",
        f"distance within which the head spends {share:.0%} of its attention",
        f"smallest Δ with Σ over distances of at most Δ of attention_share ≥ {share:g}",
    )
