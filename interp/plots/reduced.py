"""What `plots.show` draws of a result that is larger than a figure: distances in bins, or thinned on a log grid."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from interp.common.binning import bin_distances
from interp.plots.base import with_heads

_NEEDED = ("attention_mean", "attention_share", "score_mean", "score_min", "score_max")
_PER_OCTAVE = 4
_STRETCHES = 64


def binned_by_distance(result: xr.Dataset) -> xr.Dataset:
    """Attention by binned distance of a `positional_bias` or statistics Dataset, variants kept.

    Args:
        result: has ``distance`` and either attention_mean or the sums it is made of, attention and count.
    """
    measured = result["attention_mean" if "attention_mean" in result else "attention"]
    beside = [dim for dim in measured.dims if dim not in ("layer", "head", "distance")]
    if beside:
        dim = beside[0]
        parts = [binned_by_distance(result.isel({dim: at}, drop=True)) for at in range(result.sizes[dim])]
        along = result[dim] if dim in result.coords else dim
        return xr.concat(parts, dim=along, data_vars="all", join="outer").assign_attrs(result.attrs)
    bias = result if "attention_mean" in result else _bias(result)
    bias = with_heads(bias).copy()
    bias["count"] = bias["count"].fillna(0)  # beside a longer text: distances that this one does not have
    for name in {"count", "window"} & set(bias):
        if "head" in bias[name].dims:
            bias[name] = bias[name].isel(head=0, drop=True)
    if "layer" not in bias["count"].dims:
        bias["count"] = bias["count"].expand_dims(layer=bias["layer"])
    if "window" not in bias:
        bias = bias.assign(window=("layer", np.zeros(bias.sizes["layer"], dtype=int)))
    binned = bin_distances(bias, _PER_OCTAVE)
    for edge in ("attention_mean_low", "attention_mean_high"):
        if edge in bias:  # merged as the mean itself: for a standard error, errors that all go the same way
            binned[edge] = bin_distances(bias.assign(attention_mean=bias[edge]), _PER_OCTAVE)["attention_mean"]
    return binned.assign_attrs({key: value for key, value in bias.attrs.items() if key == "band"} | result.attrs)


def binned_by_position(result: xr.Dataset, names: Sequence[str], dim: str, most: int = _STRETCHES) -> xr.Dataset:
    """Variables along the text in stretches: mean, and the lowest and highest of each as their band.

    Args:
        result: has the variables over ``dim``.
        names: which variables.
        dim: ``query``, ``key`` or ``position``.
        most: stretches, of equal length; no more than there are tokens.
    """
    n = result.sizes[dim]
    starts = np.unique(np.linspace(0, n, min(most, n) + 1).astype(int))[:-1]
    out = {}
    for name in names:
        values = result[name].transpose(..., dim)
        numbers = values.values.astype(np.float64)
        if values.dtype.kind == "i":
            numbers = np.where(numbers < 0, np.nan, numbers)  # −1 says that there is none
        for edge, stretch in zip(("", "_low", "_high"), _stretches(numbers, starts), strict=True):
            out[name + edge] = ((*values.dims[:-1], "position_bin"), stretch, values.attrs)
    at = result[dim].values if dim in result.coords else np.arange(n)
    coords = {str(name): value for name, value in result.coords.items() if dim not in value.dims}
    places = {
        "first_position": ("position_bin", at[starts], {"units": "token"}),
        "last_position": ("position_bin", at[np.append(starts[1:], n) - 1], {"units": "token"}),
    }
    said = (
        {"band": f"lowest to highest of a stretch, up to {-(-n // len(starts)):,} tokens long"}
        if len(starts) < n
        else {}
    )
    return xr.Dataset(out, coords | places, result.attrs | said)


def with_share_used(bounds: xr.Dataset) -> xr.Dataset:
    """A `bound_by_distance` Dataset with ``used``: the largest score of the text as a share of the bound."""
    largest = bounds["score_max"]
    if bounds["bound"].attrs.get("side", "both") == "both":
        largest = np.maximum(np.abs(bounds["score_min"]), np.abs(largest))
    return bounds.assign(used=largest / bounds["bound"])


def thinned(result: xr.Dataset) -> xr.Dataset:
    """The Dataset at about eight distances per doubling: a selection, every number is the Dataset's own."""
    if "distance" not in result.dims:
        return result
    distance = result["distance"].values
    ahead = np.flatnonzero(distance >= 0)
    grid = np.unique(np.round(2.0 ** np.arange(0, np.log2(max(distance[-1], 1)) + 0.125, 0.125)).astype(np.int64))
    wanted = np.searchsorted(distance, np.concatenate([[0], grid, distance[-1:]]))
    return result.isel(distance=np.unique(np.clip(wanted, ahead[0] if len(ahead) else 0, len(distance) - 1)))


def _bias(statistics: xr.Dataset) -> xr.Dataset:
    """Mean attention and share by distance from the sums of a pass."""
    count, attention = statistics["count"], statistics["attention"]
    seen = count > 0
    means = {
        "attention_mean": attention / count.where(seen),
        "attention_share": (attention / attention.sum("distance")).where(seen),
    }
    kept = {name: statistics[name] for name in (*_NEEDED[2:], "count")}
    if "attention_stderr" in statistics:
        error = statistics["attention_stderr"] / count.where(seen)
        means |= {
            "attention_mean_low": means["attention_mean"] - error,
            "attention_mean_high": means["attention_mean"] + error,
        }
        return xr.Dataset(means | kept, attrs={"band": "± standard error, at most"})
    return xr.Dataset(means | kept)


def _stretches(values: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, smallest and largest finite number of each run along the last axis; NaN where a run has none."""
    there = np.isfinite(values)
    count = np.add.reduceat(there.astype(np.int64), starts, axis=-1)
    total = np.add.reduceat(np.where(there, values, 0.0), starts, axis=-1)
    low = np.minimum.reduceat(np.where(there, values, np.inf), starts, axis=-1)
    high = np.maximum.reduceat(np.where(there, values, -np.inf), starts, axis=-1)
    some = count > 0
    mean = np.divide(total, count, out=np.full(total.shape, np.nan), where=some)
    return mean, np.where(some, low, np.nan), np.where(some, high, np.nan)
