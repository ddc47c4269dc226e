"""Whether a model finds a needle, over lengths of the text and depths in it."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from hooks import HookedTransformer, checks
from hooks.attached.transformer import AttachedTransformer
from hooks.base.registry import FULL_HOOKS, ROWS_HOOKS
from hooks.errors import InputError
from hooks.modules.hook_point import HookPoint
from interp.analyses.heads.schema import NEEDLE_SWEEP
from interp.analyses.patterns.head_rows import HeadRows
from interp.common.labels import labelled, result_of
from interp.common.progress import track
from interp.measure.visibility import Visibility
from interp.texts.needles import QUESTION, SENTENCE, Needle, plant_needle
from interp.texts.texts import Text

Model = HookedTransformer | AttachedTransformer


def needle_sweep(
    model: Model,
    lengths: int | Sequence[int],
    depths: float | Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    *,
    answer: str | None = None,
    sentence: str = SENTENCE,
    question: str = QUESTION,
    haystack: str | Text | None = None,
) -> xr.Dataset:
    """Plant a needle at each depth of texts of each length, and see whether the model answers the question about it.

    The model reads the answer's tokens (teacher forcing), one text after another, in O(n) memory, and only the logits
    of the answer are computed. Hooks that are set are at work: inside ``with model.hooks(…)`` this is the sweep of an
    ablated model.

    Args:
        model: native or attached.
        lengths: tokens in all, one number or several.
        depths: where the needle goes, from 0 (begin) to 1 (end of the haystack).
        answer: what answers the question; None is the whole sentence again.
        sentence: the needle.
        question: what asks for it.
        haystack: what surrounds it; None is the standard text.

    Returns:
        Over (length, depth): answer_loss, needle_mass, found; lengths and depths ascend.

    Raises:
        InputError: no length or depth, a depth outside 0 … 1, a length too small for needle, question and answer.
        TextError: an empty haystack, or one that is too short.

    Source: G. Kamradt 2023, Needle in a Haystack; the mass on the needle: arXiv:2404.15574.
    """
    asked = sorted(checks.wholes("lengths", lengths, at_least=2))
    places = sorted(set(checks.numbers("depths", depths, at_least=0, at_most=1)))
    if not asked or not places:
        raise InputError(f"lengths={checks.shown(lengths)}, depths={checks.shown(depths)}: give at least one of each")
    texts: dict[str, Any] = {"sentence": sentence, "question": question, "answer": answer, "haystack": haystack}
    needles = [plant_needle(model, length, depth, **texts) for length in asked for depth in places]
    found = [_read(model, needle) for needle in track(needles, "looking for the needle")]
    shape = len(asked), len(places)
    out = xr.Dataset(
        {name: (("length", "depth"), np.array([each[name] for each in found]).reshape(shape)) for name in NEEDLE_SWEEP},
        coords={"length": asked, "depth": places},
    )
    said = {"sentence": sentence.strip(), "question": question.strip(), "answer": (answer or sentence).strip()}
    out = labelled(out, NEEDLE_SWEEP).assign_attrs(said)
    return result_of("needle_sweep", out, "a needle asked for, by length of the text and depth in it")


@torch.no_grad()
def _read(model: Model, needle: Needle) -> dict[str, float | bool]:
    """What the model makes of one text, one block at a time."""
    tokens = needle.tokens[None].to(model.device)
    resid, context = model.embed_tokens(tokens), model.context(tokens)
    attending = getattr(model, "attending_layers", range(model.cfg.n_layers))
    masses = []
    for layer, block in enumerate(model.blocks):
        watch = _MassOfLayer(model, layer, needle) if layer in attending else None
        with model.hooks(fwd_hooks=[] if watch is None else watch.hooks()):
            resid = block(resid, context)
        if watch is not None:
            masses.append(watch.by_head(context.positions[0].cpu()))
    logits = model.unembed_residual(resid[:, needle.predicting])[0]
    told = tokens[0, needle.answer]
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return {
        "answer_loss": float(-log_p.gather(-1, told[:, None]).mean()),
        "needle_mass": float(torch.cat(masses).mean()),
        "found": bool((logits.argmax(-1) == told).all()),
    }


class _MassOfLayer:
    """Mean attention of each head to the needle, over the queries that predict the answer.

    Computed from q and k, a few rows of them; where hooks edit scores or pattern, read off the edited pattern.
    """

    def __init__(self, model: Model, layer: int, needle: Needle):
        self.model, self.layer, self.needle = model, layer, needle
        self.kept: dict[str, Tensor] = {}
        self.masses: list[Tensor] = []

    def hooks(self) -> list:
        """(name, hook) pairs for one pass."""
        attn = f"blocks.{self.layer}.attn."
        for scores, pattern in (FULL_HOOKS, ROWS_HOOKS):
            if any(self.model.hook_dict[attn + point].has_hooks("fwd") for point in (scores, pattern)):
                return [(attn + pattern, self._read_off)]
        return [(f"{attn}hook_{name}_final", partial(self._keep, name)) for name in "qk"]

    def by_head(self, positions: Int[Tensor, " pos"]) -> Float[Tensor, " head"]:
        """The means, after the pass."""
        if self.masses:
            return torch.cat(self.masses, -1).double().cpu().mean(-1)
        rows = torch.arange(self.needle.predicting.start, self.needle.predicting.stop)
        keys = torch.arange(self.needle.needle.start, self.needle.needle.stop)
        spec, q, k = self.model.attention_spec(self.layer), self.kept["q"], self.kept["k"]
        see = Visibility.of(spec, positions, positions)
        names = [f"layer {self.layer}, head {head}" for head in range(q.shape[1])]
        heads = [HeadRows.among(q, k, spec, see, head, name) for head, name in enumerate(names)]
        return torch.stack([torch.cat([p.sum(-1) for _, _, p in head.blocks(rows, keys)]).mean() for head in heads])

    def _keep(self, name: str, tensor: Tensor, hook: HookPoint) -> None:
        self.kept[name] = tensor[0]

    def _read_off(self, pattern: Float[Tensor, "1 head query key"], hook: HookPoint) -> None:
        rows, keys = (
            torch.isin(hook.ctx[f"{what}_positions"], torch.arange(at.start, at.stop, device=pattern.device))
            for what, at in (("query", self.needle.predicting), ("key", self.needle.needle))
        )
        self.masses.append(pattern[0][:, rows.nonzero()[:, 0]][..., keys.nonzero()[:, 0]].sum(-1))
