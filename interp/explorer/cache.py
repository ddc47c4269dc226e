"""What was computed, kept within a bound of bytes; long work is done once, says how far it is, and can be cancelled."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from hooks.errors import RopescopeError


class CancelledError(RopescopeError, RuntimeError):
    """The work was cancelled before it was done."""


class Cache:
    """The values used last, up to so many bytes; one that is being made is waited for, not made twice."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.n_bytes = most_bytes, 0
        self._held: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()
        self._making: dict[Hashable, Future] = {}

    def get(self, key: Hashable, make: Callable[[], Any], size: Callable[[Any], int]) -> Any:
        """The value of a key, made now if it is not held; who waits for one that fails gets the same error."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key][0]
            coming = self._making.get(key)
            first = coming is None
            if coming is None:
                coming = self._making[key] = Future()
        if not first:
            return coming.result()
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._making[key]
            coming.set_exception(error)
            raise
        with self._lock:
            self._keep(key, value, size(value))
            del self._making[key]
        coming.set_result(value)
        return value

    def peek(self, key: Hashable) -> Any:
        """The value of a key if it is held."""
        with self._lock:
            return self._held[key][0] if key in self._held else None

    def _keep(self, key: Hashable, value: Any, n_bytes: int) -> None:
        """Hold a value, and let go of those that were not used for longest."""
        self._held[key] = (value, n_bytes)
        self.n_bytes += n_bytes
        while self.n_bytes > self.most_bytes and len(self._held) > 1:
            _, (_, freed) = self._held.popitem(last=False)
            self.n_bytes -= freed


class Work:
    """The long pieces of work in progress: how far each is, and a way to stop them."""

    def __init__(self) -> None:
        self._lock, self._pieces = threading.Lock(), {}

    @contextmanager
    def piece(self, name: str):
        """A function ``(done, total)`` that says how far a piece of work is, and raises once it is cancelled."""
        token, state = object(), {"name": name, "done": 0, "total": 0, "stop": False}
        with self._lock:
            self._pieces[token] = state

        def report(done: int, total: int) -> None:
            state["done"], state["total"] = done, total
            if state["stop"]:
                raise CancelledError(f"{name} was cancelled")

        try:
            yield report
        finally:
            with self._lock:
                del self._pieces[token]

    def progress(self) -> list[dict[str, Any]]:
        """Name, done and total of each piece in progress."""
        with self._lock:
            return [{name: state[name] for name in ("name", "done", "total")} for state in self._pieces.values()]

    def cancel(self) -> int:
        """Stop every piece in progress at its next step; gives how many there are."""
        with self._lock:
            for state in self._pieces.values():
                state["stop"] = True
            return len(self._pieces)
