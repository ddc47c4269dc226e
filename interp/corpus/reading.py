"""Records read as Datasets: a variable of an analysis over the texts, read and computed when it is looked at."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from interp.analyses.position.received import PARTS
from interp.analyses.position.sinks import SINK_THRESHOLD
from interp.common.labels import result_of
from interp.common.schema import COORDINATES
from interp.corpus.analyses import ANALYSES
from interp.corpus.kept import Statistic, lined_up
from interp.corpus.plan import Plan
from interp.corpus.records import HEADER, Place, Records
from interp.corpus.store import CorpusStore

# Numbers of a field that are read at a time.
_BUDGET = 2**24
TEXT = {"units": "", "description": "the text's name"}


@dataclass(frozen=True)
class Reader:
    """The records of the texts that were measured.

    Attributes:
        store: where they are.
        plan: what they hold.
        records: how.
        numbers: numbers of the texts, in order.
    """

    store: CorpusStore
    plan: Plan
    records: Records
    numbers: tuple[int, ...]

    def header(self) -> dict[str, np.ndarray]:
        """What is known of each text, by the names of `HEADER`."""
        found = self.store.read(self.numbers, 0, len(HEADER))
        return dict(zip(HEADER, found.T, strict=True))

    def tokens(self, number: int) -> list[int]:
        """Token ids of a text."""
        place = self.records.tokens
        row = self.store.read([number], place.start, place.stop)[0]
        return [int(token) for token in row if token >= 0]

    def field(
        self, analysis: str, name: str, texts: Sequence[int] | np.ndarray | None = None, layers: slice = slice(None)
    ) -> np.ndarray:
        """A field of some texts, [text, …], of some of its layers where it has layers.

        Args:
            analysis: whose field.
            name: which.
            texts: places among the texts that were measured; None is all.
            layers: a run of layers by place.
        """
        place = self.records.places[analysis, name]
        numbers = self.numbers if texts is None else [self.numbers[at] for at in texts]
        if "layer" in ANALYSES[analysis].fields[name].dims:
            first, last, _ = layers.indices(place.shape[0])
            inner = prod(place.shape[1:])
            start = place.start + first * inner
            place = Place(start, (max(last - first, 0), *place.shape[1:]))
        found = self.store.read(numbers, place.start, place.stop)
        return found.reshape(len(numbers), *place.shape)

    def fields(
        self, analysis: str, statistic: Statistic, texts: Any = None, layers: slice = slice(None)
    ) -> list[np.ndarray]:
        """The fields of a statistic, lined up with its dimensions."""
        known = ANALYSES[analysis].fields
        return [
            lined_up(self.field(analysis, name, texts, layers), known[name], statistic.variable.dims)
            for name in statistic.fields
        ]

    def shape(self, statistic: Statistic) -> tuple[int, ...]:
        """Length of each dimension of a statistic."""
        return tuple(self.records.sizes[dim] for dim in statistic.variable.dims)

    def dataset(self, analysis: str) -> xr.Dataset:
        """The analysis of every text, lazily: a variable is read when it is looked at."""
        kept = ANALYSES[analysis]
        variables = {
            name: xr.Variable(
                ("text", *statistic.variable.dims),
                indexing.LazilyIndexedArray(_Lazy(self, analysis, statistic)),
                statistic.variable.attrs,
            )
            for name, statistic in kept.statistics.items()
        }
        out = xr.Dataset(variables, coords=self.coordinates(analysis))
        out = out.assign_coords(text=("text", [self.plan.texts[n].name for n in self.numbers], TEXT))
        return self.described(analysis, out)

    def described(self, analysis: str, out: xr.Dataset) -> xr.Dataset:
        """A Dataset of an analysis with the window of each layer, and what it is."""
        if "window" not in out and "distance_bin" in out.dims:
            out["window"] = ("layer", list(self.plan.model.windows), {"units": "token", "description": "0 for none"})
        about: dict[str, Any] = {"n_layers": self.plan.model.n_layers, "model": self.plan.model.name}
        about |= {"k": 1, "epsilon": SINK_THRESHOLD} if analysis == "sink_rate" else {}
        return result_of(analysis, out, ANALYSES[analysis].about).assign_attrs(about)

    def coordinates(self, analysis: str) -> dict[str, Any]:
        """Coordinates of the dimensions of an analysis, without the text."""
        dims = {dim for statistic in ANALYSES[analysis].statistics.values() for dim in statistic.variable.dims}
        model, grid = self.plan.model, self.records.grid
        found: dict[str, Any] = {}
        if "layer" in dims:
            found |= {"layer": list(model.layers), "layer_type": ("layer", list(model.layer_types))}
        if "head" in dims:
            found |= {"head": np.arange(model.heads)}
            found |= {"kv_head": ("head", np.arange(model.heads) // (model.heads // model.kv_heads))}
        if "distance_bin" in dims:
            found |= _ends("distance", grid.distances, grid.n_tokens)
        if "position_bin" in dims:
            found |= _ends("position", grid.stretches, grid.n_tokens)
        if "part" in dims:
            found["part"] = list(PARTS)
        return found


def _ends(of: str, starts: np.ndarray, n: int) -> dict[str, Any]:
    """First and last distance or position of each bin."""
    last = np.append(starts[1:], n) - 1
    ends = {f"first_{of}": starts, f"last_{of}": last}
    return {name: (f"{of}_bin", values, COORDINATES[name]) for name, values in ends.items()}


class _Lazy(BackendArray):
    """One statistic of every text, read as far as it is looked at."""

    def __init__(self, reader: Reader, analysis: str, statistic: Statistic):
        self._reader, self._analysis, self._statistic = reader, analysis, statistic
        self.shape = (len(reader.numbers), *reader.shape(statistic))
        self.dtype = np.dtype(np.float64)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        """The wanted texts, then what is wanted of each."""
        wanted, inner = np.arange(self.shape[0])[key[0]], key[1:]
        several = np.atleast_1d(wanted)
        # A block of texts at a time: whoever wants one head of ten thousand texts has no room for all heads of them.
        size = max(1, _BUDGET // max(prod(self.shape[1:]), 1))
        blocks = [several[at : at + size] for at in range(0, len(several), size)]
        parts = [_chosen(self._of(block), inner) for block in blocks] or [_chosen(self._of(several), inner)]
        found = np.concatenate(parts)
        return found if np.ndim(wanted) else found[0]

    def _of(self, texts: np.ndarray) -> np.ndarray:
        """The statistic of some texts."""
        found = self._statistic.compute(*self._reader.fields(self._analysis, self._statistic, texts))
        return np.broadcast_to(found, (len(texts), *self.shape[1:]))


def _chosen(found: np.ndarray, inner: tuple[Any, ...]) -> np.ndarray:
    """What is wanted along each further dimension: an index, which drops it, a slice or several indices."""
    for axis in reversed(range(len(inner))):  # from the last, so that a dropped one moves none that is still to come
        found = found[(slice(None),) * (axis + 1) + (inner[axis],)]
    return found
