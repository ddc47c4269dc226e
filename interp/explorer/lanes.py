"""Threads that answer, in three lanes: what is long to compute never stands before what is quick to read."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

WORKERS = 2
_LONG, _READING, _QUICK = "long", "reading", "quick"
_LANES = {"tile": _LONG, "window": _LONG, "in_view": _LONG, "row": _READING, "column": _READING, "cell": _READING}
AT_ONCE = ("progress", "cancel")  # answered where they are heard


def lane_of(asked: Any) -> str:
    """Which lane a question is answered in; what is no question is refused in the quick one."""
    kind = asked.get("kind") if isinstance(asked, Mapping) else None
    return _LANES.get(kind, _QUICK) if isinstance(kind, str) else _QUICK


class Lanes:
    """A few threads for each lane."""

    def __init__(self) -> None:
        self._pools = {name: ThreadPoolExecutor(WORKERS, name) for name in (_LONG, _READING, _QUICK)}

    def submit(self, asked: Any, answer: Callable[..., Any], *given: Any) -> Future:
        """Answer in the question's lane, once a thread is free."""
        return self._pools[lane_of(asked)].submit(answer, *given)

    def close(self) -> None:
        """Let go of what waits; what runs ends by itself, soon if its work is cancelled."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
