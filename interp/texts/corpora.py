"""Many texts, whatever they lie in: each with a name, a hash, and a reason where it cannot be read."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hooks import checks
from hooks.errors import TextError

_OPENING = 80
_COLUMN, _NAME = "text", "id"
_FORMS = (
    "strings or rows of token ids, a directory of text files, a .txt, .jsonl or .parquet file with a column `text`, or "
    "a datasets.Dataset"
)
Content = str | list[int]


@dataclass(frozen=True)
class Document:
    """One text among many.

    Attributes:
        name: what it is called: the path in its directory, its ``id``, or its number.
        content: the text or its token ids; None where it cannot be read.
        reason: why it cannot.
    """

    name: str
    content: Content | None
    reason: str = ""

    @property
    def sha256(self) -> str:
        """Hash of the UTF-8 bytes, or of the token ids as little-endian 64-bit numbers; empty of what is not read."""
        if self.content is None:
            return ""
        if isinstance(self.content, str):
            return hashlib.sha256(self.content.encode("utf-8", "surrogatepass")).hexdigest()
        return hashlib.sha256(b"tokens" + np.asarray(self.content, dtype="<i8").tobytes()).hexdigest()

    @property
    def opening(self) -> str:
        """How the text begins, on one line; empty of token ids."""
        if not isinstance(self.content, str):
            return ""
        words = " ".join(self.content[: 4 * _OPENING].split())
        shown = words if len(words) <= _OPENING else words[: _OPENING - 1] + "…"
        return shown.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class Documents:
    """Texts that are read one by one, when they are asked for.

    Attributes:
        count: how many there are.
        read: the document with a number.
        where: where they come from, in words.
    """

    count: int
    read: Callable[[int], Document]
    where: str

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Document]:
        return (self.read(number) for number in range(self.count))


def read_documents(texts: Any) -> Documents:
    """The texts of a source, none of them read yet except what lies in memory.

    Args:
        texts: strings or rows of token ids; the path of a directory, whose files are a text each, of a .jsonl or
            .parquet file with a column ``text`` (and, if it has one, ``id``), or of one text file; a
            ``datasets.Dataset`` with such a column.

    Raises:
        TextError: there is no such file, no text in it, no column ``text``, or it is something else.
    """
    if isinstance(texts, str | Path):
        found = _of_path(checks.path("texts", texts, error=TextError))
    elif hasattr(texts, "column_names") and hasattr(texts, "__getitem__") and hasattr(texts, "__len__"):
        found = _of_dataset(texts)
    elif isinstance(texts, Documents):
        found = texts
    elif isinstance(texts, Sequence) or len(getattr(texts, "shape", ())) == 2:
        found = Documents(len(texts), partial(_of_sequence, texts), f"{len(texts):,} texts given in memory")
    else:
        raise TextError(f"texts={checks.shown(texts)}: give {_FORMS}")
    if not len(found):
        raise TextError(f"there is no text in {found.where}: give {_FORMS}")
    return found


def _of_path(path: Path) -> Documents:
    """The texts of a directory or a file."""
    try:
        if path.is_dir():
            return _of_directory(path)
        if not path.is_file():
            raise TextError(f"no such file or directory: {str(path)!r}; give {_FORMS}")
        if path.suffix == ".jsonl":
            return _of_lines(path)
    except OSError as error:
        raise TextError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    if path.suffix == ".parquet":
        return _of_parquet(path)
    return Documents(1, lambda _: _of_file(path, path.name), f"file {path.name}")


def _of_directory(directory: Path) -> Documents:
    """Every file below a directory, hidden ones left out, in the order of their paths."""
    names = sorted(
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(directory).parts)
    )
    return Documents(len(names), lambda n: _of_file(directory / names[n], names[n]), f"directory {directory.name}")


def _of_file(path: Path, name: str) -> Document:
    """One file as a text, or why it is none."""
    try:
        return _named(name, path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return Document(name, None, f"not UTF-8 (byte 0x{error.object[error.start]:02x} at offset {error.start})")
    except OSError as error:
        return Document(name, None, f"cannot be read: {error.strerror or error}")


def _of_lines(path: Path) -> Documents:
    """The lines of a .jsonl file, blank ones left out; a text is read when it is asked for."""
    places = []
    with path.open("rb") as file:
        at = 0
        for number, line in enumerate(file, start=1):
            if line.strip():
                places.append((number, at))
            at += len(line)

    def read(n: int) -> Document:
        number, start = places[n]
        with path.open("rb") as file:
            file.seek(start)
            return _of_line(file.readline(), number)

    return Documents(len(places), read, f"file {path.name}")


def _of_line(line: bytes, number: int) -> Document:
    """One line of a .jsonl file."""
    name = f"line {number}"
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Document(name, None, f"not UTF-8 (byte 0x{error.object[error.start]:02x} of the line)")
    except (ValueError, RecursionError):
        return Document(name, None, "not JSON")
    if not isinstance(row, dict):
        return Document(name, None, f"a {type(row).__name__}, and not an object with a `{_COLUMN}`")
    return _of_row(row.get(_NAME), row.get(_COLUMN), name)


def _of_parquet(path: Path) -> Documents:
    """The rows of a .parquet file, one group of rows in memory at a time."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise TextError(
            "reading a .parquet file needs pyarrow: pip install 'ropescope[cluster]', or pip install pyarrow"
        ) from None
    try:
        file = ParquetFile(path)
        columns = [name for name in (_NAME, _COLUMN) if name in file.schema_arrow.names]
    except (ArrowException, OSError) as error:
        raise TextError(f"cannot read {str(path)!r}: {error}") from None
    if _COLUMN not in columns:
        raise TextError(f"{str(path)!r} has no column `{_COLUMN}`; it has {', '.join(file.schema_arrow.names)}")
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    ends = np.cumsum(sizes)
    held: tuple[int, dict[str, list]] = (-1, {})

    def read(n: int) -> Document:
        nonlocal held
        group = int(np.searchsorted(ends, n, side="right"))
        if held[0] != group:
            held = group, file.read_row_group(group, columns=columns).to_pydict()
        row = n - int(ends[group]) + sizes[group]
        return _of_row(held[1][_NAME][row] if _NAME in columns else None, held[1][_COLUMN][row], f"row {n}")

    return Documents(int(sum(sizes)), read, f"file {path.name}")


