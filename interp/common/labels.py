"""Words around numbers: results get those of their tables here, and the name of the analysis that made them."""

from collections.abc import Collection
from typing import TypeVar

import xarray as xr

from hooks.errors import InputError
from interp.common.schema import COORDINATES, Table, Variable

Labelled = TypeVar("Labelled", xr.DataArray, xr.Dataset)


def labelled(result: xr.Dataset, table: Table, **settings: object) -> xr.Dataset:
    """The Dataset with the words of its table, so that no variable leaves its analysis without them.

    Args:
        result: the numbers. Other attributes of a variable stay; a coordinate that says something of itself keeps it.
        table: what the variables are; one that is not in it is a KeyError.
        settings: what the table's texts leave open.
    """
    result = result.copy()
    for name, values in result.data_vars.items():
        besides = {key: said for key, said in values.attrs.items() if key not in Variable._fields}
        values.attrs = table[str(name)].at(**settings).attrs | besides
    for name, values in result.coords.items():
        values.attrs = values.attrs or COORDINATES.get(str(name), {})
    return result


def check_one_result(name: str, values: xr.DataArray, dims: Collection[str]) -> None:
    """Raise an InputError where results of several texts or captures stand side by side.

    Args:
        name: of the argument.
        values: one of its variables.
        dims: the dimensions of one result.
    """
    further = [str(dim) for dim in values.dims if dim not in dims]
    if further:
        raise InputError(
            f"{name} has the dimension {further[0]} of several results: give one of them, .isel({further[0]}=0), or "
            f"their mean, .mean({further[0]!r}, keep_attrs=True); of a corpus, corpus.mean(analysis)"
        )


def result_of(analysis: str, result: Labelled, description: str) -> Labelled:
    """The result, marked with the analysis that made it, by which `interp.plots.show` picks its figure."""
    return result.assign_attrs(analysis=analysis, description=description)
