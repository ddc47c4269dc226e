"""Which heads copy a needle while the model answers in its own words."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from hooks import checks
from hooks.errors import InputError
from hooks.modules.hook_point import HookPoint
from interp.analyses.heads.needle_grid import Model, edited_pattern
from interp.analyses.heads.schema import RETRIEVAL_SCORE
from interp.common.labels import labelled, result_of
from interp.common.progress import track
from interp.texts.needles import Needle


def retrieval_score(
    model: Model, needles: Needle | Sequence[Needle], *, max_new_tokens: int | None = None
) -> xr.Dataset:
    """The retrieval score of every head: how much of a needle it copies while the model generates its answer.

    The model reads each text up to the answer and goes on greedily. A token that it generates counts as copied by a
    head when the query that predicts it attends most to a place in the needle that holds this token; each distinct
    token counts once, g of k, and the score is |g| / |k|, averaged over the needles. Every step needs O(n) memory.
    Hooks that are set are at work.

    Args:
        model: native or attached.
        needles: what `plant_needle` planted, one or several: the paper takes texts of many lengths and depths. Their
            own answers are not read.
        max_new_tokens: generate at most so many, fewer where the model ends the text; as many as the needle's own
            answer has when None.

    Returns:
        Over (layer, head): retrieval_score, with the coordinates layer_type and kv_head.

    Raises:
        InputError: no needle, something else than needles, or token ids that the model does not know.

    Source: W. Wu et al. 2024, Retrieval Head Mechanistically Explains Long-Context Factuality, arXiv:2404.15574,
    equation 1.
    """
    several = [needles] if isinstance(needles, Needle) else needles
    if not isinstance(several, list | tuple) or not several or not all(isinstance(each, Needle) for each in several):
        raise InputError(f"needles={checks.shown(needles)}: give what plant_needle made, or a list of such")
    if max_new_tokens is not None:
        max_new_tokens = checks.whole("max_new_tokens", max_new_tokens, at_least=1)
    scores = [_of_one(model, needle, max_new_tokens) for needle in track(several, "answering")]
    layers = _layers(model)
    heads = np.arange(model.cfg.n_heads)
    out = xr.Dataset(
        {"retrieval_score": (("layer", "head"), np.mean(scores, axis=0))},
        coords={
            "layer": layers,
            "head": heads,
            "layer_type": ("layer", [model.cfg.layer_type(layer) for layer in layers]),
            "kv_head": ("head", heads * model.cfg.n_kv_heads // len(heads)),
        },
    )
    out = labelled(out, RETRIEVAL_SCORE).assign_attrs(n_texts=len(several))
    return result_of("retrieval_score", out, "how much of a needle each head copies into the model's answer")


def _layers(model: Model) -> list[int]:
    return list(getattr(model, "attending_layers", range(model.cfg.n_layers)))


def _of_one(model: Model, needle: Needle, max_new_tokens: int | None) -> Float[np.ndarray, "layer head"]:
    """The scores on one text."""
    looked: dict[int, Int[np.ndarray, " head"]] = {}
    hooks = []
    for layer in _layers(model):
        point = edited_pattern(model, layer) or f"blocks.{layer}.attn.hook_pattern_rows"
        hooks.append((point, partial(_look, looked, layer)))
    tokens, start = needle.tokens, needle.answer.start
    limit = needle.answer.stop - start if max_new_tokens is None else max_new_tokens
    copied: list[np.ndarray] = []
    said: list[int] = []
    with model.hooks(fwd_hooks=hooks):
        for token in model.generate_stream(tokens[None, :start].to(model.device), limit):
            said.append(int(token))
            keys = np.stack([looked[layer] for layer in sorted(looked)])
            inside = (keys >= needle.needle.start) & (keys < needle.needle.stop)
            # A key behind what was planted may be a generated token, which needle.tokens does not hold.
            held = tokens.numpy()[np.where(inside, keys, needle.needle.start)]
            copied.append(inside & (held == said[-1]))
    steps, words = np.stack(copied), np.array(said)
    of_each = [steps[words == word].any(0) for word in np.unique(words)]
    return np.sum(of_each, axis=0) / len(set(tokens[needle.needle].tolist()))


def _look(
    looked: dict[int, Int[np.ndarray, " head"]],
    layer: int,
    pattern: Float[Tensor, "1 head query key"],
    hook: HookPoint,
) -> None:
    """Note the position to which each head attends most from the last query of these."""
    looked[layer] = hook.ctx["key_positions"].flatten()[pattern[0, :, -1].argmax(-1)].cpu().numpy()