def _of_dataset(dataset: Any) -> Documents:
    """The rows of a datasets.Dataset."""
    columns = list(dataset.column_names) if not isinstance(dataset.column_names, dict) else []
    if _COLUMN not in columns:
        held = ", ".join(map(str, columns)) or "several splits: choose one"
        raise TextError(f"this {type(dataset).__name__} has no column `{_COLUMN}`; it has {held}")

    def read(n: int) -> Document:
        row = dataset[n]
        return _of_row(row.get(_NAME), row[_COLUMN], f"row {n}")

    return Documents(len(dataset), read, f"a {type(dataset).__name__} of {len(dataset):,} rows")


def _of_row(name: Any, content: Any, otherwise: str) -> Document:
    """A row of a table; `otherwise` is its name where it has none."""
    called = str(name) if isinstance(name, str | int) and not isinstance(name, bool) and str(name) else otherwise
    if not isinstance(content, str):
        return Document(called, None, f"its `{_COLUMN}` is {'missing' if content is None else checks.shown(content)}")
    return _named(called, content)


def _of_sequence(texts: Any, n: int) -> Document:
    """A text given in memory: a string, one of our own texts, or a row of token ids."""
    given = texts[n]
    if isinstance(given, str):
        return _named(str(n), given)
    if isinstance(given, Path):
        return _of_file(given, given.name)
    content = getattr(given, "content", None)
    if isinstance(content, str):
        return _named(str(n), content)
    try:
        rows = np.asarray(given)
    except (TypeError, ValueError, RuntimeError):
        rows = np.empty(())
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        return Document(str(n), None, f"neither a text nor a row of token ids: {checks.shown(given)}")
    return Document(str(n), [int(i) for i in rows])


def _named(name: str, content: str) -> Document:
    """A text with what is wrong with it, if anything is before a tokenizer has seen it."""
    if not content.strip():
        return Document(name, None, "holds no text")
    return Document(name, content)
