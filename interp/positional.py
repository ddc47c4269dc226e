"""Positional bias: what the distance between query and key alone does to scores and attention."""

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from hooks.errors import InputError
from interp.labels import described, result_of

if TYPE_CHECKING:
    from interp.captures import Capture


def positional_bias(cap: "Capture") -> xr.Dataset:
    """Scores and attention of each head against the distance Δ = query position − key position.

    attention_mean(Δ) = Σ p / count, attention_share(Δ) = Σ p / Σ over all Δ, over the visible pairs at distance Δ.
    The value-weighted twins weigh p_ij by ‖v_j W_O‖, the size of what it moves: sinks often carry little.

    Returns:
        Dataset over (layer, head, distance): attention_mean, attention_share, score_mean, score_std, score_min,
        score_max, and attention_value_mean and attention_value_share when the capture holds v; count over (layer,
        distance); positional_r2 over (layer, head); window over (layer), 0 for none.
    """
    stats = cap.statistics()
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
        xr.DataArray([cap.spec(layer).window or 0 for layer in cap.layers], dims="layer"),
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


def bin_distances(bias: xr.Dataset, per_octave: int = 4) -> xr.Dataset:
    """Merge distances into bins of equal width on a log axis; exact, because sums and counts add.

    Distances below 2^(1 + log2 per_octave) keep bins of their own.

    Args:
        bias: a `positional_bias` Dataset.
        per_octave: bins per doubling of the distance.

    Returns:
        attention_mean, attention_share and their value-weighted twins where there are any, score_mean, score_min,
        score_max over (layer, head, distance_bin), count over (layer, distance_bin), with coordinates first_distance
        and last_distance of each bin.
    """
    distance = bias["distance"].values
    starts = bin_starts(distance, per_octave)
    last = np.append(starts[1:], len(distance)) - 1
    count = bias["count"].transpose("layer", "distance").values
    weight = count[:, None, :]
    n = _sums(count, starts)

    def values(name: str) -> np.ndarray:
        return np.nan_to_num(bias[name].transpose("layer", "head", "distance").values.astype(np.float64))

    def mean(name: str) -> np.ndarray:
        return ratio(_sums(values(name) * weight, starts), n[:, None, :])

    def extreme(name: str, merge: np.ufunc, neutral: float) -> np.ndarray:
        filled = np.where(weight > 0, values(name), neutral)
        return np.where(n[:, None, :] > 0, merge.reduceat(filled, starts, axis=-1), np.nan)

    def share(name: str) -> np.ndarray:
        return np.where(n[:, None, :] > 0, _sums(values(name), starts), np.nan)

    dims = ("layer", "head", "distance_bin")
    weighted = [name for name in ("attention_value_mean", "attention_value_share") if name in bias]
    merged = {
        "attention_mean": mean("attention_mean"),
        "attention_share": share("attention_share"),
        **{name: mean(name) if name.endswith("mean") else share(name) for name in weighted},
        "score_mean": mean("score_mean"),
        "score_min": extreme("score_min", np.minimum, np.inf),
        "score_max": extreme("score_max", np.maximum, -np.inf),
    }
    return xr.Dataset(
        {name: (dims, array, bias[name].attrs) for name, array in merged.items()}
        | {"count": (("layer", "distance_bin"), n, bias["count"].attrs), "window": bias["window"]},
        coords={
            "layer": bias["layer"],
            "head": bias["head"],
            "first_distance": ("distance_bin", distance[starts], {"units": "token"}),
            "last_distance": ("distance_bin", distance[last], {"units": "token"}),
        },
    )


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


def bin_starts(distance: np.ndarray, per_octave: int) -> np.ndarray:
    """Indices into ascending distances at which a new bin begins; bins of negative distances mirror the others."""
    top = max(int(distance[-1]), -int(distance[0]), 1)
    grid = 2.0 ** (np.arange(0, per_octave * (np.log2(top) + 1) + 1) / per_octave)
    edges = np.unique(np.concatenate([[0.0], np.ceil(grid)]))
    edges = np.concatenate([1 - edges[:0:-1], edges])
    return np.unique(np.searchsorted(distance, edges[edges <= distance[-1]]))


def _sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Sums over the bins along the last axis."""
    return np.add.reduceat(values, starts, axis=-1)


def ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Total / count, NaN where nothing was counted."""
    return np.divide(total, count, out=np.full(np.broadcast(total, count).shape, np.nan), where=count > 0)
