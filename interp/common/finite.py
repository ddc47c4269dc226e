"""The refusal of what is not finite."""

import torch
from torch import Tensor

from hooks.errors import InputError


def check_finite(*, rows: str = "row", of: str = "", **tensors: Tensor | None) -> None:
    """Raise an InputError that says where one of the tensors, [row head d_head] or [row d_head], first is not finite.

    Args:
        rows: what a row is called.
        of: whose tensors they are, put before their names.
        **tensors: by the names that the error gives them; None is left out.
    """
    for name, x in tensors.items():
        # Least and largest carry NaN and infinity, without a tensor of booleans of the size of x.
        if x is not None and not bool(torch.isfinite(torch.stack(torch.aminmax(x))).all()):
            row, *head = (~torch.isfinite(x)).nonzero()[0].tolist()[:-1]
            where = f"{rows} {row}" + "".join(f", head {index}" for index in head)
            raise not_finite(f"{of}{name} holds NaN or infinity, first at {where}")


def not_finite(what: str) -> InputError:
    """The error for numbers that are not finite, with what to do about it."""
    return InputError(
        f"{what}: nothing can be measured. Look for an overflow upstream, or capture in float32 or bfloat16"
    )
