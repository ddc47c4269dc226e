"""Which tokens of a capture: by index, slice, list of indices, or the piece of text that they spell."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from hooks.checks import shown
from hooks.errors import InputError, PositionError, TextError
from interp.tensors.capture_data import CaptureData, check_capture

TokenChoice = int | slice | str | Sequence[int] | np.ndarray | Tensor
_SHOWN = 8


def chosen_tokens(cap: CaptureData, which: TokenChoice, what: str) -> Int[Tensor, " chosen"]:
    """Indices of the chosen tokens, in the order in which they were given.

    Args:
        cap: the capture whose tokens are meant.
        which: an index (from the end when negative), a slice, several indices, or a text that occurs once.
        what: "queries" or "keys", for errors.

    Raises:
        PositionError: an index that is not in the capture.
        TextError: a text that does not occur, or more than once; the message lists where.
        InputError: anything else.
    """
    n = len(check_capture(cap).positions)
    if isinstance(which, str):
        return torch.arange(n)[text_span(cap, which)]
    try:
        if isinstance(which, slice):
            return torch.from_numpy(np.arange(n)[which].copy())
        indices = np.atleast_1d(np.asarray(which))
        # An empty list is of no type, and asks for nothing.
        fits = indices.ndim == 1 and (np.issubdtype(indices.dtype, np.integer) or (which == [] or which == ()))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what}={shown(which)}: give an index, a slice, or a list of indices") from error
    if fits and indices.size == 0:
        return torch.empty(0, dtype=torch.int64)
    if not fits:
        raise InputError(f"{what}={shown(which)}: give an index, a slice, a list of indices, or a piece of the text")
    outside = indices[(indices < -n) | (indices >= n)]
    if outside.size:
        raise PositionError(f"{what}: index {outside[0]} is outside this capture of {n:,} tokens")
    return torch.from_numpy(indices.astype(np.int64) % n)


def text_span(cap: CaptureData, text: str) -> slice:
    """The tokens that a piece of text touches; it must occur exactly once.

    Raises:
        TextError: the text is empty, does not occur, or occurs more than once; or the tokens have no strings.
    """
    if not cap.str_tokens or cap.str_tokens == [str(i) for i in cap.tokens.tolist()]:
        raise TextError(f"cannot look for {text!r}: this capture has token ids but no strings; choose by index instead")
    if not text:
        raise TextError("cannot look for an empty text; choose by index instead")
    found = _occurrences(cap.str_tokens, text)
    if not found:
        raise TextError(
            f"{text!r} does not occur in this capture, which begins {''.join(cap.str_tokens[:12])!r}; "
            "str_tokens shows how the text was cut (spaces belong to the next token)"
        )
    if len(found) > 1:
        places = ", ".join(f"{s.start}:{s.stop}" for s in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise TextError(f"{text!r} occurs {len(found)} times, at tokens {places}{more}: choose one by slice")
    return found[0]


def _occurrences(strings: Sequence[str], text: str) -> list[slice]:
    """Every place where the joined token strings hold the text, as the tokens that it touches."""
    ends = np.cumsum([len(s) for s in strings])
    joined, found, at = "".join(strings), [], -1
    while (at := joined.find(text, at + 1)) >= 0:
        first = int(np.searchsorted(ends, at, side="right"))
        last = int(np.searchsorted(ends, at + len(text) - 1, side="right"))
        found.append(slice(first, last + 1))
    return found
