"""measure_corpus: every text of a source measured, here or on a cluster, going on where an earlier run stopped."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from hooks import checks
from hooks.errors import ClusterError, CorpusMismatchError, CorpusWarning, InputError
from interp.common.progress import counted
from interp.corpus.analyses import DEFAULT, chosen_analyses
from interp.corpus.corpora import Corpus, read_corpus
from interp.corpus.plan import Plan, entries
from interp.corpus.store import CorpusStore, check_place
from interp.corpus.work import (
    Job,
    Measurer,
    Model,
    Outcome,
    describe_source,
    facts_of,
    load,
    measure_texts,
    versions,
)
from interp.engine.clusters import cluster, dashboard
from interp.engine.running import Killed, Piece, run_here, run_on, versions_of
from interp.texts.corpora import Documents, read_documents

# Numbers of the texts that are measured together.
Group = tuple[int, ...]


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        total: texts that are to be measured.
        done: those that are, before this run and in it.
        failed: those that could not be.
        began: when the run began to measure.
        before: how many were done or failed before it.
        memory: bytes that each process held, the most that was seen.
        dashboard: address of dask's dashboard; empty where there is none.
    """

    total: int
    done: int
    failed: int
    began: float = field(default_factory=time.monotonic)
    before: int = 0
    memory: dict[str, int] = field(default_factory=dict)
    dashboard: str = ""

    @property
    def left(self) -> int:
        """Texts that nobody has tried yet."""
        return self.total - self.done - self.failed

    @property
    def seconds_left(self) -> float:
        """What the rest would take at the pace of this run; NaN before the first text."""
        tried = self.done + self.failed - self.before
        return (time.monotonic() - self.began) / tried * self.left if tried else float("nan")


def measure_corpus(
    source: Any,
    texts: Any,
    path: Any,
    *,
    n_tokens: int = 1024,
    analyses: str | Sequence[str] = DEFAULT,
    layers: int | Sequence[int] | None = None,
    scheduler: Any = None,
    workers: int | None = None,
    pack: int = 1,
    watch: Callable[[Progress], None] | None = None,
) -> Corpus:
    """Measure a model on many texts, one result a text.

    Each text is captured in memory, measured and dropped. Killed at any moment and called again with the same
    arguments, it goes on with the texts that are left, and ends with the values of an undisturbed run. A text that
    cannot be measured is recorded with its reason (`Corpus.texts`) and stops nothing. A text that is there twice is
    measured once, with a warning.

    Args:
        source: what `HookedTransformer.from_pretrained` takes; or a live model, in this process only.
        texts: strings or rows of token ids, a directory of text files, a .txt, .jsonl or .parquet file with a column
            ``text``, or a ``datasets.Dataset`` with one.
        path: where results go, made if it is not there: a directory, a URL that fsspec knows, or a zarr store. With
            workers on other machines, one that they see under the same name.
        n_tokens: the most tokens of a text to read; a shorter one is read to its end.
        analyses: head_summary, positional_bias, received_by_position, sink_rate, score_ranges, loss_by_position.
        layers: which layers to measure; None is all.
        scheduler: measure on the workers of this dask cluster: the address of its scheduler, or a Client.
        workers: measure in so many processes of this machine, started for it. Its cores are shared out among them.
            In a script, call it below ``if __name__ == "__main__":``, since each process imports the script.
        pack: how many texts are taken at a time. Those that have at most n_tokens together run through the model in one
            row, in which none sees another and positions start again; each is measured, and kept, as a text of its
            own. Quicker for short texts; numbers are the same to rounding.
        watch: called with the `Progress` after every text.

    Raises:
        TextError: there are no texts.
        InputError: an unknown analysis, or a live model with workers.
        StageError: a layer that the model does not have.
        CorpusMismatchError: the path holds a corpus of something else; or a worker has other versions or weights.
        OutputError: the path holds something that is no corpus, or cannot be written.
        ClusterError: dask.distributed is not installed, or no scheduler answers.
        UnknownModelError: the model cannot be found.

    Example:
        >>> corpus = measure_corpus("smollm2-135m", "essays", "essays.corpus", n_tokens=1024, workers=4)
        >>> corpus.mean("head_summary")["first_token_mass"]
    """
    wanted = checks.whole("n_tokens", n_tokens, at_least=2)
    pack = checks.whole("pack", pack, at_least=1)
    names = chosen_analyses(analyses)
    documents = read_documents(texts)
    if watch is not None and not callable(watch):
        raise InputError(f"watch={checks.shown(watch)}: give a function of the Progress, or None")
    if (scheduler is not None or workers is not None) and not isinstance(source, str | Path):
        raise InputError(
            f"source={checks.shown(source)}: workers load the model themselves, so give its name, directory or file; "
            "a live model is measured in this process"
        )
    check_place(path, shared=scheduler is not None or workers is not None)
    with cluster(scheduler, workers) as client:
        model, facts = _described(source, layers, client)
        store = CorpusStore.at(path, write=True)
        where = _lasting(source) if isinstance(source, str | Path) else ""
        plan = Plan(where, facts, wanted, names, versions(), entries(documents), documents.where, pack)
        plan = _begun(store, plan)
        _say_duplicates(plan)
        corpus = read_corpus(store)
        done, failed = len(corpus.finished), len(corpus.failures)
        progress = Progress(len(plan.wanted), done, failed, before=done + failed, dashboard=dashboard(client))
        groups = _groups(plan, {*corpus.finished}, {*corpus.failures})
        bare = replace(plan, texts=())
        if client is None:
            measurer = Measurer(load(source) if model is None else model, store, bare)
            results = run_here(measurer, _pieces(documents, plan, groups))
        else:
            waiting = partial(watch, progress) if watch is not None else (lambda: None)
            results = _on_workers(
                client, Job(bare, _reachable(path)), partial(_pieces, documents, plan), groups, waiting
            )
        _take(results, store, progress, watch, {*corpus.finished})
    return read_corpus(store)


