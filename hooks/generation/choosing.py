"""How the next token is chosen from its logits: the most likely one, or a draw.

Source: transformers 5.23.0, ``generation/logits_process.py``, whose warpers are used in the order of its ``generate``.
"""

from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooks import checks
from hooks.errors import InputError

Choose = Callable[[Int[Tensor, "batch pos"], Float[Tensor, "batch d_vocab"]], Int[Tensor, " batch"]]


def next_token_rule(
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Choose:
    """A function ``(tokens so far, logits) -> next tokens``.

    Greedy at temperature 0: argmax. Above it, one draw for each row from softmax(logits / temperature), of which top_k
    keeps the k largest logits, and top_p then the fewest tokens whose probabilities sum to p or more.

    Args:
        temperature: divides the logits; 0 draws nothing.
        top_k: how many tokens may be drawn; all when None.
        top_p: how much probability may be drawn, above 0 and at most 1; all when None.
        generator: what draws; torch's global one when None.

    Raises:
        InputError: a value out of range, or a choice among draws where nothing is drawn.
    """
    temperature = checks.number("temperature", temperature, at_least=0)
    if top_k is not None:
        top_k = checks.whole("top_k", top_k, at_least=1)
    if top_p is not None:
        top_p = checks.number("top_p", top_p, above=0, at_most=1)
    if generator is not None:
        checks.instance("generator", generator, torch.Generator, "a torch.Generator, or leave it out")
    if temperature == 0:
        for name, value in (("top_k", top_k), ("top_p", top_p), ("generator", generator)):
            if value is not None:
                raise InputError(
                    f"{name}={checks.shown(value)} changes nothing where the most likely token is taken: give a "
                    "temperature above 0, or leave it out"
                )
        return lambda tokens, logits: logits.argmax(-1)

    from transformers.generation import logits_process

    warpers = logits_process.LogitsProcessorList()
    if temperature != 1:
        warpers.append(logits_process.TemperatureLogitsWarper(temperature))
    if top_k is not None:
        warpers.append(logits_process.TopKLogitsWarper(top_k))
    if top_p is not None and top_p < 1:
        warpers.append(logits_process.TopPLogitsWarper(top_p))

    def draw(tokens: Tensor, logits: Tensor) -> Tensor:
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return torch.multinomial(
            warpers(cast(torch.LongTensor, tokens), cast(torch.FloatTensor, wide)).softmax(-1), 1, generator=generator
        )[:, 0]

    return draw
