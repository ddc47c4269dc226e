"""A needle in a haystack: a sentence planted in a long text and asked for at its end."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from hooks import checks
from hooks.errors import InputError, TextError
from interp.texts.texts import ReadsText, Text, as_text, standard_text, tokenise

_SENTENCE = "\nThe best thing to do in Lisbon is to eat a warm custard tart on the steps of the old cathedral.\n"
_QUESTION = "\n\nQuestion: what is the best thing to do in Lisbon?\nAnswer:"


@dataclass(frozen=True)
class Needle:
    """Tokens with a needle in them that come once more, as the answer, at the end.

    Attributes:
        tokens: what the model is to read, [pos].
        needle: the planted sentence.
        answer: its repetition after the question; the query before each of its tokens has to predict that token.
    """

    tokens: Int[Tensor, " pos"]
    needle: slice
    answer: slice


def plant_needle(
    model: ReadsText,
    n_tokens: int,
    depth: float = 0.5,
    *,
    sentence: str = _SENTENCE,
    question: str = _QUESTION,
    haystack: str | Text | None = None,
) -> Needle:
    """Put a sentence into a long text, and a question and the same sentence after it.

    Args:
        model: its tokenizer cuts the texts; a beginning-of-sequence token comes first where it wants one.
        n_tokens: tokens in all.
        depth: where the sentence goes, from 0 (begin) to 1 (end of the haystack).
        sentence: the needle.
        question: what asks for it.
        haystack: what surrounds it; None is the standard text.

    Raises:
        InputError: a depth outside 0 … 1, an empty needle, or too few tokens for needle, question and answer.
        TextError: an empty haystack, or one that is too short.
    """
    depth, n_tokens = checks.share("depth", depth), checks.whole("n_tokens", n_tokens, at_least=1)
    if not callable(getattr(model, "to_tokens", None)):
        raise InputError(f"model={checks.shown(model)}: give a model that reads text")
    sentence, question = checks.text("sentence", sentence), checks.text("question", question)
    needle, asked = (model.to_tokens(text, prepend_bos=False)[0].cpu() for text in (sentence, question))
    if not len(needle):
        raise InputError(f"sentence={sentence!r} has no tokens: give the sentence that is to be found again")
    rest = n_tokens - 2 * len(needle) - len(asked)
    if rest < 2:
        raise InputError(f"n_tokens={n_tokens}: needle, question and answer alone take {n_tokens - rest}; give more")
    hay = tokenise(model, standard_text() if haystack is None else as_text(haystack), rest)[0][0].cpu()
    if len(hay) < rest:
        raise TextError(
            f"the haystack has {len(hay):,} tokens and n_tokens={n_tokens:,} needs {rest:,}: give a longer one, or "
            "None for the standard text, which repeats"
        )
    at = 1 + round(depth * (len(hay) - 1))
    tokens = torch.cat([hay[:at], needle, hay[at:], asked, needle])
    return Needle(tokens, slice(at, at + len(needle)), slice(len(tokens) - len(needle), len(tokens)))
