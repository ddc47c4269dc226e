"""Where the records of a corpus are: a zarr 3 group with one array, a chunk for each text, and a few files beside it.

- ``plan.json``: what is measured; written last, when the array is there.
- ``records``: [text, number] float64. A chunk is the record of one text, uncompressed, so that a part of it can be read
  by itself. It is written once, as a whole, and its last number marks it as whole. Where the store writes a file
  under another name and renames it (local files) or takes an object as a whole or not at all (object stores), a record
  is there or it is not; on any other store a record cut short lacks the mark, and is measured again.
- ``failed/<number>.json``: why a text was not measured.

Several runs may write at once: they write the same numbers to the same places. It outlives kills; after a power cut a
record that the system had not put on the disk lacks its mark.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from zarr.abc.store import RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore

from hooks import checks
from hooks.errors import CorpusDamagedError, CorpusError, InputError, OutputError, RopescopeError
from interp.corpus.plan import PLAN, Plan, is_plan
from interp.corpus.records import WHOLE, Records

_RECORDS, _FAILED = "records", "failed"
_BYTES = 8
# Reads that wait for the store at the same time.
_AT_ONCE = 256


@dataclass(frozen=True)
class CorpusStore:
    """The files of a corpus.

    Attributes:
        group: the zarr group.
        place: where it is, in words.
    """

    group: zarr.Group
    place: str

    @classmethod
    def at(cls, path: Any, *, write: bool) -> "CorpusStore":
        """The store at a path, which need not hold a corpus yet when it is to be written.

        Args:
            path: a local path, a URL that fsspec knows, or a zarr store.
            write: whether something will be written; then it is made if it is not there.

        Raises:
            CorpusError: there is nothing to read at this path, or it is a kind of path that needs another package.
            OutputError: what stands there is none of ours, or it cannot be written.
        """
        error = OutputError if write else CorpusError
        place = _said(path)
        try:
            if write:
                check_place(path)
            elif (local := _local(path, CorpusError)) is not None and not local.is_dir():
                there = "a file" if local.exists() else "nothing"
                raise CorpusError(f"there is no corpus in {place!r}: {there} is there")
            if write:
                return cls(zarr.open_group(path, mode="a", zarr_format=3), place)
            return cls(zarr.open_group(path, mode="r"), place)
        except RopescopeError:
            raise
        except ImportError as missing:
            raise CorpusError(f"a corpus in {place!r} needs a package that is not installed: {missing}") from None
        except (OSError, ValueError, KeyError) as why:
            raise error(f"cannot {'write' if write else 'read'} a corpus in {place!r}: {why}") from None

    def plan(self) -> Plan | None:
        """The plan, or None where none is there."""
        found = self._read_file(PLAN)
        return None if found is None else Plan.from_json(found, self.place)

    def begin(self, plan: Plan) -> None:
        """Make the array of records, then write the plan."""
        length = Records(plan).length
        shape = (len(plan.texts), length)
        # Another run that begins at the same time may have made it, and written to it already.
        if getattr(self.group.get(_RECORDS), "shape", None) != shape:
            self.group.create_array(
                _RECORDS,
                shape=shape,
                chunks=(1, length),
                dtype="<f8",
                compressors=None,
                filters=None,
                fill_value=float("nan"),
                chunk_key_encoding={"name": "default", "separator": "."},
                dimension_names=("text", "number"),
                overwrite=True,
            )
        self._write_file(PLAN, plan.to_json())

    def write(self, number: int, record: np.ndarray) -> None:
        """Put the record of a text in its place, as a whole."""
        array = cast(zarr.Array, self.group[_RECORDS])
        try:
            array[number] = record
        except OSError as error:
            raise OutputError(f"cannot write to the corpus in {self.place!r}: {error.strerror or error}") from None

    def fail(self, number: int, reason: str) -> None:
        """Write down why a text was not measured."""
        self._write_file(f"{_FAILED}/{number}.json", json.dumps({"reason": reason}, ensure_ascii=False))

    def failures(self, numbers: Sequence[int]) -> dict[int, str]:
        """Reasons of those of these texts that could not be measured."""
        store, prefix = self.group.store, self._key(_FAILED)

        async def listed() -> list[str]:
            return [key async for key in store.list_dir(prefix)]

        names = {name.rsplit("/", 1)[-1] for name in sync(listed())}
        found = {}
        for number in numbers:
            if f"{number}.json" in names and (text := self._read_file(f"{_FAILED}/{number}.json")) is not None:
                try:
                    found[number] = str(json.loads(text)["reason"])
                except (ValueError, KeyError, TypeError):
                    found[number] = "the file that says why is damaged"
        return found

    def finished(self, numbers: Sequence[int]) -> list[int]:
        """Those of these texts whose record is whole."""
        ends = self._gather([(number, SuffixByteRequest(_BYTES)) for number in numbers])
        whole = np.float64(WHOLE).astype("<f8").tobytes()
        return [number for number, end in zip(numbers, ends, strict=True) if end == whole]

    def is_finished(self, number: int) -> bool:
        """Whether the record of a text is whole."""
        return bool(self.finished([number]))

    def read(self, numbers: Sequence[int], start: int, stop: int) -> np.ndarray:
        """The numbers from `start` on of the records of some texts, [text, stop − start].

        Raises:
            CorpusDamagedError: a record is gone, or shorter than it was.
        """
        out = np.empty((len(numbers), stop - start), dtype="<f8")
        store = self.group.store
        if isinstance(store, LocalStore):  # without a task for each file, which takes longer than the file
            folder = store.root / self._key(_RECORDS)
            for row, number in enumerate(numbers):
                try:
                    found = np.fromfile(folder / f"c.{number}.0", "<f8", stop - start, offset=start * _BYTES)
                except OSError:
                    found = np.empty(0)
                self._check_length(number, found.size, stop - start)
                out[row] = found
            return out
        wanted = RangeByteRequest(start * _BYTES, stop * _BYTES)
        for row, part in enumerate(self._gather([(number, wanted) for number in numbers])):
            self._check_length(numbers[row], len(part or b"") // _BYTES, stop - start)
            out[row] = np.frombuffer(part or b"", "<f8")
        return out

    def _check_length(self, number: int, found: int, wanted: int) -> None:
        """Raise a CorpusDamagedError for a record that is gone or cut short."""
        if found != wanted:
            raise CorpusDamagedError(
                f"the record of text {number} in {self.place!r} is {'cut short' if found else 'gone'}: run the corpus "
                "again, which measures it again"
            )

    def _gather(self, wanted: Sequence[tuple[int, Any]]) -> list[bytes | None]:
        """Parts of records, many at a time; None where there is no record."""
        store, prototype = self.group.store, default_buffer_prototype()

        async def one(number: int, part: Any) -> bytes | None:
            found = await store.get(self._key(f"{_RECORDS}/c.{number}.0"), prototype, part)
            return None if found is None else found.to_bytes()

        async def some(batch: Sequence[tuple[int, Any]]) -> list[bytes | None]:
            return list(await asyncio.gather(*(one(*each) for each in batch)))

        batches = (wanted[at : at + _AT_ONCE] for at in range(0, len(wanted), _AT_ONCE))
        return [part for batch in batches for part in sync(some(batch))]

    def _key(self, name: str) -> str:
        """A name below the group, as its store has it."""
        return f"{self.group.path}/{name}" if self.group.path else name

    def _read_file(self, name: str) -> str | None:
        """The text of a file beside the array."""
        found = sync(self.group.store.get(self._key(name), default_buffer_prototype()))
        return None if found is None else found.to_bytes().decode("utf-8", "replace")

    def _write_file(self, name: str, text: str) -> None:
        """Write a file beside the array."""
        buffer = default_buffer_prototype().buffer.from_bytes(text.encode("utf-8", "backslashreplace"))
        try:
            sync(self.group.store.set(self._key(name), buffer))
        except OSError as error:
            raise OutputError(f"cannot write to the corpus in {self.place!r}: {error.strerror or error}") from None


def check_place(path: Any, *, shared: bool = False) -> None:
    """Raise for a path where no corpus can be, before anything is written there.

    Args:
        path: of `CorpusStore.at`.
        shared: whether other processes must see what is there.

    Raises:
        OutputError: something else than a corpus is there.
        InputError: what is there is in the memory of this process.
    """
    if shared and (isinstance(path, MemoryStore | dict) or str(path).startswith("memory:")):
        raise InputError(f"path={_said(path)}: other processes do not see it; give a directory or an address")
    if (directory := _local(path, OutputError)) is None:
        return
    try:
        if directory.exists() and not directory.is_dir():
            raise OutputError(f"cannot write a corpus to {str(directory)!r}: a file is there")
        if directory.is_dir() and any(directory.iterdir()) and not _is_begun(directory):
            raise OutputError(
                f"{str(directory)!r} is there already and is no corpus: give another path, or move what is in it away"
            )
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write to {str(directory)!r}: {error.strerror or error}") from None


def _local(path: Any, error: type[RopescopeError]) -> Path | None:
    """A path of this machine; None for a store and for an address."""
    if isinstance(path, Store) or "://" in str(path):
        return None
    return checks.path("path", path, error=error)


def _said(path: Any) -> str:
    """A path as an error names it."""
    return str(path) if isinstance(path, str | Path) else f"a {type(path).__name__}"


def _is_begun(directory: Path) -> bool:
    """Whether a directory holds a corpus, or what a run that was killed at once left of one."""
    if (plan := directory / PLAN).is_file():
        return is_plan(plan.read_bytes())
    return {path.name for path in directory.iterdir()} <= {"zarr.json", _RECORDS}
