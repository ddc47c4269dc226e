"""The header of a GGUF file, parsed into checked values: every count, length, type and offset held against the file.

A damaged byte gives a named error at once: no count is believed that the file has no room for, and no two tensors may
share bytes. Source: the format's specification, ggml's docs/gguf.md (versions 2 and 3 differ in byte order only).
"""

import math
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from jaxtyping import UInt8

from hooks.errors import WeightError
from hooks.loading.files import check_regular

_MOST_KEYS, _MOST_TENSORS, _MOST_ITEMS = 10_000, 200_000, 4_000_000
_LONGEST_NAME = 2**16
_LONG_ARRAY = 1000  # longer ones, vocabularies, are stepped over
_MOST_AXES = 4
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class _DamagedError(Exception):
    """What is wrong with the header, in words."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the file.

    Attributes:
        name: llama.cpp's name.
        shape: rows first, as in transformers.
        kind: how its values are stored.
        data: its bytes, [*rows, bytes of a row]; pages are read when they are used.
        start: where they begin in the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    data: UInt8[np.ndarray, "*rows row_bytes"]
    start: int


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself.

    Attributes:
        fields: its keys and values; an array of more than a thousand items is None.
        tensors: by name.
    """

    fields: dict[str, Any]
    tensors: dict[str, StoredTensor]


def read_header(path: Path) -> Header:
    """Read a header.

    Raises:
        WeightError: the file is no regular one, or not a whole GGUF file.
    """
    check_regular(path)
    try:
        if path.stat().st_size < 24:
            raise _DamagedError("it is shorter than a header")
        return _Reader(np.memmap(path, mode="r")).read()
    except (_DamagedError, struct.error, UnicodeDecodeError, OSError, ValueError) as error:
        raise WeightError(f"{path} is not a whole GGUF file ({error}); download or copy it again") from error


class _Reader:
    """A walk through the header, front to back."""

    def __init__(self, data: np.ndarray):
        self.data, self.buffer, self.at = data, data.data, 0

    def read(self) -> Header:
        """The whole header."""
        if bytes(self.buffer[:4]) != b"GGUF":
            raise _DamagedError("it does not begin with GGUF")
        version = struct.unpack_from("<I", self.buffer, 4)[0]
        if version not in (2, 3):
            raise _DamagedError(f"version {version}: 2 and 3 are read, in little-endian order")
        n_tensors, n_keys = struct.unpack_from("<QQ", self.buffer, 8)
        self.at = 24
        if n_keys > _MOST_KEYS or n_tensors > _MOST_TENSORS:
            raise _DamagedError(f"it claims {n_keys:,} keys and {n_tensors:,} tensors")
        fields: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self._text(_LONGEST_NAME)
            if key in fields:
                raise _DamagedError(f"key {key!r} stands there twice")
            fields[key] = self._value(self._number("I"), key)
        infos = [self._info() for _ in range(n_tensors)]
        return Header(fields, self._tensors(infos, self._alignment(fields)))

    def _number(self, code: str) -> Any:
        """One scalar."""
        value = struct.unpack_from(f"<{code}", self.buffer, self.at)[0]
        self.at += struct.calcsize(f"<{code}")
        return value

    def _text(self, longest: int) -> str:
        """One string."""
        length = self._number("Q")
        if length > min(longest, len(self.buffer) - self.at):
            raise _DamagedError(f"a text of {length:,} bytes")
        self.at += length
        return bytes(self.buffer[self.at - length : self.at]).decode("utf-8")

    def _value(self, kind: int, key: str) -> Any:
        """One value of a key."""
        if kind == _STRING:
            return self._text(len(self.buffer))
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind != _ARRAY:
            raise _DamagedError(f"key {key!r} has the unknown type {kind}")
        item, count = self._number("I"), self._number("Q")
        if item not in (_STRING, *_SCALARS) or count > _MOST_ITEMS:
            raise _DamagedError(f"key {key!r} has an array of {count:,} items of type {item}")
        if count <= _LONG_ARRAY:
            return [self._value(item, key) for _ in range(count)]
        if item == _STRING:
            for _ in range(count):
                self.at += 8 + struct.unpack_from("<Q", self.buffer, self.at)[0]
        else:
            self.at += count * struct.calcsize(f"<{_SCALARS[item]}")
        if self.at > len(self.buffer):
            raise _DamagedError(f"key {key!r} has an array of {count:,} items, which ends beyond the file")
        return None

    def _info(self) -> tuple[str, tuple[int, ...], gguf.GGMLQuantizationType, int]:
        """Name, shape, type and place of one tensor."""
        name, axes = self._text(_LONGEST_NAME), self._number("I")
        if not 1 <= axes <= _MOST_AXES:
            raise _DamagedError(f"tensor {name!r} has {axes} axes")
        shape = tuple(reversed([self._number("Q") for _ in range(axes)]))
        kind, offset = self._number("I"), self._number("Q")
        if kind not in set(map(int, gguf.GGMLQuantizationType)):
            raise _DamagedError(f"tensor {name!r} has the unknown type {kind}")
        return name, shape, gguf.GGMLQuantizationType(kind), offset

    def _alignment(self, fields: dict[str, Any]) -> int:
        """What the places of tensors are multiples of."""
        alignment = fields.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise _DamagedError(f"general.alignment={alignment!r} is no power of two")
        return alignment

    def _tensors(self, infos: list[tuple], alignment: int) -> dict[str, StoredTensor]:
        """Every tensor with its bytes, none of which belong to two."""
        start = -(-self.at // alignment) * alignment
        found: dict[str, StoredTensor] = {}
        places = []
        for name, shape, kind, offset in infos:
            block, block_bytes = GGML_QUANT_SIZES[kind]
            elements = math.prod(shape)
            if name in found or elements < 1 or shape[-1] % block or offset % alignment:
                raise _DamagedError(f"tensor {name!r} of shape {shape} and type {kind.name} at {offset:,} cannot be")
            size = elements // block * block_bytes
            if start + offset + size > len(self.buffer):
                raise _DamagedError(f"tensor {name!r} ends beyond the file")
            places.append((offset, offset + size, name))
            data = np.asarray(self.data[start + offset : start + offset + size])
            found[name] = StoredTensor(name, shape, kind, data.reshape(*shape[:-1], -1), start + offset)
        self._check_places(sorted(places), start, alignment)
        return found

    def _check_places(self, places: list[tuple[int, int, str]], start: int, alignment: int) -> None:
        """Raise unless each tensor begins where the one before it ended, and the file ends with the last.

        So llama.cpp reads files: a gap is what a changed type or shape leaves, and bytes after the last tensor are what
        a header leaves that has become longer.
        """
        for (_, end, one), (begin, _, other) in pairwise([(0, 0, "the header"), *places]):
            if begin < end:
                raise _DamagedError(f"tensors {one!r} and {other!r} share bytes")
            if begin != -(-end // alignment) * alignment:
                raise _DamagedError(f"bytes between {one!r} and {other!r} belong to no tensor")
        end = start + max((end for _, end, _ in places), default=0)
        if len(self.buffer) > -(-end // alignment) * alignment:
            raise _DamagedError(f"{len(self.buffer) - end:,} bytes after the last tensor belong to none")
