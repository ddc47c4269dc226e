"""One writer for each capture: a lock that the system takes back when its holder dies."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hooks.errors import CaptureBusyError

LOCK = ".lock"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a capture's lock while the block runs.

    The file stays: removing a lock file that another process may have just opened would let both in.

    Raises:
        CaptureBusyError: somebody else holds it.
        OSError: the directory is not writable.
    """
    handle = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        try:
            _take(handle)
        except (BlockingIOError, PermissionError):
            raise CaptureBusyError(
                f"another process is writing the capture in {str(directory)!r}: wait for it, or write to another path"
            ) from None
        yield
    finally:
        os.close(handle)


def _take(handle: int) -> None:
    """Lock an open file at once or raise an OSError."""
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
