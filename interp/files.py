"""Writing a result: checked before the work, atomic after it."""

import os
import tempfile
from pathlib import Path

from hooks.errors import OutputError


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
    """Write a whole file or nothing: under a temporary name, synced, then renamed.

    Raises:
        OutputError: the file cannot be written; what stood there before is untouched.
    """
    target = check_writable(path)
    try:
        handle, temporary = _temporary(target)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, _mode(target))
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _unwritable(path, error) from None
    return target


def _temporary(target: Path) -> tuple[int, str]:
    """A new file beside the target, so that the final rename stays on one file system."""
    return tempfile.mkstemp(dir=target.parent, prefix=".ropescope-", suffix=".tmp")


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
