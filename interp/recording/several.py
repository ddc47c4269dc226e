"""Several texts in one call: each row of them by itself, as a capture of one text reads it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from hooks import checks
from hooks.base.inputs import padding_mask, token_ids
from hooks.base.padding import warn_of_padding
from hooks.errors import InputError, TextError
from interp.texts.texts import Text


def rows_of(model: Any, given: Any, attention_mask: Any = None) -> list[Any] | None:
    """The texts or rows of ids that were given, without padding; None where it is one text or one row.

    Positions of a padded row count from its first real token, as the model has them, so what is left of it when the
    padding goes is a text like any other.

    Args:
        model: whose ids they are.
        given: what `interp.capture` was given.
        attention_mask: 0 where a token id is padding.

    Raises:
        InputError: a mask beside texts, or one that does not fit.
        TextError: nothing to read.
    """
    texts = isinstance(given, list | tuple) and any(isinstance(each, str | Text) for each in given)
    if attention_mask is None:
        if isinstance(given, list | tuple) and not given:
            raise TextError("there is nothing to read: give a text, token ids, or several of either")
        if texts or _is_ragged(given):
            return list(given)
        if not isinstance(given, Tensor | np.ndarray) or given.ndim != 2:
            return None
        if isinstance(given, Tensor):
            warn_of_padding(given, model.tokenizer)
        return None if len(given) == 1 else list(given)
    if texts or isinstance(given, str | Text):
        raise InputError("attention_mask is for token ids: texts are read one by one, without padding; leave it out")
    ids = token_ids(given, model.cfg.d_vocab, model.device)
    mask = attention_mask[None] if isinstance(attention_mask, Tensor) and attention_mask.ndim == 1 else attention_mask
    real = padding_mask(mask, ids)
    return list(ids) if real is None else [row[kept] for row, kept in zip(ids, real, strict=True)]


def _is_ragged(given: Any) -> bool:
    """Whether this is a list of rows of ids, more than one."""
    rows = (list, tuple, np.ndarray, Tensor)
    return (
        isinstance(given, list | tuple)
        and len(given) > 1
        and all(isinstance(row, rows) and getattr(row, "ndim", 1) == 1 for row in given)
    )


def positions_of(positions: Any, n_rows: int, *, masked: bool) -> list[Any]:
    """The positions of each row: one entry a row, or the same for all.

    Raises:
        InputError: another number of rows, or positions of a padded batch, which are counted.
    """
    if positions is None:
        return [None] * n_rows
    if masked:
        raise InputError(
            f"positions={checks.shown(positions)}: those of a padded batch count from each row's first real token; "
            "leave positions out, or capture rows of packed documents one by one"
        )
    shared = isinstance(positions, Tensor | np.ndarray) and positions.ndim == 1
    if shared or (isinstance(positions, Sequence) and all(_is_one(each) for each in positions)):
        return [positions] * n_rows
    try:
        each = list(positions)
    except TypeError:
        each = []
    if len(each) != n_rows:
        raise InputError(f"positions={checks.shown(positions)}: give a row of them for each of the {n_rows} texts")
    return each


def _is_one(value: Any) -> bool:
    """Whether this is one position and not a row of them."""
    return isinstance(value, int) or len(getattr(value, "shape", (1,))) == 0
