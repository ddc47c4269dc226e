"""Distances merged into bins of equal width on a log axis; exact, because sums and counts add."""

import numpy as np
import xarray as xr

from interp.common.schema import COORDINATES


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
            "first_distance": ("distance_bin", distance[starts], COORDINATES["first_distance"]),
            "last_distance": ("distance_bin", distance[last], COORDINATES["last_distance"]),
        },
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
