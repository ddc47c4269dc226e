"""Writing a result: checked before the work, atomic after it."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from hooks.errors import OutputError

TEMPORARY = ".ropescope-*.tmp"


def check_writable(path: str | Path) -> Path:
    """The resolved path, once it is sure that a file can be put there.

    Raises:
        OutputError: the directory is missing or not writable, or something that is no file has this name.
    """
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
        handle, probe = _temporary(target)
        os.close(handle)
        os.unlink(probe)
    except OutputError:
        raise
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from None
    return target


def write_text(path: str | Path, content: str) -> Path:
    """Write a whole file or nothing; see `replace_file`.

    Raises:
        OutputError: the file cannot be written; what stood there before is untouched.
    """
    target = check_writable(path)
    try:
        replace_file(target, [content.encode("utf-8", errors="backslashreplace")])
    except OSError as error:
        raise _unwritable(path, error) from None
    return target


def replace_file(target: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write a whole file or nothing: under a temporary name, synced, renamed, and the directory synced.

    Raises:
        OSError: as the system gives it; what stood there before is untouched.
    """
    handle, temporary = _temporary(target)
    try:
        with os.fdopen(handle, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode(target))
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_directory(target.parent)


def sync_directory(directory: Path) -> None:
    """Put a directory's entries on the disk, so that a rename outlives a power cut."""
    if os.name == "nt":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
