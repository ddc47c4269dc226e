"""The analyses that a corpus can hold, and why it cannot hold the others."""

from collections.abc import Sequence
from typing import Any

from hooks import checks
from hooks.errors import InputError
from interp.corpus.heads import HEAD_SUMMARY, RANGES, SINKS
from interp.corpus.kept import Kept
from interp.corpus.places import BIAS, LOSS, RECEIVED
from interp.reporting.catalogue import CATALOGUE

DEFAULT = ("head_summary", "positional_bias")
ANALYSES: dict[str, Kept] = {
    "head_summary": HEAD_SUMMARY,
    "positional_bias": BIAS,
    "received_by_position": RECEIVED,
    "sink_rate": SINKS,
    "score_ranges": RANGES,
    "loss_by_position": LOSS,
}


def chosen_analyses(names: Any) -> tuple[str, ...]:
    """The names of analyses, each once, in the order of the table.

    Raises:
        InputError: none, an unknown one, or one that is about a single text.
    """
    several: Sequence[Any] = (names,) if isinstance(names, str) else names
    if not isinstance(several, Sequence | set | frozenset) or not all(isinstance(name, str) for name in several):
        raise InputError(f"analyses={checks.shown(names)}: give the name of an analysis, or several")
    for name in several:
        check_analysis(name)
    if not several:
        raise InputError(f"no analysis was asked for: name at least one of {', '.join(ANALYSES)}")
    return tuple(name for name in ANALYSES if name in several)


def check_analysis(name: str) -> None:
    """Raise an InputError for a name that is no analysis over texts."""
    if name in ANALYSES:
        return
    held = f"a corpus holds {', '.join(ANALYSES)}"
    if name in CATALOGUE:
        raise InputError(
            f"{name} is asked of one capture and has no sums over texts; {held}; for one of the texts, "
            f"ask it of corpus.capture(text)"
        )
    raise InputError(f"no analysis {name!r}: {held}")
