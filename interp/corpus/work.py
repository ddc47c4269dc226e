"""Texts measured: captured in memory, every analysis taken, the record of each written, the rest dropped.

The same function does it in this process and on a worker. A worker loads the model from its source when it gets its
first text, and holds it for the next.
"""

import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor

from hooks import HookedTransformer
from hooks.attached.transformer import AttachedTransformer
from hooks.errors import CorpusMismatchError, RopescopeError, StageError
from interp.captures import capture
from interp.common.words import number_ranges
from interp.corpus.analyses import ANALYSES
from interp.corpus.packs import apart, counted, rows_of
from interp.corpus.plan import ModelFacts, Plan
from interp.corpus.records import Records
from interp.corpus.store import CorpusStore
from interp.engine.threads import take_share
from interp.recording.plan import tokens_of
from interp.recording.provenance import weight_hash
from interp.tensors.capture_data import CaptureData
from interp.tensors.selection import asked_layers
from interp.texts.corpora import Content
from interp.texts.texts import Text

# What the numbers of a text depend on, besides the model and the text.
PACKAGES = ("ropescope", "torch", "numba")
Model = HookedTransformer | AttachedTransformer
# What one text can raise without another being any worse for it.
_OF_THE_TEXT = (RopescopeError, ValueError, ArithmeticError, LookupError, RuntimeError, MemoryError)


class Outcome(NamedTuple):
    """What became of a text.

    Attributes:
        reason: why it could not be measured; empty where it was.
        process: number of the process that did it, and the name of its machine.
        memory: bytes that this process held when it was done.
    """

    reason: str
    process: str
    memory: int


@dataclass(frozen=True)
class Job:
    """All that a worker must know to measure a text: plain values, small enough to go with each of them.

    Attributes:
        plan: without its texts.
        path: where the corpus is.
    """

    plan: Plan
    path: Any


