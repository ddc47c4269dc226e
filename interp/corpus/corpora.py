"""A corpus as its users hold it: its questions and its report; opened from where it lies."""

import warnings
from pathlib import Path
from typing import Any

from hooks.errors import CorpusError, CorpusWarning
from interp.corpus.page import corpus_report
from interp.corpus.questions import CorpusData
from interp.corpus.store import CorpusStore


class Corpus(CorpusData):
    """What a model does on many texts, and what one asks of it; see `CorpusData`."""

    def report(self, path: str | Path) -> Path:
        """Write the report over texts to one HTML file that needs no network and no other file.

        Args:
            path: where to put it. A report that stands there is replaced; nothing else ever is.

        Raises:
            OutputError: it cannot be written, or something else stands there.
            CorpusError: no text was measured.
        """
        return corpus_report(self, path)


def open_corpus(path: Any) -> Corpus:
    """Open a corpus. No model is needed, and results are read when they are looked at.

    One that is not finished opens with the texts that it has, and a `CorpusWarning` that says how many are left.

    Args:
        path: what `interp.measure_corpus` or ``ropescope corpus`` wrote: a local path, a URL that fsspec knows (such as
            ``s3://bucket/pile``, with s3fs installed), or a zarr store.

    Raises:
        CorpusError: there is no corpus at this path, or one of a newer format.
        CorpusDamagedError: its plan is not whole.
    """
    corpus = read_corpus(CorpusStore.at(path, write=False))
    if left := len(corpus.plan.wanted) - len(corpus.finished) - len(corpus.failures):
        warnings.warn(
            f"the corpus in {corpus.store.place!r} is unfinished: {left:,} of {len(corpus.plan.texts):,} texts are "
            "left; run it again to go on",
            CorpusWarning,
            stacklevel=2,
        )
    return corpus


def read_corpus(store: CorpusStore) -> Corpus:
    """The corpus in a store, finished or not, without a word about it."""
    plan = store.plan()
    if plan is None:
        raise CorpusError(f"there is no corpus in {store.place!r}: it has no plan.json")
    finished = store.finished(plan.wanted)
    failures = store.failures(sorted(set(plan.wanted) - set(finished)))
    return Corpus(plan, store, tuple(finished), failures)
