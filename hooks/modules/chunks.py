"""A long text some positions at a time, so that what is made on the way is never as long as the text.

What works on each position by itself, as norms and activations do, gives the same bits in pieces. So does a matrix
product only where the library takes the same path for fewer rows; pieces are therefore cut at the same places whether
hooks look on or not, and a text that fits into one piece is not cut at all.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hooks.modules.hook_point import HookPoint

PIECE_BYTES = 16 * 2**20  # of the largest tensor made of a piece


def positions_at_once(width: int, like: Tensor, itemsize: int | None = None) -> int:
    """How many positions of a batch make a piece, where the largest tensor on the way has so many features.

    Args:
        width: features of a position in that tensor.
        like: gives the number of rows in the batch, and the bytes of a number.
        itemsize: those, if they are others.
    """
    return max(PIECE_BYTES // (like.shape[0] * width * (itemsize or like.element_size()) or 1), 256)


def by_position(
    work: Callable[..., Tensor],
    *tensors: Tensor,
    at_once: int,
    unless_watched: tuple[nn.Module, ...] = (),
    out: Tensor | None = None,
) -> Tensor:
    """``work(*tensors)`` for what works on each position by itself, some positions at a time.

    Args:
        work: gives one tensor with as many positions as its arguments.
        tensors: [batch pos ...].
        at_once: the most positions of a piece.
        unless_watched: what works in it; where a hook is on one of these, everything goes through at once.
        out: takes the result where there are pieces and no gradient is taken: a tensor that nobody else looks at, one
            of the arguments too.
    """
    n = tensors[0].shape[1]
    if n <= at_once or torch.compiler.is_compiling() or is_watched(*unless_watched):
        return work(*tensors)
    pieces = (work(*piece) for piece in zip(*(x.split(at_once, 1) for x in tensors), strict=True))
    if torch.is_grad_enabled():
        return torch.cat(list(pieces), 1)
    done = 0
    for piece in pieces:
        if out is None:
            out = piece.new_empty(piece.shape[0], n, *piece.shape[2:])
        out[:, done : done + piece.shape[1]] = piece
        done += piece.shape[1]
    assert out is not None, "a text has a position"
    return out


def is_watched(*modules: nn.Module) -> bool:
    """Whether a hook, ours or torch's own, is on one of these modules or on a part of one."""
    for module in modules:
        for part in module.modules():
            if isinstance(part, HookPoint) and part.has_hooks():
                return True
            if has_torch_hooks(part):
                return True
    return False


def has_torch_hooks(module: nn.Module) -> bool:
    """Whether a hook of torch's own is on this very module."""
    kinds = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(kinds)
