"""A needle in a haystack: a sentence planted in a long text and asked for at its end."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooks import checks
from hooks.errors import InputError, TextError
from interp.texts.texts import ReadsText, Text, as_text, standard_text, tokenise

SENTENCE = "\nThe best thing to do in Lisbon is to eat a warm custard tart on the steps of the old cathedral.\n"
QUESTION = "\n\nQuestion: what is the best thing to do in Lisbon?\nAnswer:"


@dataclass(frozen=True)
class Needle:
    """Tokens with a needle in them, and at their end the answer to a question about it.

    Attributes:
        tokens: what the model is to read, [pos].
        needle: the planted sentence.
        answer: what follows the question: the sentence again, or another answer to it. The query before each of its
            tokens has to predict that token.
    """

    tokens: Int[Tensor, " pos"]
    needle: slice
    answer: slice

    @property
    def predicting(self) -> slice:
        """The queries that have to predict the answer's tokens."""
        return slice(self.answer.start - 1, self.answer.stop - 1)

    def answer_loss(self, loss: Float[Tensor, "*one predicted"]) -> float:
        """Mean loss of the answer's tokens, in nats.

        Args:
            loss: the loss of each predicted token, as ``model.loss_per_token(needle.tokens)`` or a capture's ``loss``.

        Raises:
            InputError: another number of tokens.
        """
        if loss.numel() != len(self.tokens) - 1:
            raise InputError(
                f"loss has shape {tuple(loss.shape)}, and the needle's {len(self.tokens):,} tokens have "
                f"{len(self.tokens) - 1:,} predicted ones: give model.loss_per_token(needle.tokens)"
            )
        return float(loss.detach().reshape(-1)[self.predicting].mean())


def plant_needle(
    model: ReadsText,
    n_tokens: int,
    depth: float = 0.5,
    *,
    sentence: str = SENTENCE,
    question: str = QUESTION,
    answer: str | None = None,
    haystack: str | Text | None = None,
) -> Needle:
    """Put a sentence into a long text, and a question and its answer after it.

    Args:
        model: its tokenizer cuts the texts; a beginning-of-sequence token comes first where it wants one.
        n_tokens: tokens in all.
        depth: where the sentence goes, from 0 (begin) to 1 (end of the haystack).
        sentence: the needle.
        question: what asks for it.
        answer: what answers the question, such as " 4815" of "The code is 4815."; None is the whole sentence again.
        haystack: what surrounds it; None is the standard text.

    Raises:
        InputError: a depth outside 0 … 1, an empty needle or answer, or too few tokens for needle, question and answer.
        TextError: an empty haystack, or one that is too short.
    """
    depth, n_tokens = checks.share("depth", depth), checks.whole("n_tokens", n_tokens, at_least=1)
    if not callable(getattr(model, "to_tokens", None)):
        raise InputError(f"model={checks.shown(model)}: give a model that reads text")
    sentence, question = checks.text("sentence", sentence), checks.text("question", question)
    needle, asked = (model.to_tokens(text, prepend_bos=False)[0].cpu() for text in (sentence, question))
    if not len(needle):
        raise InputError(f"sentence={sentence!r} has no tokens: give the sentence that is to be found again")
    told = needle if answer is None else model.to_tokens(checks.text("answer", answer), prepend_bos=False)[0].cpu()
    if not len(told):
        raise InputError(f"answer={answer!r} has no tokens: give what answers the question, or None for the sentence")
    rest = n_tokens - len(needle) - len(asked) - len(told)
    if rest < 2:
        raise InputError(f"n_tokens={n_tokens}: needle, question and answer alone take {n_tokens - rest}; give more")
    hay = tokenise(model, standard_text() if haystack is None else as_text(haystack), rest)[0][0].cpu()
    if len(hay) < rest:
        raise TextError(
            f"the haystack has {len(hay):,} tokens and n_tokens={n_tokens:,} needs {rest:,}: give a longer one, or "
            "None for the standard text, which repeats"
        )
    at = 1 + round(depth * (len(hay) - 1))
    tokens = torch.cat([hay[:at], needle, hay[at:], asked, told])
    return Needle(tokens, slice(at, at + len(needle)), slice(len(tokens) - len(told), len(tokens)))
