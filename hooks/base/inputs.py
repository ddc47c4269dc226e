"""What a forward pass may be given: token ids, positions and a padding mask, checked once for both kinds of model."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hooks.checks import shown
from hooks.errors import InputError

_IDS = (torch.int64, torch.int32)


def token_ids(tokens: Any, d_vocab: int, device: torch.device) -> Int[Tensor, "batch pos"]:
    """Token ids as [batch pos] on a device.

    Args:
        tokens: [batch pos] or [pos], as a tensor of int64 or int32, an array or a list.
        d_vocab: how many ids there are.
        device: where they go.

    Raises:
        InputError: no ids, ids of another type or shape, or outside the vocabulary.
    """
    if isinstance(tokens, list | tuple) and tokens and isinstance(tokens[0], str):
        raise InputError(f"tokens={shown(tokens)}: give one text, or the ids of several as one tensor [batch, pos]")
    ids = _as_tensor("tokens", tokens, device, "integer ids of shape [batch, pos]")
    ids = ids[None] if ids.ndim == 1 else ids
    if ids.ndim != 2 or ids.numel() == 0 or ids.dtype not in _IDS:
        hint = "" if ids.dtype in _IDS or ids.is_floating_point() else "; tokens.long() makes int64 of whole numbers"
        raise InputError(
            f"tokens must be integer ids of shape [batch, pos], int64 or int32, not {ids.dtype} {tuple(ids.shape)}"
            f"{hint}"
        )
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= d_vocab:
        raise InputError(f"token id {low if low < 0 else high} is outside this model's vocabulary of {d_vocab}")
    return ids


def any_ids(tokens: Any, d_vocab: int, device: torch.device) -> Int[Tensor, "*batch pos"]:
    """Token ids of any shape, one id or none among them, on a device.

    Raises:
        InputError: something else, or an id outside the vocabulary.
    """
    ids = _as_tensor("tokens", tokens, device, "token ids")
    if ids.is_meta or ids.is_sparse or (ids.numel() and ids.dtype not in _IDS) or isinstance(tokens, bool):
        raise InputError(f"tokens={shown(tokens)}: give token ids, int64 or int32")
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= d_vocab):
        raise InputError(f"tokens={shown(tokens)}: this model's ids go from 0 to {d_vocab - 1}")
    return ids.long()


def looked_up(embed: nn.Module, tokens: Any) -> Float[Tensor, "batch pos d_model"]:
    """The embeddings of token ids; looks at no id itself, for which a device would be waited for."""
    if not isinstance(tokens, Tensor) or tokens.dtype not in _IDS or tokens.is_sparse:
        raise InputError(f"tokens={shown(tokens)}: give a tensor of token ids, int64 or int32")
    try:
        return embed(tokens)
    except IndexError as error:
        raise InputError(f"tokens={shown(tokens)}: an id is outside this model's vocabulary") from error


def check_resid(name: str, resid: Any, d_model: int, dtype: torch.dtype) -> Float[Tensor, "... d_model"]:
    """A residual stream: a tensor of the model's width and type."""
    if not isinstance(resid, Tensor) or resid.dtype != dtype or resid.is_sparse or resid.shape[-1:] != (d_model,):
        raise InputError(f"{name}={shown(resid)}: give a {dtype} tensor whose last axis has the model's {d_model}")
    return resid


def padding_mask(attention_mask: Any, tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"] | None:
    """Which tokens are real, or None when all are.

    Args:
        attention_mask: bool, or 1 and 0; one a token.
        tokens: give shape and device.

    Raises:
        InputError: no tensor, another shape, or other values: numbers of packed documents, or an additive mask.
    """
    if attention_mask is None:
        return None
    if not isinstance(attention_mask, Tensor):
        raise InputError(f"attention_mask={shown(attention_mask)}: give a tensor of 0 and 1, or bool, one per token")
    if attention_mask.shape != tokens.shape:
        raise InputError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, tokens {tuple(tokens.shape)}; "
            "give one 0 or 1 per token"
        )
    mask = attention_mask.to(tokens.device)
    real = mask == 1
    other = mask[~(real | (mask == 0))]
    # Zeros alone in a floating type are an additive mask that hides nothing, the opposite of what they would say here.
    if other.numel() or (mask.is_floating_point() and not bool(real.any())):
        found = other[0].item() if other.numel() else "only 0.0"
        raise InputError(
            f"attention_mask holds {found} ({mask.dtype}): give 1 (or True) where a token is real and 0 where it is "
            "padding; documents packed into one row, and additive masks, cannot be said with it"
        )
    return None if bool(real.all()) else real


