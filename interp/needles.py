"""A needle in a haystack: a sentence planted in a long text and asked for at its end, and which heads fetch it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooks.errors import InputError, TextError
from interp.pattern_rows import HeadRows
from interp.texts import Text, as_text, standard_text, tokenise

if TYPE_CHECKING:
    from hooks import HookedTransformer
    from hooks.attached import AttachedTransformer
    from interp.captures import Capture

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
    model: "HookedTransformer | AttachedTransformer",
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
    if not 0 <= depth <= 1:
        raise InputError(f"depth={depth}: give a share of the haystack from 0 to 1")
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


def check_needle(cap: "Capture", needle: Needle) -> None:
    """Raise an InputError unless the capture read the needle's tokens."""
    if not torch.equal(cap.tokens, needle.tokens):
        raise InputError(
            f"this capture of {len(cap.tokens):,} tokens did not read the needle's {len(needle.tokens):,} tokens: "
            "capture(model, needle.tokens)"
        )


def retrieval_score(needle: Needle, argmax_key: Int[np.ndarray, "head query"]) -> Float[np.ndarray, " head"]:
    """Share of the needle's distinct tokens that a head copies while the model gives the answer.

    A token counts once, as copied, when the query that has to predict it attends most to a place in the needle that
    holds it. Source: arXiv:2404.15574, equation 1, with the answer given instead of generated.
    """
    tokens = needle.tokens.numpy()
    wanted = np.arange(needle.answer.start, needle.answer.stop)
    looked = argmax_key[:, wanted - 1]
    copied = (looked >= needle.needle.start) & (looked < needle.needle.stop) & (tokens[looked] == tokens[wanted])
    distinct = len(set(tokens[needle.needle].tolist()))
    return np.array([len(set(tokens[wanted[row]].tolist())) / distinct for row in copied])


def needle_mass(
    cap: "Capture", layer: int, needle: Needle, lse: Float[Tensor, "head query"]
) -> Float[np.ndarray, " head"]:
    """Mean attention to the needle, over the queries that predict the answer."""
    rows = torch.arange(needle.answer.start - 1, needle.answer.stop - 1)
    keys = torch.arange(needle.needle.start, needle.needle.stop)
    masses = []
    for head, own_lse in enumerate(lse):
        scores = HeadRows.of(cap, layer, head).scores(rows, keys)
        masses.append(float((scores - own_lse[rows, None].double()).exp().sum(-1).mean()))
    return np.array(masses)
