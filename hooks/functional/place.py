"""Where queries and keys stand in a sequence."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Place:
    """Where queries and keys stand: masks go by index, ALiBi and hooks by position.

    Args:
        query_start: Index of the first query among the keys (chunked runs).
        key_mask: True where a key is real; None when all are.
        query_positions: Positions of the queries in tokens; by default their indices.
        key_positions: Positions of the keys in tokens; by default their indices.
        documents: Indices of the keys at which documents begin, of which none sees another; as
            `hooks.config.attention_spec.AttentionSpec.seen` takes them. None is one document.
    """

    query_start: int = 0
    key_mask: Bool[Tensor, "batch key"] | None = None
    query_positions: Int[Tensor, "*batch query"] | None = None
    key_positions: Int[Tensor, "*batch key"] | None = None
    documents: Int[Tensor, "*batch document"] | None = None

    def plain(self) -> "Place":
        """The same place without a mask that hides nothing, and positions as [n] where all batch rows have the same."""
        hides = self.key_mask is not None and not bool(self.key_mask.all())
        return replace(
            self,
            key_mask=self.key_mask.bool() if self.key_mask is not None and hides else None,
            query_positions=_shared(self.query_positions),
            key_positions=_shared(self.key_positions),
            documents=_shared(self.documents),
        )

    def positions(
        self, rows: slice, keys: slice, device: torch.device
    ) -> tuple[Int[Tensor, "*batch row"], Int[Tensor, "*batch key"]]:
        """Positions of some queries and of some keys."""
        return (
            _part(self.query_positions, rows, self.query_start, device),
            _part(self.key_positions, keys, 0, device),
        )

    def texts(self, n_queries: int, n_keys: int, device: torch.device) -> Int[Tensor, "*batch query"] | None:
        """Which document of its row each query is in, counted from 0, −1 where it is padding.

        None where keys stand before the queries, so that the rest of their text is not among them.
        """
        if n_queries != n_keys:
            return None
        numbers = torch.arange(n_keys, device=device)
        if self.documents is None:
            numbers = torch.zeros_like(numbers)
        else:
            starts = self.documents.to(device).contiguous()
            numbers = torch.searchsorted(starts, numbers.expand(*starts.shape[:-1], -1).contiguous(), right=True) - 1
        return numbers if self.key_mask is None else numbers.where(self.key_mask.bool(), -1)


FROM_START = Place()


def _part(
    positions: Int[Tensor, "*batch n"] | None, part: slice, start: int, device: torch.device
) -> Int[Tensor, "*batch part"]:
    """A run of positions, by default counted from start."""
    if positions is None:
        return torch.arange(start + part.start, start + part.stop, device=device)
    return positions[..., part]


def _shared(positions: Int[Tensor, "*batch n"] | None) -> Int[Tensor, "*batch n"] | None:
    """Positions, or starts of documents, as [n] when every batch row has the same ones."""
    if positions is None or positions.ndim != 2:
        return positions
    # One row, or one expanded to many: known without a look at the device.
    alike = positions.shape[0] == 1 or positions.stride(0) == 0
    return positions[0] if alike or bool((positions == positions[:1]).all()) else positions
