"""Layers side by side: Datasets of single layers become one Dataset, and an error says which layer it is about."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import xarray as xr

from hooks.errors import InputError
from interp.common.schema import COORDINATES


def stack_layers(datasets: Mapping[int, xr.Dataset]) -> xr.Dataset:
    """Align the layers' Datasets on their outer coordinates and stack them.

    Where a layer lacks a coordinate (a distance beyond its window, say), floats become NaN, counts 0 and
    other whole numbers −1, so that whole numbers stay whole.
    """
    number, first = next(iter(datasets.items()))
    if len(datasets) == 1:  # most are asked for one by one, and of one layer nothing needs to be aligned
        variables = {name: (("layer", *v.dims), v.values[None], v.attrs) for name, v in first.data_vars.items()}
        layer = xr.IndexVariable("layer", np.asarray([number], dtype=np.int64), COORDINATES["layer"])
        return xr.Dataset(variables, {"layer": layer, **first.coords}, first.attrs)
    fill = {name: _missing(str(name), variable.dtype) for name, variable in first.variables.items()}
    stacked = xr.concat(
        list(datasets.values()),
        dim=xr.IndexVariable("layer", np.asarray(list(datasets), dtype=np.int64), COORDINATES["layer"]),
        data_vars="all",
        coords="minimal",
        compat="override",
        join="outer",
        fill_value=fill,
        combine_attrs="override",
    )
    return stacked


@contextmanager
def named_layer(layer: int) -> Iterator[None]:
    """Say in an InputError which layer's tensors it is about."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"layer {layer}: {error}") from error


def _missing(name: str, dtype: np.dtype) -> object:
    """What stands for 'this layer has no such cell'."""
    if not np.issubdtype(dtype, np.integer):
        return np.nan
    return 0 if name.endswith("count") else -1
