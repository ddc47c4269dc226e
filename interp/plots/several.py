"""Several results in one Dataset, as `xr.concat` makes them: averaged with a band, or refused."""

import xarray as xr

from hooks.errors import InputError
from interp.common.words import visible_text
from interp.plots.bands import EDGES

# Dimensions that results have of their own; any other was added by whoever put results side by side.
_PLACE = {
    "layer",
    "head",
    "distance",
    "distance_bin",
    "query",
    "key",
    "position",
    "position_bin",
    "map_query",
    "map_key",
}
_PART = {
    "score_bin",
    "sink_size",
    "pair",
    "variant",
    "stage",
    "q",
    "dtype",
    "shift",
    "part",
    "kind",
    "rank",
    "level",
    "gap",
    "kv_head",
    "segment",
}
_TEXT = {"length", "depth"}
OWN = frozenset(_PLACE | _PART | _TEXT)
_ONCE = ("layer", "head", "variant", "stage", "dtype", "shift", "distance", "length", "depth")
_PLACES = ("first_position", "last_position", "first_distance", "last_distance", "wavelength")


def added(result: xr.Dataset | xr.DataArray, own: frozenset[str] = OWN) -> list[str]:
    """The dimensions that are none of a result's own."""
    return [str(dim) for dim in result.dims if dim not in own]


def check_once(result: xr.Dataset | xr.DataArray) -> None:
    """Raise an InputError where a layer, head or variant occurs twice: a figure would draw one over the other."""
    for dim in _ONCE:
        if dim in result.indexes and not result.indexes[dim].is_unique:
            index = result.indexes[dim]
            raise InputError(
                f"{dim} {visible_text(index[index.duplicated()][0])} occurs more than once: put results side by side "
                'along a dimension of their own, xr.concat([a, b], "text"), or select one of them'
            )


def refuse_added(result: xr.Dataset | xr.DataArray, own: frozenset[str] = OWN) -> None:
    """Raise an InputError for a result whose mean over an added dimension would say nothing."""
    if extra := [dim for dim in added(result, own) if result.sizes[dim] > 1]:
        raise InputError(
            f"{result.attrs.get('analysis')} over {extra[0]} ({result.sizes[extra[0]]} of them) has no mean to draw: "
            f"select one with .isel({extra[0]}=0), or draw each by itself"
        )


def averaged(result: xr.Dataset, own: frozenset[str] = OWN) -> xr.Dataset:
    """The mean over every added dimension, with ``_low`` and ``_high`` beside each variable that has one.

    Args:
        result: a result, or several put side by side.
        own: dimensions that stay.

    Raises:
        InputError: the results do not lie at the same places, so that a mean would mix them.
    """
    extra = added(result, own)
    if not extra:
        return result
    kept: dict[str, xr.DataArray] = {}
    for key, values in result.data_vars.items():
        name, dims = str(key), [dim for dim in extra if dim in values.dims]
        if not dims:
            kept[name] = values
        elif values.dtype.kind in "fiub" and not name.endswith(EDGES):
            low, high = (result.get(f"{name}_{edge}", values) for edge in ("low", "high"))
            kept[name] = values.mean(dims, keep_attrs=True)
            kept[f"{name}_low"], kept[f"{name}_high"] = low.min(dims), high.max(dims)
        elif bool((values == values.isel(dict.fromkeys(dims, 0))).all()):
            kept[name] = values.isel(dict.fromkeys(dims, 0), drop=True)
    out = xr.Dataset(kept, attrs=result.attrs).drop_vars([c for c in extra if c in result.coords], errors="ignore")
    for key, values in result.coords.items():
        dims = [dim for dim in extra if dim in values.dims]
        if not dims or key in extra:
            continue
        first = values.isel(dict.fromkeys(dims, 0), drop=True)
        if bool((values == first).all()):
            out = out.assign_coords({key: first})
        elif key in _PLACES:
            raise InputError(
                f"{key} differs along {dims[0]}, so a mean over it would mix different places: measure the same "
                f"number of tokens, or draw each by itself with .isel({dims[0]}=0)"
            )
    many = [f"{dim} ({result.sizes[dim]})" for dim in extra if result.sizes[dim] > 1]
    said = {"averaged": f"mean over {', '.join(many)}", "band": "lowest to highest"} if many else {}
    return out.assign_attrs(said)


def averaged_array(values: xr.DataArray, own: frozenset[str] = OWN) -> xr.DataArray:
    """`averaged` for one variable, without its band."""
    if not added(values, own):
        return values
    data = averaged(values.rename("values").to_dataset(), own)
    said = {key: data.attrs[key] for key in ("averaged",) if key in data.attrs}
    return data["values"].rename(values.name).assign_attrs(values.attrs | said)
