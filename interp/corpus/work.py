"""One text measured: captured in memory, every analysis taken, its record written, the rest dropped.

The same function does it in this process and on a worker. A worker loads the model from its source when it gets its
first text, and holds it for the next.
"""

import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch

from hooks import HookedTransformer
from hooks.attached.transformer import AttachedTransformer
from hooks.errors import CorpusMismatchError, OutputError, RopescopeError, StageError
from interp.captures import capture
from interp.common.words import number_ranges
from interp.corpus.analyses import ANALYSES
from interp.corpus.plan import ModelFacts, Plan
from interp.corpus.records import Records
from interp.corpus.store import CorpusStore
from interp.engine.threads import take_share
from interp.recording.provenance import weight_hash
from interp.tensors.selection import asked_layers
from interp.texts.corpora import Content

# What the numbers of a text depend on, besides the model and the text.
PACKAGES = ("ropescope", "torch", "numba")
Model = HookedTransformer | AttachedTransformer


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


class Measurer:
    """A model that measures one text after another.

    Args:
        model: the model.
        store: where records go.
        plan: what is measured.
    """

    def __init__(self, model: Model, store: CorpusStore, plan: Plan):
        self.model, self.store, self.plan, self.records = model, store, plan, Records(plan)

    def __call__(self, number: int, content: Content) -> Outcome:
        """Measure a text and write its record, or why there is none.

        Raises:
            OutputError: the store cannot be written.
        """
        reason = ""
        if not self.store.is_finished(number):
            try:
                record = self._record(content)
            except OutputError:
                raise
            except (RopescopeError, ValueError, ArithmeticError, LookupError, RuntimeError, MemoryError) as error:
                reason = str(error) if isinstance(error, RopescopeError) else f"{type(error).__name__}: {error}"
                self.store.fail(number, reason)
            else:
                self.store.write(number, record)
        return Outcome(reason, f"{platform.node()}:{os.getpid()}", _memory())

    def _record(self, content: Content) -> np.ndarray:
        """The record of a text."""
        started, plan = time.monotonic(), self.plan
        has_loss = bool(getattr(self.model, "has_head", True))
        cap = capture(
            self.model, content, n_tokens=plan.n_tokens, stages=(), layers=list(plan.model.layers), loss=has_loss
        )
        measured = {name: ANALYSES[name].measure(cap, self.records.grid) for name in plan.analyses}
        loss = cap.loss.double()
        header = {
            "tokens": len(cap.tokens),
            "loss_total": float(loss.sum()),
            "loss_count": len(loss),
            "seconds": time.monotonic() - started,
        }
        return self.records.packed(header, cap.tokens.numpy(), measured)


class _Held:
    """What a worker holds between two texts: one measurer, and the lock that keeps texts apart.

    A model runs with hooks, which two threads of a process cannot share: the second waits.
    """

    lock = threading.Lock()
    job: Job | None = None
    measurer: Callable[[int, Content], Outcome] | None = None


def measure_text(job: Job, number: int, content: Content) -> Outcome:
    """Measure a text on a worker.

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
        return _Held.measurer(number, content)


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
