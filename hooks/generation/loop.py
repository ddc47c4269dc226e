"""The loop that native and attached models share: read, choose, append."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooks.errors import InputError
from hooks.generation.choosing import Choose
from hooks.generation.key_values import KeepsKeyValues, KeyValueCache, same_rotation
from hooks.generation.stopping import Finished


class Predicts(KeepsKeyValues, Protocol):
    """A model that says what comes next."""

    def next_logits(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        attention_mask: Bool[Tensor, "batch pos"] | None = None,
        past: KeyValueCache | None = None,
    ) -> Float[Tensor, "batch d_vocab"]:
        """Logits after the last token."""
        ...


@dataclass(frozen=True)
class Plan:
    """How tokens are generated.

    Attributes:
        max_new_tokens: at most so many.
        choose: the next token of each row.
        finished: which rows are; None where none ever is.
        fill: what stands in a row after it has finished.
        past: what the model has read before; None where every step reads all tokens again.
    """

    max_new_tokens: int
    choose: Choose
    finished: Finished | None
    fill: int
    past: KeyValueCache | None


@torch.no_grad()
def generated(
    model: Predicts, tokens: Int[Tensor, "batch pos"], real: Bool[Tensor, "batch pos"] | None, plan: Plan
) -> Iterator[Int[Tensor, "batch 1"]]:
    """Yield the next token of every row, one after another.

    With a cache every step reads only what is new, unless the frequencies of a schedule that depends on the length of
    the text have changed: then it reads all again, as those keys were rotated by others.

    Args:
        model: what predicts.
        tokens: what stands before.
        real: False where a token is padding.
        plan: how.
    """
    done = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    past, read = plan.past, 0
    for _ in range(plan.max_new_tokens):
        if past is not None and read:
            length = past.next_position + tokens.shape[1] - read
            if not same_rotation(model.cfg, past.rope_length, length):
                past, read = KeyValueCache(model), 0
        mask = None if real is None else real[:, read:]
        logits = model.next_logits(tokens[:, read:], attention_mask=mask, past=past)
        chosen = plan.choose(tokens, logits)
        chosen = torch.where(done, plan.fill, chosen)[:, None]
        read = 0 if past is None else tokens.shape[1]
        tokens = torch.cat([tokens, chosen], 1)
        if real is not None or bool(done.any()):
            before = torch.ones_like(tokens[:, :-1], dtype=torch.bool) if real is None else real
            real = torch.cat([before, ~done[:, None]], 1)
        yield chosen
        if plan.finished is not None:
            done = done | plan.finished(tokens)
            if bool(done.all()):
                return


def check_padded_left(real: Bool[Tensor, "batch pos"] | None) -> None:
    """Raise an InputError where padding stands elsewhere than in front of a row.

    Args:
        real: False where a token is padding.
    """
    if real is None:
        return
    wrong = ~real[:, -1] | (real[:, :-1] & ~real[:, 1:]).any(1)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise InputError(
            f"row {row} of attention_mask has padding after its first token, or nothing else: pad on the left, so that "
            "what is generated follows the text"
        )


def stop_after(stream: Iterator[Any], progress: Any) -> Iterator[Any]:
    """The items of a stream, each counted by a progress bar that is closed at the end."""
    with progress:
        for item in stream:
            progress.update(1)
            yield item
