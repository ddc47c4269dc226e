"""Progress on stderr: shown on a terminal, and only for work that takes longer than a moment."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

_PATIENCE_SECONDS = 1.5
_COUNTING = threading.Lock()
_Item = TypeVar("_Item")


def track(items: Iterable[_Item], description: str) -> Iterator[_Item]:
    """Yield the items, with a progress bar once they have taken a moment and more are to come."""
    total = len(items) if isinstance(items, Sized) else None
    if not sys.stderr.isatty():
        yield from items
        return
    with counted(description) as report:
        for done, item in enumerate(items):
            report(done, total)
            yield item


@contextmanager
def counted(description: str) -> Iterator[Callable[[int, int | None], None]]:
    """A function ``(done, total)`` that shows them as a bar once they have taken a moment.

    One bar at a time: inside of work that counts already, it shows nothing.
    """
    if not sys.stderr.isatty() or not _COUNTING.acquire(blocking=False):
        yield lambda done, total: None
        return
    started, bar = time.monotonic(), None

    def report(done: int, total: int | None) -> None:
        nonlocal bar
        if bar is None and time.monotonic() - started > _PATIENCE_SECONDS and done != total:
            bar = _bar(description, total)
        if bar is not None:
            bar.update(bar.task_ids[0], completed=done)

    try:
        yield report
    finally:
        _COUNTING.release()
        if bar is not None:
            bar.stop()


def _bar(description: str, total: int | None) -> "Progress":
    """A started rich progress bar that leaves no trace when it stops."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task(description, total=total)
    bar.start()
    return bar