def token_positions(
    position_ids: Any,
    tokens: Int[Tensor, "batch pos"],
    real: Bool[Tensor, "batch pos"] | None,
    name: str = "position_ids",
) -> Int[Tensor, "batch pos"]:
    """Position of each token: those given, or counted from 0, or from the first token that is not padding.

    Args:
        position_ids: [batch pos], [1 pos] or [pos].
        tokens: give shape and device.
        real: False where a token is padding.
        name: what they were given as.

    Raises:
        InputError: another shape or type, or a negative position.
    """
    if position_ids is None:
        if real is not None:
            return (real.long().cumsum(-1) - 1).clamp(min=0)
        return torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
    positions = _as_tensor(name, position_ids, tokens.device, "integers ≥ 0, one per token")
    if positions.shape not in (tokens.shape, tokens.shape[1:], (1, tokens.shape[1])):
        raise InputError(f"{name} has shape {tuple(positions.shape)}, tokens {tuple(tokens.shape)}")
    whole = not (positions.is_floating_point() or positions.is_complex() or positions.dtype == torch.bool)
    if not whole or bool((positions < 0).any()):
        lowest = f" from {positions.min().item()}" if whole else ""
        raise InputError(f"{name} must be integers ≥ 0, not {positions.dtype}{lowest}")
    return positions.long().expand(tokens.shape)


def packed_documents(
    positions: Int[Tensor, "batch pos"], real: Bool[Tensor, "batch pos"] | None, *, masked: bool
) -> Int[Tensor, "batch document"] | None:
    """Where the documents begin that are packed into each row: a position that does not rise starts a new one.

    With an attention_mask there are none, as in transformers, which tells documents by their positions only where it is
    given no mask. Positions that jump forward are gaps in one text; in transformers without a mask they part it too, so
    gaps beside documents are refused.

    Args:
        positions: of each token, as they were given.
        real: False where a token is padding.
        masked: an attention_mask was given.

    Returns:
        Indices ascending from 0, filled up with the number of tokens where a row has fewer documents than another; None
        where each row is one text.

    Raises:
        InputError: positions that fall where there is an attention_mask, or that both start again and have gaps.
    """
    step = positions.diff()
    again = step < 0 if masked else step <= 0
    if real is not None:
        again &= real[:, 1:] & real[:, :-1]
    if not bool(again.any()):
        return None
    row, at = again.nonzero()[0].tolist()
    found = f"position_ids go from {int(positions[row, at])} to {int(positions[row, at + 1])} inside row {row}"
    if masked:
        raise InputError(
            f"{found}, which starts a new document, and there is an attention_mask, with which packed documents see "
            "each other in transformers: leave attention_mask out, or give each document a row of its own"
        )
    if bool((step > 1).any()):
        gap, to = (step > 1).nonzero()[0].tolist()
        raise InputError(
            f"{found}, which starts a new document, and from {int(positions[gap, to])} to "
            f"{int(positions[gap, to + 1])} inside row {gap}, which may be a gap or a document: give positions that "
            "rise by 1 within each document"
        )
    n = positions.shape[1]
    begins = torch.nn.functional.pad(again, (1, 0), value=True)
    starts = torch.arange(n, device=positions.device).expand_as(begins).masked_fill(~begins, n).sort().values
    return starts[:, : int(begins.sum(1).max())]


def predicted_tokens(
    tokens: Int[Tensor, "batch pos"],
    real: Bool[Tensor, "batch pos"] | None,
    documents: Int[Tensor, "batch document"] | None = None,
) -> Bool[Tensor, "batch pos-1"] | None:
    """Which tokens after the first follow another of their own text, and so are predicted; None where all are."""
    if real is None and documents is None:
        return None
    pairs = torch.ones_like(tokens[:, 1:], dtype=torch.bool)
    if real is not None:
        pairs &= real[:, 1:] & real[:, :-1]
    if documents is not None:
        # A row that has fewer documents names an index past its end.
        begins = torch.zeros(len(tokens), tokens.shape[1] + 1, dtype=torch.bool, device=tokens.device)
        pairs &= ~begins.scatter_(1, documents.to(tokens.device), True)[:, 1:-1]
    return pairs


def check_predicts(tokens: Int[Tensor, "batch pos"], predicted: Bool[Tensor, "batch pos-1"] | None) -> None:
    """Raise an InputError where no token is predicted from another, so that there is no mean loss."""
    if not (tokens.shape[1] > 1 if predicted is None else bool(predicted.any())):
        raise InputError(
            f"no loss: none of the tokens {tuple(tokens.shape)} follows another of its text that is not padding; give "
            "two or more"
        )


def _as_tensor(name: str, given: Any, device: torch.device, what: str) -> Tensor:
    """A tensor on a device, whatever it came as."""
    try:
        return torch.as_tensor(given, device=device)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"{name}={shown(given)}: give {what}") from error
