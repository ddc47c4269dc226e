"""A model on one text, ready to run again from any block on: what lies before a change is not computed twice."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooks import HookedTransformer, checks
from hooks.attached.transformer import AttachedTransformer
from hooks.errors import InputError
from interp.common.progress import track
from interp.metrics import Metric

Model = HookedTransformer | AttachedTransformer
Hooks = Iterable[tuple[str, Callable]]


class Run:
    """The residual streams of one text before every block, and what a metric is on it; O(n) memory, layer by layer.

    Attributes:
        model: the model; its active hooks are at work in every run.
        tokens: the text, [1 pos].
        value: the metric of the run as it is.
    """

    @torch.no_grad()
    def __init__(self, model: Model, tokens: Int[Tensor, "1 pos"], metric: Metric, said: str = "running the model"):
        self.model, self.tokens = model, tokens
        self.metric = metric.resolve(model, tokens[0])
        self._at = self.metric.positions.to(model.device)
        self._order = {int(position): i for i, position in enumerate(self.metric.positions)}
        self._context: Any = model.context(tokens)
        resid, self._streams = model.embed_tokens(tokens), []
        for layer in track(range(model.cfg.n_layers), said):
            self._streams.append(resid)
            resid = model.blocks[layer](resid, self._context)
        self.value = self._value(resid)

    def stream(self, layer: int) -> Float[Tensor, "1 pos d_model"]:
        """The residual stream before a block."""
        return self._streams[layer]

    @torch.no_grad()
    def changed(self, layer: int, hooks: Hooks = (), stream: Tensor | None = None) -> float:
        """The metric when a block runs with these hooks, or on another stream; only it and those behind it run."""
        resid = self._streams[layer] if stream is None else stream
        with self.model.hooks(fwd_hooks=hooks):
            resid = self.model.blocks[layer](resid, self._context)
        for later in range(layer + 1, self.model.cfg.n_layers):
            resid = self.model.blocks[later](resid, self._context)
        return self._value(resid)

    @torch.no_grad()
    def tensor(self, layer: int, point: str) -> Tensor:
        """What passes a hook point of a block, which runs once more for it."""
        kept: list[Tensor] = []
        with self.model.hooks(fwd_hooks=[(point, lambda x, hook: kept.append(x))]):
            self.model.blocks[layer](self._streams[layer], self._context)
        return kept[0]

    def _value(self, resid: Tensor) -> float:
        """The metric of a stream after the last block; logits at its positions alone."""

        def logits_at(positions: Tensor) -> Tensor:
            return self.model.unembed_residual(resid[:, positions.to(resid.device)])[0]

        return float(self.metric.of(logits_at))


def one_text(name: str, given: Any, model: Model) -> Int[Tensor, "1 pos"]:
    """Token ids in one row of a text or of ids.

    Raises:
        InputError: no model, no text, several, or one of fewer than two tokens.
        TokenizerError: a text, and the model has no tokenizer.
    """
    if not isinstance(model, HookedTransformer | AttachedTransformer):
        raise InputError(
            f"model={checks.shown(model)}: give a HookedTransformer, or what HookedTransformer.attach(model) gives"
        )
    ids = model.to_tokens(given if isinstance(given, str) else _row(name, given))
    if ids.shape[1] < 2:
        raise InputError(f"{name} has {ids.shape[1]} token: attention needs at least 2")
    return ids


def _row(name: str, given: Any) -> Int[Tensor, "1 pos"]:
    """Ids that were given in one row."""
    try:
        ids = given if isinstance(given, Tensor) else torch.as_tensor(np.asarray(given))
    except (TypeError, ValueError, RuntimeError):
        ids = torch.empty(0)
    whole = not ids.is_floating_point() and not ids.is_complex() and ids.dtype != torch.bool
    if not whole or ids.ndim not in (1, 2) or (ids.ndim == 2 and len(ids) != 1):
        raise InputError(f"{name}={checks.shown(given)}: give a text, or token ids in one row")
    return ids.reshape(1, -1)


def attending(model: Model) -> tuple[int, ...]:
    """The layers that call softmax attention."""
    return tuple(getattr(model, "attending_layers", range(model.cfg.n_layers)))