def versions() -> dict[str, str]:
    """Versions of the packages that a number depends on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found | {"torch": str(torch.__version__)}


def load(source: Any) -> Model:
    """The model of a source; a model that is there already stays as it is."""
    return source if isinstance(source, Model) else HookedTransformer.from_pretrained(source)


def facts_of(model: Model, layers: Any) -> ModelFacts:
    """What results need to know of a model.

    Raises:
        StageError: a layer that the model does not have, or that does not attend.
    """
    cfg = model.cfg
    attending = getattr(model, "attending_layers", tuple(range(cfg.n_layers)))
    chosen = tuple(sorted(asked_layers(attending, layers)))
    if missing := [layer for layer in chosen if layer not in attending]:
        raise StageError(f"no layer {missing[0]} that attends: the model has {number_ranges(attending)}")
    return ModelFacts(
        name=str(cfg.model_name),
        weights=weight_hash(model),
        n_layers=cfg.n_layers,
        layers=chosen,
        layer_types=tuple(cfg.layer_type(layer) for layer in chosen),
        windows=tuple(cfg.window(layer) or 0 for layer in chosen),
        heads=cfg.n_heads,
        kv_heads=cfg.n_kv_heads,
        dtype=str(model.dtype).removeprefix("torch."),
    )


class _Taken(NamedTuple):
    """The capture of a text, and the seconds that it took."""

    cap: CaptureData
    seconds: float


class Measurer:
    """A model that measures a few texts at a time.

    Args:
        model: the model.
        store: where records go.
        plan: what is measured.
    """

    def __init__(self, model: Model, store: CorpusStore, plan: Plan):
        self.model, self.store, self.plan, self.records = model, store, plan, Records(plan)
        self.loss = bool(getattr(model, "has_head", True))

    def __call__(self, texts: Sequence[tuple[int, Content]]) -> list[Outcome]:
        """Measure texts and write the record of each, or why there is none.

        Raises:
            OutputError: the store cannot be written.
        """
        reasons = dict.fromkeys((number for number, _ in texts), "")
        there = set(self.store.finished(list(reasons)))
        if len(there) < len(reasons):
            for number, taking in self._captures(texts):
                if number not in there:
                    reasons[number] = self._kept(number, taking)
        return [Outcome(reason, f"{platform.node()}:{os.getpid()}", _memory()) for reason in reasons.values()]

    def _captures(self, texts: Sequence[tuple[int, Content]]) -> Iterator[tuple[int, Callable[[], _Taken]]]:
        """What gives the capture of each text; those that share a row are captured when the first is asked for."""
        if len(texts) == 1:
            yield texts[0][0], partial(self._alone, texts[0][1])
            return
        read: dict[int, Tensor] = {}
        for number, content in texts:
            try:
                read[number] = tokens_of(self.model, _as_read(content), self.plan.n_tokens, None)[0][0].cpu()
            except _OF_THE_TEXT:
                yield number, partial(self._alone, content)  # which says again what is wrong with it
        numbers = list(read)
        for row in rows_of([len(tokens) for tokens in read.values()], self.plan.n_tokens, self.model.cfg):
            yield from self._row([(numbers[at], read[numbers[at]]) for at in row])

    def _row(self, texts: Sequence[tuple[int, Tensor]]) -> Iterator[tuple[int, Callable[[], _Taken]]]:
        """The captures of the texts of a row; where they cannot run together, each is captured alone."""
        started = time.monotonic()
        parts: list[CaptureData] = []
        if len(texts) > 1:
            with suppress(*_OF_THE_TEXT):
                positions = counted(len(tokens) for _, tokens in texts)
                parts = apart(self._capture(torch.cat([tokens for _, tokens in texts]), positions))
        if not parts:
            yield from ((number, partial(self._alone, tokens)) for number, tokens in texts)
            return
        seconds = (time.monotonic() - started) / sum(len(tokens) for _, tokens in texts)
        for (number, tokens), part in zip(texts, parts, strict=True):
            yield number, partial(_Taken, part, seconds * len(tokens))

    def _alone(self, content: Content | Tensor) -> _Taken:
        """The capture of one text."""
        started = time.monotonic()
        cap = self._capture(content, None)
        return _Taken(cap, time.monotonic() - started)

    def _capture(self, content: Content | Tensor, positions: Tensor | None) -> CaptureData:
        """A capture in memory of the layers that are measured."""
        most = self.plan.n_tokens if positions is None else None
        layers = list(self.plan.model.layers)
        return capture(
            self.model, _as_read(content), n_tokens=most, stages=(), layers=layers, loss=self.loss, positions=positions
        )

    def _kept(self, number: int, taking: Callable[[], _Taken]) -> str:
        """Write the record of a text, or why there is none; gives the reason."""
        try:
            record = self._record(taking())
        except _OF_THE_TEXT as error:
            reason = str(error) if isinstance(error, RopescopeError) else f"{type(error).__name__}: {error}"
            self.store.fail(number, reason)
            return reason
        self.store.write(number, record)
        return ""

    def _record(self, taken: _Taken) -> np.ndarray:
        """The record of a text."""
        started, cap = time.monotonic(), taken.cap
        measured = {name: ANALYSES[name].measure(cap, self.records.grid) for name in self.plan.analyses}
        loss = cap.loss.double()
        header = {
            "tokens": len(cap.tokens),
            "loss_total": float(loss.sum()),
            "loss_count": len(loss),
            "seconds": taken.seconds + time.monotonic() - started,
        }
        return self.records.packed(header, cap.tokens.numpy(), measured)


def _as_read(content: Content | Tensor) -> Text | list[int] | Tensor:
    """A text as it is: no text of a corpus is repeated to be longer, not even the standard text."""
    return Text(content, "a text of a corpus") if isinstance(content, str) else content


class _Held:
    """What a worker holds between two texts: one measurer, and the lock that keeps texts apart.

    A model runs with hooks, which two threads of a process cannot share: the second waits.
    """

    lock = threading.Lock()
    job: Job | None = None
    measurer: Callable[[Sequence[tuple[int, Content]]], list[Outcome]] | None = None


def measure_texts(job: Job, texts: Sequence[tuple[int, Content]]) -> list[Outcome]:
    """Measure a few texts on a worker.

    Raises:
        CorpusMismatchError: this worker has other versions, or its source holds other weights.
        RopescopeError: it cannot load the model.
        OutputError: it cannot write.
    """
    with _Held.lock:
        take_share()
        if _Held.measurer is None or _Held.job != job:
            _Held.measurer = None  # let go before another is loaded
            _Held.measurer, _Held.job = _prepared(job), job
        return _Held.measurer(texts)


def describe_source(source: str, layers: Any) -> ModelFacts:
    """What results need to know of a model, found out by a worker, so that whoever asks need not load it."""
    with _Held.lock:
        take_share()
        _Held.measurer = None
        return facts_of(load(source), layers)


def _prepared(job: Job) -> Measurer:
    """The measurer of a job, once it is sure that this worker would give the same numbers."""
    own = versions()
    for package, wanted in job.plan.versions.items():
        if own[package] != wanted:
            raise CorpusMismatchError(
                f"the worker on {platform.node()} has {package} {own[package]}, and this corpus is measured with "
                f"{wanted}: install the same on every worker"
            )
    model = load(job.plan.source)
    found = weight_hash(model)
    if found != job.plan.model.weights:
        raise CorpusMismatchError(
            f"{job.plan.source!r} holds other weights on the worker on {platform.node()} ({found[:12]}) than those of "
            f"this corpus ({job.plan.model.weights[:12]}): give every worker the same files"
        )
    return Measurer(model, CorpusStore.at(job.path, write=True), job.plan)


def _memory() -> int:
    """Bytes that this process holds."""
    return psutil.Process().memory_info().rss
