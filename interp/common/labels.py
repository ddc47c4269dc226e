"""The one place in which results get their words: variables those of their table, coordinates those of all results."""

import xarray as xr

from interp.common.schema import COORDINATES, Table, Variable


def result_of(analysis: str, result: xr.Dataset, table: Table, description: str, **settings: object) -> xr.Dataset:
    """The Dataset as its analysis returns it: labelled, and marked with what made it.

    Args:
        analysis: the name by which `interp.plots.show` picks the figure.
        result: the numbers.
        table: what the variables are.
        description: what the whole is, in one line.
        settings: what the table's texts leave open.
    """
    return labelled(result, table, **settings).assign_attrs(analysis=analysis, description=description)


def labelled(result: xr.Dataset, table: Table, **settings: object) -> xr.Dataset:
    """The Dataset with the words of its table; a variable that is not in it is a KeyError.

    Other attributes of a variable stay. A coordinate that says something of itself already keeps it.
    """
    result = result.copy()
    for name, values in result.data_vars.items():
        besides = {key: said for key, said in values.attrs.items() if key not in Variable._fields}
        values.attrs = table[str(name)].at(**settings).attrs | besides
    for name, values in result.coords.items():
        values.attrs = values.attrs or COORDINATES.get(str(name), {})
    return result
