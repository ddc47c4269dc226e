"""Words around numbers: what a variable says of itself (units, formula, source), and lists of numbers in short."""

from typing import TypeVar

import xarray as xr

Labelled = TypeVar("Labelled", xr.DataArray, xr.Dataset)


def described(array: xr.DataArray, units: str, description: str, formula: str, source: str = "") -> xr.DataArray:
    """The array with the attributes that every variable carries."""
    attrs = {"units": units, "description": description, "formula": formula}
    return array.assign_attrs(attrs | ({"source": source} if source else {}))


def result_of(analysis: str, result: Labelled, description: str) -> Labelled:
    """The result, marked with the analysis that made it, by which `interp.plots.show` picks its figure."""
    return result.assign_attrs(analysis=analysis, description=description)
