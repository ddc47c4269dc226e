"""Which keys each query sees, as intervals: every mask rule (causal, window, padding) is one run of the kept keys."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hooks.config.attention_spec import AttentionSpec
from hooks.errors import InputError


@dataclass(frozen=True)
class Visibility:
    """Rows of queries and the run of keys that each sees; padding keys are left out, so a run has no holes.

    Attributes:
        row: which row of q each entry is, ascending; only rows that see a key are listed.
        key: which row of k each kept key is, ascending.
        query_index: index in the sequence, by which masks go.
        query_position: position, by which distances go.
        key_position: positions of the kept keys.
        first: first kept key that the query sees.
        stop: one past the last.
        n_queries: rows of q, seen or not.
        n_keys: rows of k, padding included.
    """

    row: Int[Tensor, " row"]
    key: Int[Tensor, " kept"]
    query_index: Int[Tensor, " row"]
    query_position: Int[Tensor, " row"]
    key_position: Int[Tensor, " kept"]
    first: Int[Tensor, " row"]
    stop: Int[Tensor, " row"]
    n_queries: int
    n_keys: int

    @classmethod
    def of(
        cls,
        spec: AttentionSpec,
        query_position: Int[Tensor, " query"],
        key_position: Int[Tensor, " key"],
        query_start: int = 0,
        key_mask: Bool[Tensor, " key"] | None = None,
        documents: Int[Tensor, " document"] | None = None,
    ) -> "Visibility":
        """Apply the mask rules of `spec` to queries from index `query_start` on and keys from index 0 on.

        Where documents begin inside, at these indices of keys, a query sees none but its own.
        """
        device = query_position.device
        n_queries, n_keys = query_position.numel(), key_position.numel()
        index = torch.arange(query_start, query_start + n_queries, device=device)
        kept = torch.arange(n_keys, device=device)
        if key_mask is not None:
            kept = kept[key_mask]
        first, stop = (torch.searchsorted(kept, edge) for edge in spec.seen(index, n_keys, documents))
        row = (stop > first).nonzero()[:, 0]
        return cls(
            row=row,
            key=kept,
            query_index=index[row],
            query_position=query_position[row],
            key_position=key_position[kept],
            first=first[row],
            stop=stop[row],
            n_queries=n_queries,
            n_keys=n_keys,
        )

    def select(self, rows: Int[Tensor, " chosen"]) -> "Visibility":
        """Only these rows of q (repeats stay repeats); those that see nothing drop out."""
        where = torch.full((self.n_queries,), -1, device=self.row.device)
        where[self.row] = torch.arange(self.row.numel(), device=self.row.device)
        at = where[rows]
        at = at[at >= 0]
        names = ("row", "query_index", "query_position", "first", "stop")
        return replace(self, **{name: getattr(self, name)[at] for name in names})

    def apart(self, documents: Int[Tensor, " document"] | None) -> "list[tuple[slice, Visibility]]":
        """Each document as it would be alone, and which of the kept keys are its own; everything where there is one.

        Rows and keys keep their numbers, so that what is added up by key or by map cell stays where it belongs.
        """
        if documents is None:
            return [(slice(0, self.key.numel()), self)]
        edges = torch.nn.functional.pad(documents, (0, 1), value=self.n_keys)
        ends, parts = torch.searchsorted(self.key, edges).tolist(), []
        number = torch.searchsorted(documents, self.query_index, right=True) - 1
        names = ("row", "query_index", "query_position", "first", "stop")
        for i, (low, high) in enumerate(pairwise(ends)):
            own = replace(self, **{name: getattr(self, name)[number == i] for name in names})
            key = {name: getattr(self, name)[low:high] for name in ("key", "key_position")}
            parts.append((slice(low, high), replace(own, first=own.first - low, stop=own.stop - low, **key)))
        return parts

    @cached_property
    def host(self) -> "Visibility":
        """The same on the CPU, where a block is laid out without waiting for a device."""
        if self.row.is_cpu:
            return self
        held = {each.name: getattr(self, each.name) for each in fields(self)}
        return replace(self, **{name: x.cpu() for name, x in held.items() if isinstance(x, Tensor)})

    @cached_property
    def keys_in_step(self) -> bool:
        """Kept keys follow each other without a gap, in index and in position."""
        return _in_step(self.host.key) and _in_step(self.host.key_position)

    @cached_property
    def distance_range(self) -> tuple[int, int]:
        """Smallest (at most 0) and largest distance that a visible pair can have.

        Raises:
            InputError: positions lie so far apart that an array over every distance would be mostly empty.
        """
        if not self.row.numel():
            return 0, 0
        if self.host is not self:
            return self.host.distance_range
        position = self.key_position
        ends = torch.stack([position[self.first], position[self.stop - 1]])
        if not bool((position.diff() >= 0).all()):
            ends = torch.stack([position.min(), position.max()])[:, None]
        distance = self.query_position - ends
        low, high = min(int(distance.min()), 0), max(int(distance.max()), 0)
        if high - low > 16 * (self.n_queries + self.n_keys) + 65536:
            raise InputError(
                f"distances reach from {low} to {high} for {self.n_queries} queries and {self.n_keys} keys: an array "
                "over every distance would be mostly empty. Give query_positions and key_positions that follow the "
                'tokens, or leave "distances" out of groups.'
            )
        return low, high

    def blocks(self, height: int) -> Iterator[slice]:
        """Runs of at most `height` rows."""
        for start in range(0, self.row.numel(), height):
            yield slice(start, min(start + height, self.row.numel()))

    def band(self, rows: slice) -> slice:
        """The run of kept keys that at least one of the rows sees."""
        return slice(int(self.host.first[rows].min()), int(self.host.stop[rows].max()))

    def band_width(self, height: int) -> int:
        """Keys of the widest band of a block of `height` rows."""
        if not self.row.numel():
            return 1
        start = torch.arange(0, self.row.numel(), height, device="cpu")
        last = (start + height).clamp_max(self.row.numel()) - 1
        return int((self.host.stop[last] - self.host.first[start]).max())  # both only grow from row to row

    def in_step(self, rows: slice) -> bool:
        """One more row and one more key keep the distance: the block's diagonals are its distances."""
        queries = self.host.query_index[rows], self.host.query_position[rows]
        return self.keys_in_step and all(map(_in_step, queries))

    def hidden(self, rows: slice, keys: slice) -> list[tuple[slice, Bool[Tensor, "row strip"]]]:
        """The strips of a block where some row does not see some key, with True where hidden."""
        first, stop = self.first[rows, None] - keys.start, self.stop[rows, None] - keys.start
        width = keys.stop - keys.start
        left = min(int(self.host.first[rows].max()) - keys.start, width)
        right = max(int(self.host.stop[rows].min()) - keys.start, 0)
        edges = [(0, left), (max(right, left), width)]
        strips = []
        for low, high in edges:
            if low < high:
                column = torch.arange(low, high, device=first.device)
                strips.append((slice(low, high), (column < first) | (column >= stop)))
        return strips

    def distances(self, rows: slice, keys: slice) -> Int[Tensor, "row key"]:
        """Query position − key position of a block."""
        return self.query_position[rows, None] - self.key_position[keys]


def reach(spec: AttentionSpec, n: int) -> tuple[int, int]:
    """Smallest and largest distance at which a query of n tokens sees a key, in indices."""
    index = torch.arange(n)
    first, stop = spec.seen(index, n)
    return int((index - stop).min()) + 1, int((index - first).max())


def _in_step(x: Int[Tensor, " n"]) -> bool:
    """Each value is one more than the last."""
    return bool((x.diff() == 1).all())
