"""Progress on stderr: shown on a terminal, and only for work that takes longer than a moment."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

_PATIENCE_SECONDS = 1.5
_Item = TypeVar("_Item")


def track(items: Iterable[_Item], description: str) -> Iterator[_Item]:
    """Yield the items, with a progress bar once they have taken a moment and more are to come."""
    total = len(items) if isinstance(items, Sized) else None
    if not sys.stderr.isatty():
        yield from items
        return
    started, bar, task = time.monotonic(), None, None
    try:
        for done, item in enumerate(items):
            if bar is None and time.monotonic() - started > _PATIENCE_SECONDS:
                bar = _bar()
                task = bar.add_task(description, total=total, completed=done)
            if bar is not None:
                bar.update(task, completed=done)
            yield item
    finally:
        if bar is not None:
            bar.stop()


def _bar():
    """A started rich progress bar that leaves no trace when it stops."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.start()
    return bar
