"""Arrays that outlive a call: the next call of the same shape works in them again."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

Allocate = Callable[..., np.ndarray]


class Workspace:
    """Lends arrays, and keeps up to `limit` bytes of what comes back; each array is with one borrower at a time."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.kept: list[np.ndarray] = []  # what came back last is at the end
        self._lock = threading.Lock()

    @contextmanager
    def lend(self) -> Iterator[Allocate]:
        """A function ``(shape, dtype)`` that gives arrays of any content, which all come back at the end."""
        lent: list[np.ndarray] = []

        def allocate(shape: int | tuple[int, ...], dtype: type = np.float64) -> np.ndarray:
            lent.append(self._take(shape if isinstance(shape, tuple) else (shape,), np.dtype(dtype)))
            return lent[-1]

        try:
            yield allocate
        finally:
            with self._lock:
                self.kept += [array for array in lent if array.size]
                while self.kept and sum(array.nbytes for array in self.kept) > self.limit:
                    self.kept.pop(0)

    def _take(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array that was kept, or a new one."""
        with self._lock:
            for i, array in enumerate(self.kept):
                if array.shape == shape and array.dtype == dtype:
                    return self.kept.pop(i)
        return np.empty(shape, dtype)
