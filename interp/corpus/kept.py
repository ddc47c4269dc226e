"""What is kept of each text, and what is read from it: numbers that merge exactly, and the statistics made of them.

A statistic is a function of fields. Fields that are sums add up over texts, so a statistic of many texts is the same
function of the sums: a ratio becomes the ratio of sums. Fields that are extremes merge by their extreme.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from interp.common.schema import Variable
from interp.tensors.capture_data import CaptureData

MERGE: dict[str, np.ufunc] = {"sum": np.add, "min": np.minimum, "max": np.maximum}


class Field(NamedTuple):
    """Numbers kept of a text.

    Attributes:
        dims: what they are over, the layer first if that is among them.
        merge: how those of several texts become one: "sum", "min" or "max".
    """

    dims: tuple[str, ...]
    merge: str = "sum"


class Statistic(NamedTuple):
    """What is read from the fields.

    Attributes:
        variable: what it is, its dimensions without the text.
        fields: what it is made of.
        compute: the function of them. Each comes with one dimension in front, of texts or of resamples, and length 1
            along each dimension of the statistic that it lacks.
        bootstrapped: whether an interval says something of it: not of a count, nor of an extreme.
    """

    variable: Variable
    fields: tuple[str, ...]
    compute: Callable[..., np.ndarray]
    bootstrapped: bool = True


class Grid(NamedTuple):
    """The places that every text shares, whatever its length.

    Attributes:
        n_tokens: the most tokens of a text.
        distances: first distance of each bin, ascending from 0.
        stretches: first position of each stretch, ascending from 0.
    """

    n_tokens: int
    distances: np.ndarray
    stretches: np.ndarray


Measured = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Kept:
    """An analysis as a corpus keeps it.

    Attributes:
        fields: by name.
        statistics: by name.
        measure: the fields of one capture.
        about: what the Dataset says it is.
    """

    fields: dict[str, Field]
    statistics: dict[str, Statistic]
    measure: Callable[[CaptureData, Grid], Measured]
    about: str


def ratio(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Total / weight, NaN where nothing was weighed."""
    shape = np.broadcast_shapes(total.shape, weight.shape)
    return np.divide(total, weight, out=np.full(shape, np.nan), where=weight > 0)


def weighted(name: str, variable: Variable) -> tuple[dict[str, Field], Statistic]:
    """The fields and the statistic of a mean: its sum, and the sum of its weights."""
    total, weight = f"{name}_total", f"{name}_weight"
    fields = {total: Field(variable.dims), weight: Field(variable.dims)}
    return fields, Statistic(variable, (total, weight), ratio)


def as_weighted(name: str, mean: np.ndarray, weight: np.ndarray) -> dict[str, np.ndarray]:
    """A mean and its weights as the fields of `weighted`; a mean that is NaN weighs nothing."""
    there = np.isfinite(mean)
    weight = np.where(there, np.broadcast_to(weight, mean.shape), 0.0)
    return {f"{name}_total": np.where(there, mean, 0.0) * weight, f"{name}_weight": weight}


def extreme(variable: Variable, name: str) -> Statistic:
    """The smallest or largest of all texts; NaN where no text has one."""
    return Statistic(variable, (name,), lambda x: np.where(np.isfinite(x), x, np.nan), bootstrapped=False)


def lined_up(values: np.ndarray, field: Field, dims: tuple[str, ...]) -> np.ndarray:
    """A field's numbers, one dimension in front, with length 1 along each dimension that it lacks."""
    sizes = dict(zip(field.dims, values.shape[1:], strict=True))
    return values.reshape(len(values), *(sizes.get(dim, 1) for dim in dims))
