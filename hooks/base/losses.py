"""The loss of a model's predictions: −log p of each next token, a few hundred positions of logits at a time."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from hooks.checks import shown
from hooks.errors import InputError

ReturnType = Literal["logits", "loss", "both"]
LOGIT_BYTES = 256 * 2**20  # logits alive at once when only the loss is wanted
_PIECE_BYTES = 16 * 2**20  # of them whose −log p is taken at once: memory that is used again, not asked for anew


def check_return_type(return_type: Any) -> None:
    """Raise an InputError unless a forward pass can return this."""
    if return_type is not None and not (isinstance(return_type, str) and return_type in get_args(ReturnType)):
        raise InputError(f"return_type {shown(return_type)} is not one of 'logits', 'loss', 'both', None")


def next_token_nll(
    logits: Callable[[int, int], Float[Tensor, "batch part d_vocab"]],
    tokens: Int[Tensor, "batch pos"],
    *,
    d_vocab: int,
    dtype: torch.dtype,
    at_once: bool = False,
    recompute: bool = False,
) -> Float[Tensor, "batch pos-1"]:
    """−log p of each next token in nats, in the wider of the model's type and float32.

    Args:
        logits: Gives the logits of the positions from its first argument up to its second.
        tokens: Token ids.
        d_vocab: Size of the vocabulary.
        dtype: Type in which the model computes.
        at_once: Ask for all positions together, because ``logits`` cannot give some.
        recompute: Compute logits once more in the backward pass, where all together would not fit.
    """
    wide = torch.promote_types(dtype, torch.float32)
    last = tokens.shape[1] - 1
    rows = last if at_once else LOGIT_BYTES // (wide.itemsize * d_vocab * tokens.shape[0])

    def nll(start: int, stop: int) -> Tensor:
        found = logits(start, stop).to(wide).flatten(0, 1)
        targets = tokens[:, start + 1 : stop + 1].to(found.device)
        few = max(_PIECE_BYTES // (wide.itemsize * d_vocab), 1)
        pieces = zip(found.split(few), targets.flatten().split(few), strict=True)
        return torch.cat([functional.cross_entropy(*piece, reduction="none") for piece in pieces]).view_as(targets)

    parts = []
    for start in range(0, last, max(rows, 1)):
        part = start, min(start + max(rows, 1), last)
        parts.append(checkpoint(nll, *part, use_reentrant=False) if recompute else nll(*part))
    return torch.cat(parts, 1) if parts else torch.empty(tokens.shape[0], 0, dtype=wide, device=tokens.device)


def mean_loss(nll: Float[Tensor, "batch pos-1"], predicted: Bool[Tensor, "batch pos-1"] | None) -> Float[Tensor, ""]:
    """Mean over the tokens that are predicted from one of their own text, see `inputs.predicted_tokens`."""
    return nll.mean() if predicted is None else nll[predicted.to(nll.device)].mean()


def where_predicted(
    nll: Float[Tensor, "batch pos-1"], predicted: Bool[Tensor, "batch pos-1"] | None
) -> Float[Tensor, "batch pos-1"]:
    """The losses, NaN where a token is padding, follows padding, or is the first of a packed document."""
    return nll if predicted is None else nll.masked_fill(~predicted.to(nll.device), torch.nan)
