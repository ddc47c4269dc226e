"""Writing a result: checked before the work, atomic after it, and never over what the tool did not write.

Everything that interp puts on a disk or takes from it goes through `replace_file` and `remove_file`. Both ask the
content of what stands there whether it is the tool's own; a name is no answer.
"""

import os
import stat
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from hooks import checks
from hooks.errors import OutputError
from interp.common.marks import is_marked

TEMPORARY = ".ropescope-*.tmp"
Ours = Callable[[Path], bool]


def check_writable(path: str | Path, ours: Ours = is_marked) -> Path:
    """The resolved path, once it is sure that a file can be put there without losing another.

    Args:
        path: where a file is to be.
        ours: tells from its content whether the file that stands there is one that the tool wrote.

    Raises:
        OutputError: the directory is missing or not writable, or something stands there that the tool did not write.
    """
    checks.path("path", path, error=OutputError)
    try:
        target = Path(path).resolve()
        if target.is_dir():
            raise OutputError(f"cannot write {str(path)!r}: it is a directory; name a file in it")
        if target.exists() and not target.is_file():
            raise OutputError(f"cannot write {str(path)!r}: it is not a regular file")
        if not target.parent.is_dir():
            raise OutputError(
                f"cannot write {str(path)!r}: there is no directory {str(target.parent)!r}; create it first"
            )
        check_own(target, ours)
        handle, probe = _temporary(target)
        os.close(handle)
        os.unlink(probe)
    except OutputError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a link that leads to itself, before 3.13
        raise _unwritable(path, error) from None
    return target


def write_bytes(path: str | Path, content: bytes, ours: Ours = is_marked) -> Path:
    """Write a whole file or nothing; see `replace_file`.

    Raises:
        OutputError: the file cannot be written, or another stands there; what stood there before is untouched.
    """
    target = check_writable(path, ours)
    try:
        replace_file(target, [content], ours)
    except OutputError:
        raise
    except OSError as error:
        raise _unwritable(path, error) from None
    return target


def write_text(path: str | Path, content: str, ours: Ours = is_marked) -> Path:
    """Write a text as UTF-8; see `write_bytes`."""
    return write_bytes(path, content.encode("utf-8", errors="backslashreplace"), ours)


def check_own(target: Path, ours: Ours) -> None:
    """Raise an OutputError if something stands at a path that the tool did not write."""
    if os.path.lexists(target) and not is_own(target, ours):
        raise OutputError(
            f"{str(target)!r} is there already and ropescope did not write it, so it is not replaced: "
            "give another name, or move it away"
        )


def replace_file(target: Path, chunks: Iterable[bytes | memoryview], ours: Ours = is_marked) -> None:
    """Write a whole file or nothing: under a temporary name, synced, renamed, and the directory synced.

    Args:
        target: where to; what stands there is replaced if it is the tool's own.
        chunks: the content.
        ours: tells from its content whether a file is.

    Raises:
        OutputError: what stands there is not.
        OSError: as the system gives it; what stood there before is untouched.
    """
    check_own(target, ours)
    handle, temporary = _temporary(target)
    try:
        with os.fdopen(handle, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode(target))
        check_own(target, ours)  # it may have come while this was written
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_directory(target.parent)


def remove_file(target: Path, ours: Ours) -> bool:
    """Delete a file if it is there and the tool's own; says whether it did."""
    if not os.path.lexists(target) or not is_own(target, ours):
        return False
    target.unlink(missing_ok=True)
    return True


def sync_directory(directory: Path) -> None:
    """Put a directory's entries on the disk, so that a rename outlives a power cut."""
    if os.name == "nt":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_own(target: Path, ours: Ours) -> bool:
    """Whether a regular file, reached by no link, is one that the tool wrote."""
    try:
        return stat.S_ISREG(os.lstat(target).st_mode) and ours(target)
    except FileNotFoundError:  # gone since it was seen
        return True


def _temporary(target: Path) -> tuple[int, str]:
    """A new file beside the target, so that the final rename stays on one file system."""
    prefix, suffix = TEMPORARY.split("*")
    return tempfile.mkstemp(dir=target.parent, prefix=prefix, suffix=suffix)


def _mode(target: Path) -> int:
    """Permissions of the file that is replaced, or those that a new file gets."""
    if target.exists():
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _unwritable(path: str | Path, error: Exception) -> OutputError:
    """The error for a path that cannot be written."""
    reason = getattr(error, "strerror", None) or error
    return OutputError(f"cannot write {str(path)!r}: {reason}; choose another place with --out")
