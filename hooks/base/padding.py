"""Texts of unequal length in one batch: padded to one length, with the mask that says what is real."""

import warnings
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hooks.checks import choice
from hooks.errors import InputError, TokenizerError, TokenizerWarning

Side = Literal["left", "right"]
SIDES = ("left", "right")


def padded(
    rows: list[list[int]], tokenizer: Any, side: Any, device: torch.device
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Rows of token ids as one tensor, and 1 where a token is real, 0 where it is padding.

    Args:
        rows: ids, one list a text.
        tokenizer: its padding token fills the rows, or where it has none its EOS token.
        side: where the padding goes; the tokenizer's own side when None.
        device: where both go.

    Raises:
        InputError: another side, or a row without a token among others.
        TokenizerError: rows of unequal length, and neither a padding nor an EOS token.
    """
    side = choice("padding_side", getattr(tokenizer, "padding_side", "right") if side is None else side, SIDES)
    most = max(map(len, rows))
    if min(map(len, rows)) == most:
        ids = torch.tensor(rows, dtype=torch.long, device=device)
        return ids, torch.ones_like(ids)
    empty = next((number for number, row in enumerate(rows) if not row), None)
    if empty is not None:
        raise InputError(f"text {empty} of {len(rows)} has no tokens, and its row would be padding alone: leave it out")
    fill = _filling(tokenizer)
    ids = [torch.tensor(row, device=device) for row in rows]
    return (
        pad_sequence(ids, batch_first=True, padding_value=fill, padding_side=side),
        pad_sequence([torch.ones_like(row) for row in ids], batch_first=True, padding_side=side),
    )


def _filling(tokenizer: Any) -> int:
    """The token that padding is made of; it is not attended to, whichever it is."""
    for name in ("pad_token_id", "eos_token_id"):
        token = getattr(tokenizer, name, None)
        if token is not None:
            return int(token)
    raise TokenizerError(
        "the texts have different lengths, and the tokenizer has neither a padding nor an EOS token to fill them up "
        "with: set tokenizer.pad_token"
    )


def warn_of_padding(ids: Int[Tensor, "batch pos"], tokenizer: Any) -> None:
    """Say so where ids that come without a mask begin or end with the tokenizer's padding token.

    Args:
        ids: what a model is to read.
        tokenizer: one whose padding token means nothing else; another, or None, says nothing.
    """
    pad = getattr(tokenizer, "pad_token_id", None)
    others = (getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "unk"))
    if pad is None or pad in others or ids.shape[1] < 2:
        return
    if bool((ids[:, [0, -1]] == pad).any()):
        warnings.warn(
            f"the tokens {tuple(ids.shape)} begin or end with the padding token {tokenizer.pad_token!r}, which is read "
            "as text where there is no attention_mask: give the texts themselves, or ids and mask of model.to_batch",
            TokenizerWarning,
            stacklevel=4,
        )
