"""Which heads fetch a planted needle: copied answers, and attention to the place they were planted."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooks.errors import InputError
from interp.analyses.patterns.head_rows import HeadRows
from interp.tensors.capture_data import CaptureData
from interp.texts.needles import Needle


def check_needle(cap: CaptureData, needle: Needle) -> None:
    """Raise an InputError unless the capture read the needle's tokens."""
    if not torch.equal(cap.tokens, needle.tokens):
        raise InputError(
            f"this capture of {len(cap.tokens):,} tokens did not read the needle's {len(needle.tokens):,} tokens: "
            "capture(model, needle.tokens)"
        )


def share_copied(needle: Needle, argmax_key: Int[np.ndarray, "head query"]) -> Float[np.ndarray, " head"]:
    """Share of the needle's distinct tokens that a head copies while the model reads the answer.

    A token counts once, as copied, when the query that has to predict it attends most to a place in the needle that
    holds it; an answer that is a part of the needle can have no more than that part copied. Source: arXiv:2404.15574,
    equation 1, teacher-forced: there the model generates the answer (`interp.retrieval_score` is that one), here it is
    given the answer's tokens, whatever it would have said.
    """
    tokens = needle.tokens.numpy()
    wanted = np.arange(needle.answer.start, needle.answer.stop)
    looked = argmax_key[:, needle.predicting]
    copied = (looked >= needle.needle.start) & (looked < needle.needle.stop) & (tokens[looked] == tokens[wanted])
    distinct = len(set(tokens[needle.needle].tolist()))
    return np.array([len(set(tokens[wanted[row]].tolist())) / distinct for row in copied])


def needle_mass(
    cap: CaptureData, layer: int, needle: Needle, lse: Float[Tensor, "head query"]
) -> Float[np.ndarray, " head"]:
    """Mean attention to the needle, over the queries that predict the answer."""
    rows = torch.arange(needle.predicting.start, needle.predicting.stop)
    keys = torch.arange(needle.needle.start, needle.needle.stop)
    masses = []
    for head, own_lse in enumerate(lse):
        scores = HeadRows.of(cap, layer, head).scores(rows, keys)
        masses.append(float((scores - own_lse[rows, None].double()).exp().sum(-1).mean()))
    return np.array(masses)
