"""Documents packed into one row: where they begin, by positions that count from 0 in each."""

from itertools import pairwise

import torch
from jaxtyping import Int
from torch import Tensor

from hooks.errors import InputError


def document_starts(positions: Int[Tensor, " pos"]) -> Int[Tensor, " document"] | None:
    """Indices at which documents begin, ascending from 0; None where all tokens are one text."""
    starts = (positions == 0).nonzero()[:, 0]
    return starts if len(starts) > 1 else None


def counted_positions(starts: Int[Tensor, " document"] | None, n_tokens: int) -> Int[Tensor, " pos"]:
    """Positions that count from 0 in each document."""
    index = torch.arange(n_tokens)
    return index if starts is None else index - starts[torch.searchsorted(starts, index, right=True) - 1]


def check_counted(positions: Int[Tensor, " pos"]) -> None:
    """Raise an InputError unless positions count from 0, in steps of 1, in each document."""
    wrong = (positions != counted_positions(document_starts(positions), len(positions))).nonzero()[:, 0]
    if not len(positions) or int(positions[0]):
        raise InputError(f"positions begin with {positions[:1].tolist()}: a capture counts each document from 0")
    if len(wrong):
        at = int(wrong[0])
        raise InputError(
            f"positions go from {int(positions[at - 1])} to {int(positions[at])} at token {at}: a capture counts each "
            "document from 0 in steps of 1"
        )


def document_slices(starts: Int[Tensor, " document"] | None, n_tokens: int) -> list[slice]:
    """Which tokens each document has; all where there is one."""
    edges = [0] if starts is None else starts.tolist()
    return [slice(*ends) for ends in pairwise([*edges, n_tokens])]
