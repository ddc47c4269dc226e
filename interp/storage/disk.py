"""The disk that a capture is written to: whether it has room, and what it says when it cannot write."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hooks.errors import OutputError


def check_room(directory: Path, n_bytes: int) -> None:
    """Raise an OutputError when the disk would not hold what is to be written."""
    place = directory if directory.exists() else directory.absolute().parent
    if not place.is_dir():
        raise OutputError(f"cannot write {str(directory)!r}: there is no directory {str(place)!r}; create it first")
    free = shutil.disk_usage(place).free
    if n_bytes > free:
        raise OutputError(
            f"the capture takes {n_bytes / 1e9:.2f} GB more in {str(directory)!r} and {free / 1e9:.2f} GB are free: "
            "free some space, choose another disk, or keep fewer layers, stages or tokens"
        )


@contextmanager
def system_errors_named(directory: Path) -> Iterator[None]:
    """Turn what the system says while writing into an OutputError that says how to go on."""
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full; free some space" if full else f"{error.strerror or error}; see that it can be written"
        raise OutputError(
            f"cannot write the capture in {str(directory)!r}: {what} and run it again: what is finished stays"
        ) from None
