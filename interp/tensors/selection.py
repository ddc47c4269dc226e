"""Which layers, and which part of a captured tensor by position and head."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from hooks import checks
from hooks.errors import PositionError, StageError
from interp.common.words import number_ranges

Choice = int | slice | Sequence[int] | None


def layer_numbers(layers: int | Iterable[int]) -> tuple[int, ...]:
    """Layers, one or several, of Python's, numpy's or torch's kind, as plain ints; each once, in the order given.

    Raises:
        StageError: something that is no whole number.
    """
    return checks.wholes("layers", layers, error=StageError)


def head_numbers(heads: int | Iterable[int] | None, n_heads: int) -> tuple[int, ...]:
    """Heads, one or several, as plain ints; each once, in the order given; None is all of them.

    Raises:
        StageError: something that is no whole number, no head at all, or one that is not there.
    """
    if heads is None:
        return tuple(range(n_heads))
    chosen = checks.wholes("heads", heads, error=StageError)
    if not chosen:
        raise StageError("no head was asked for: name at least one")
    for head in chosen:
        if not 0 <= head < n_heads:
            raise StageError(f"no head {head}: the heads are 0 to {n_heads - 1}")
    return chosen


def asked_layers(held: Sequence[int], layers: int | Iterable[int] | None) -> tuple[int, ...]:
    """The layers asked for, which None leaves at all that are held.

    Raises:
        StageError: none, or something that is no whole number.
    """
    chosen = tuple(held) if layers is None else layer_numbers(layers)
    if not chosen:
        raise StageError(
            f"no layer was asked for: name at least one of {number_ranges(held) or 'none'}, or leave out layers for all"
        )
    return chosen


def part_of(
    tensor: Float[Tensor, "pos head d_head"], positions: Choice, heads: Choice
) -> Float[Tensor, "chosen_pos chosen_head d_head"]:
    """The chosen positions and heads; every axis stays, and runs of either are views that copy nothing.

    Raises:
        PositionError: a position or head that is not there.
    """
    rows = _index(positions, tensor.shape[0], "position")
    columns = _index(heads, tensor.shape[1], "head")
    return tensor[rows][:, columns]


def _index(choice: Choice, size: int, what: str) -> slice | list[int]:
    """A slice where the choice is one, else a list of indices."""
    if choice is None:
        return slice(None)
    if isinstance(choice, slice):
        ends = [end for end in (choice.start, choice.stop, choice.step) if end is not None]
        whole = all(isinstance(end, int | np.integer) and not isinstance(end, bool) for end in ends)
        if not whole or (choice.step is not None and choice.step < 1):
            raise PositionError(f"{what}s {checks.shown(choice)}: give a slice of whole numbers, with a step above 0")
        return choice
    chosen = _indices(choice)
    if chosen is None:
        raise PositionError(f"{what}s {checks.shown(choice)}: give an index, a slice, or several indices")
    for i in chosen:
        if not -size <= i < size:
            raise PositionError(f"no {what} {i}: the capture holds {size:,}, 0 to {size - 1:,}")
    if chosen and chosen == list(range(chosen[0], chosen[0] + len(chosen))) and chosen[0] >= 0:
        return slice(chosen[0], chosen[-1] + 1)
    return chosen


def _indices(choice: int | Sequence[int]) -> list[int] | None:
    """Indices as plain ints, each as often as it was given; None for anything else."""
    try:
        given = np.atleast_1d(np.asarray(choice))
    except (TypeError, ValueError, RuntimeError):
        return None
    if given.ndim != 1 or (given.size and not np.issubdtype(given.dtype, np.integer)):
        return None
    return [int(i) for i in given]
