"""What the command prints to, whatever it is: a pipe that was closed, a full disk, a terminal without Greek letters."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class Output:
    """A stream that never fails: once something cannot be written, the rest is let go, and `failed` says why.

    So a run whose reader has gone still does its work, and says afterwards what could not be said.
    """

    def __init__(self, stream: TextIO):
        self._stream, self.failed = stream, None
        if hasattr(stream, "reconfigure"):
            # Characters that the encoding lacks are spelled out.
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]

    def write(self, text: str) -> int:
        """Write a text, or let it go."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Write what is held back, or let it go."""
        self._attempt(self._stream.flush)

    def _attempt(self, action: Any) -> None:
        if self.failed is not None:
            return
        try:
            action()
        except OSError as error:
            self.failed = error
            # What the stream still holds is written once more when Python ends: to nowhere.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def sturdy_output() -> Iterator[Any]:
    """Print through `Output` while the block runs; gives a function that tells why stdout failed, if it did.

    A reader that has gone, as that of ``ropescope stats | head``, has what it wanted: that is no failure.
    """
    before = sys.stdout, sys.stderr
    out, err = (None if stream is None else Output(stream) for stream in before)

    def failure() -> str | None:
        if out is None:
            return None
        out.flush()
        if out.failed is None or isinstance(out.failed, BrokenPipeError) or out.failed.errno == errno.EINVAL:
            return None  # Windows says EINVAL of a closed pipe
        return f"cannot write the output: {out.failed.strerror or out.failed}"

    sys.stdout, sys.stderr = out, err  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield failure
    finally:
        for stream in (out, err):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before