def _described(source: Any, layers: Any, client: Any) -> tuple[Model | None, Any]:
    """The model, where this process needs it, and what results need to know of it."""
    if client is None:
        model = load(source)
        return model, facts_of(model, layers)
    own = versions()
    for address, found in versions_of(client, own).items():
        for package, version in found.items():
            if version.split("+")[0] != own[package].split("+")[0]:
                raise CorpusMismatchError(
                    f"the worker at {address} has {package} {version}, and here it is {own[package]}: install the same "
                    "on every worker"
                )
    asked = layers if layers is None else list(checks.wholes("layers", layers))
    for _, facts in run_on(client, describe_source, [Piece("model", (_lasting(source), asked))]):
        if not isinstance(facts, Killed):
            return None, facts
    raise ClusterError(f"every worker that loaded {str(source)!r} died: it may not fit in a worker's memory")


def _begun(store: CorpusStore, plan: Plan) -> Plan:
    """The plan that stands in the store once it is sure that this run is of the same; else this one, written there."""
    there = store.plan()
    if there is None:
        store.begin(plan)
        return plan
    there.check_same(plan, store.place)
    return there


def _groups(plan: Plan, finished: set[int], failed: set[int]) -> list[Group]:
    """The texts that are measured together, of which one at least is left; the same ones whenever a run goes on."""
    all_of_them = (tuple(plan.wanted[at : at + plan.pack]) for at in range(0, len(plan.wanted), plan.pack))
    tried = finished | failed
    return [tuple(n for n in group if n not in failed) for group in all_of_them if not tried.issuperset(group)]


def _pieces(documents: Documents, plan: Plan, groups: Iterable[Group]) -> Iterator[Piece[Group]]:
    """The texts to measure, each read when it is its turn."""
    for group in groups:
        texts = []
        for number in group:
            document = documents.read(number)
            if document.sha256 != plan.texts[number].sha256:
                raise CorpusMismatchError(f"text {plan.texts[number].name!r} changed since this run began")
            texts.append((number, document.content))
        yield Piece(group, (texts,))


def _on_workers(
    client: Any,
    job: Job,
    pieces: Callable[[Iterable[Group]], Iterator[Piece[Group]]],
    groups: Iterable[Group],
    waiting: Callable[[], None],
) -> Iterator[tuple[Group, Any]]:
    """What workers measure; of several texts that end a worker together, each is tried alone."""
    alone: list[Group] = []

    def tasks(of: Iterable[Group]) -> Iterator[Piece[Group]]:
        return (Piece(piece.key, (job, *piece.arguments)) for piece in pieces(of))

    for group, result in run_on(client, measure_texts, tasks(groups), waiting=waiting):
        if isinstance(result, Killed) and len(group) > 1:
            alone += [(number,) for number in group]
        else:
            yield group, result
    yield from run_on(client, measure_texts, tasks(alone), waiting=waiting)


def _take(
    results: Iterator[tuple[Group, Any]],
    store: CorpusStore,
    progress: Progress,
    watch: Callable[[Progress], None] | None,
    finished: set[int],
) -> None:
    """Count what comes, and write down what ended its worker."""
    with counted("measuring texts") as report:
        for group, result in results:
            if isinstance(result, Killed):
                store.fail(group[0], result.reason)
                result = [Outcome(result.reason, "", 0)]
            for number, outcome in zip(group, result, strict=True):
                progress.failed += bool(outcome.reason)
                progress.done += not outcome.reason and number not in finished
                if outcome.process:
                    held = max(outcome.memory, progress.memory.get(outcome.process, 0))
                    progress.memory[outcome.process] = held
            report(progress.done + progress.failed, progress.total)
            if watch is not None:
                watch(progress)


def _say_duplicates(plan: Plan) -> None:
    """Warn where texts are there more than once."""
    if twice := [text for text in plan.texts if text.status == "duplicate"]:
        warnings.warn(
            f"{len(twice):,} of {len(plan.texts):,} texts are there more than once and are measured once: the first is "
            f"{twice[0].name!r}, {twice[0].reason}",
            CorpusWarning,
            stacklevel=3,
        )


def _lasting(source: Any) -> str:
    """A source as another process finds it: a path from the root, anything else as it is."""
    place = Path(str(source))
    return str(place.resolve()) if place.exists() else str(source)


def _reachable(path: Any) -> Any:
    """A path as another process on this machine finds it."""
    return path if not isinstance(path, str | Path) or "://" in str(path) else str(Path(path).resolve())
