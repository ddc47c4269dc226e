"""What `plots.show` draws of a result that is larger than a figure: distances in bins, or thinned on a log grid."""

import numpy as np
import xarray as xr

from interp.common.binning import bin_distances
from interp.plots.base import with_heads

_NEEDED = ("attention_mean", "attention_share", "score_mean", "score_min", "score_max")
_PER_OCTAVE = 4


def binned_by_distance(result: xr.Dataset) -> xr.Dataset:
    """Attention by binned distance of a `positional_bias` or statistics Dataset, variants kept.

    Args:
        result: has ``distance`` and either attention_mean or the sums it is made of, attention and count.
    """
    if "variant" in result.dims:
        parts = [binned_by_distance(result.sel(variant=name, drop=True)) for name in result["variant"].values]
        return xr.concat(parts, dim=result["variant"], data_vars="all", join="outer")
    bias = result if "attention_mean" in result else _bias(result)
    bias = with_heads(bias).copy()
    for name in {"count", "window"} & set(bias):
        if "head" in bias[name].dims:
            bias[name] = bias[name].isel(head=0, drop=True)
    if "layer" not in bias["count"].dims:
        bias["count"] = bias["count"].expand_dims(layer=bias["layer"])
    if "window" not in bias:
        bias = bias.assign(window=("layer", np.zeros(bias.sizes["layer"], dtype=int)))
    return bin_distances(bias, _PER_OCTAVE).assign_attrs(result.attrs)


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
    return xr.Dataset(means | kept)
