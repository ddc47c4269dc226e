"""Parts of a captured tensor by position and head."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from hooks.errors import PositionError

Choice = int | slice | Sequence[int] | None


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
        return choice
    chosen = [choice] if isinstance(choice, int) else [int(i) for i in choice]
    for i in chosen:
        if not -size <= i < size:
            raise PositionError(f"no {what} {i}: the capture holds {size:,}, 0 to {size - 1:,}")
    if chosen and chosen == list(range(chosen[0], chosen[0] + len(chosen))) and chosen[0] >= 0:
        return slice(chosen[0], chosen[-1] + 1)
    return chosen
