"""Writing beside computing: one piece of work at a time in a thread, so that one block at most waits for the disk."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Self


class Background(AbstractContextManager):
    """Runs what it is given in order, the next once the one before is done.

    An error of a piece of work is raised where the next one is handed over, or at the end of the ``with`` block, and
    nothing runs after it. When the block ends by an error of its own, what runs is still finished.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ropescope-writing")
        self._last: Future[None] | None = None

    def run(self, work: Callable[..., None], *arguments: Any) -> None:
        """Wait for what was handed over before, and begin with this."""
        self.wait()
        self._last = self._thread.submit(work, *arguments)

    def wait(self) -> None:
        """Wait until everything is done; raises what went wrong."""
        if self._last is not None:
            last, self._last = self._last, None
            last.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._thread.shutdown()
