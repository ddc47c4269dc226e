"""How the numbers of a text lie in its record: a run of float64, whose places follow from the plan alone.

A record begins with what is known of the text (`HEADER`), then its token ids, then the fields of each analysis one
after another, and ends with the mark that it is whole.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

import numpy as np

from interp.analyses.position.received import PARTS
from interp.corpus.analyses import ANALYSES
from interp.corpus.kept import Field, Grid
from interp.corpus.places import grid_of
from interp.corpus.plan import Plan

HEADER = ("tokens", "loss_total", "loss_count", "seconds")
# The last number of a record that was written to its end.
WHOLE = 20261126.0
_MISSING_TOKEN = -1


class Place(NamedTuple):
    """Where a field lies in a record: from its first number on, so many along each of its dimensions."""

    start: int
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        """One past its last number."""
        return self.start + prod(self.shape)


@dataclass(frozen=True)
class Records:
    """The layout of every record of a corpus."""

    plan: Plan

    @cached_property
    def grid(self) -> Grid:
        """The bins that all texts share."""
        return grid_of(self.plan.n_tokens)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Length of every dimension of a field."""
        return {
            "layer": len(self.plan.model.layers),
            "head": self.plan.model.heads,
            "distance_bin": len(self.grid.distances),
            "position_bin": len(self.grid.stretches),
            "part": len(PARTS),
        }

    @cached_property
    def tokens(self) -> Place:
        """Where the token ids are."""
        return Place(len(HEADER), (self.plan.n_tokens,))

    @cached_property
    def places(self) -> dict[tuple[str, str], Place]:
        """Where each field of each analysis is."""
        found, start = {}, self.tokens.stop
        for analysis, name, field in self._fields():
            place = Place(start, tuple(self.sizes[dim] for dim in field.dims))
            found[analysis, name], start = place, place.stop
        return found

    @cached_property
    def length(self) -> int:
        """Numbers in a record, the mark among them."""
        return max((place.stop for place in self.places.values()), default=self.tokens.stop) + 1

    def packed(
        self, header: Mapping[str, float], tokens: np.ndarray, measured: Mapping[str, Mapping[str, np.ndarray]]
    ) -> np.ndarray:
        """One record.

        Args:
            header: the numbers of `HEADER`.
            tokens: token ids, at most as many as the plan says.
            measured: the fields of each analysis.
        """
        record = np.full(self.length, np.nan)
        record[: len(HEADER)] = [header[name] for name in HEADER]
        record[self.tokens.start : self.tokens.stop] = _MISSING_TOKEN
        record[self.tokens.start : self.tokens.start + len(tokens)] = tokens
        for (analysis, name), place in self.places.items():
            values = np.asarray(measured[analysis][name], dtype=np.float64)
            if values.shape != place.shape:
                raise AssertionError(f"{analysis}.{name} has shape {values.shape}, and its record {place.shape}")
            record[place.start : place.stop] = values.ravel()
        record[-1] = WHOLE
        return record

    def _fields(self) -> Iterator[tuple[str, str, Field]]:
        """Every field, analysis by analysis."""
        for analysis in self.plan.analyses:
            for name, field in ANALYSES[analysis].fields.items():
                yield analysis, name, field
