"""When a row of generated tokens is finished: at a token that ends texts, or at a string.

Source: transformers 5.23.0, ``generation/stopping_criteria.py``, whose criteria are used.
"""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hooks import checks
from hooks.errors import InputError, TokenizerError

Finished = Callable[[Int[Tensor, "batch pos"]], Bool[Tensor, " batch"]]


def ending_tokens(eos_token_id: Any, tokenizer: Any, d_vocab: int) -> tuple[int, ...]:
    """Ids of the tokens that end a text: those given, else the tokenizer's, else none."""
    if eos_token_id is None:
        eos_token_id = None if tokenizer is None else tokenizer.eos_token_id
    return () if eos_token_id is None else checks.wholes("eos_token_id", eos_token_id, at_least=0, at_most=d_vocab - 1)


def finish_rule(tokenizer: Any, stop: str | Iterable[str] | None, eos: tuple[int, ...]) -> Finished | None:
    """A function ``tokens so far -> which rows are finished``, or None where nothing finishes one.

    Args:
        tokenizer: needed for `stop`.
        stop: a row is finished with the token that completes one of these strings.
        eos: a row is finished with one of these tokens.

    Raises:
        InputError: an empty string, or something else than strings.
        TokenizerError: strings, and no tokenizer, or one whose tokens transformers cannot compare with them.
    """
    strings = () if stop is None else checks.words("stop", stop)
    if stop is not None and not strings:
        raise InputError("stop is empty: give one or several strings, or leave it out")
    if strings and tokenizer is None:
        raise TokenizerError(f"stop={checks.shown(stop)} needs a tokenizer: set model.tokenizer, or give eos_token_id")
    if not strings and not eos:
        return None

    from transformers.generation import stopping_criteria

    criteria = stopping_criteria.StoppingCriteriaList()
    if eos:
        criteria.append(stopping_criteria.EosTokenCriteria(list(eos)))
    if strings:
        try:
            criteria.append(stopping_criteria.StopStringCriteria(tokenizer, list(strings)))
        except (ValueError, AttributeError, TypeError) as error:
            raise TokenizerError(
                f"stop={checks.shown(stop)}: transformers cannot look for strings in the tokens of this tokenizer "
                f"({error}): give eos_token_id, or cut the text afterwards"
            ) from error
    return lambda tokens: criteria(cast(torch.LongTensor, tokens), None)


def filler(tokenizer: Any, eos: tuple[int, ...], *, needed: bool) -> int:
    """The token that fills a finished row: the tokenizer's padding, else one that ends texts.

    Raises:
        TokenizerError: there is neither, and one is needed.
    """
    padding = None if tokenizer is None else tokenizer.pad_token_id
    if padding is None and not eos and needed:
        raise TokenizerError(
            "rows may finish at different lengths, and the tokenizer has neither a padding nor an EOS token to fill "
            "them with: set tokenizer.pad_token, or generate one row at a time"
        )
    return padding if padding is not None else next(iter(eos), 0)
