"""The bytes of one tensor of a weight file, read when asked for: never through a mapping, whose pages can vanish.

A file that was cut short, changed or taken away since it was opened is found at the next read.
"""

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hooks.errors import WeightError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Stamp:
    """What tells whether a file is still the one that was opened."""

    size: int
    modified: int
    inode: int

    @classmethod
    def of(cls, found: os.stat_result) -> "Stamp":
        """The stamp of a file as the system describes it."""
        return cls(found.st_size, found.st_mtime_ns, found.st_ino)


@dataclass(frozen=True)
class WeightFile:
    """A weight file as it was when the model was described.

    Attributes:
        path: where it lies.
        stamp: what it was then.
    """

    path: Path
    stamp: Stamp

    @classmethod
    def at(cls, path: Path) -> "WeightFile":
        """The file that lies there now."""
        return cls(path, Stamp.of(path.stat()))

    def read(self, name: str, start: int, n_bytes: int) -> np.ndarray:
        """Bytes of one tensor, in memory of their own.

        Args:
            name: what the error calls it.
            start: where they begin in the file.
            n_bytes: how many.

        Raises:
            WeightError: the file is no longer there, is another one, or is shorter.
        """
        data = np.empty(n_bytes, np.uint8)
        try:
            with self.path.open("rb", buffering=0) as file:
                if Stamp.of(os.fstat(file.fileno())) != self.stamp:
                    raise WeightError(f"{self.path} changed while {name} was to be read from it; {_REMEDY}")
                view, at = memoryview(data.data), 0
                file.seek(start)
                while at < n_bytes and (got := file.readinto(view[at:])):
                    at += got
        except OSError as error:
            raise WeightError(f"{name} cannot be read from {self.path} ({error}); {_REMEDY}") from error
        if at < n_bytes:
            raise WeightError(f"{self.path} ends within {name}; {_REMEDY}")
        return data


_REMEDY = "put the same file back, or load the model again"


@dataclass(frozen=True)
class TensorPlace:
    """Where the bytes of a tensor lie in a safetensors file.

    Attributes:
        file: the file.
        start: offset of its first byte.
        dtype: type of its values.
        shape: its shape.
    """

    file: WeightFile
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read(self, name: str) -> Tensor:
        """Its values."""
        n_bytes = self.dtype.itemsize * torch.Size(self.shape).numel()
        if not n_bytes:
            return torch.empty(self.shape, dtype=self.dtype)
        return torch.from_numpy(self.file.read(name, self.start, n_bytes)).view(self.dtype).view(self.shape)


class StoredTensors:
    """The tensors of several safetensors files, which the safetensors library found whole, by name.

    Args:
        places: the file of each tensor. The files are the ones that lie there now; a header is read with its first
            tensor.
    """

    def __init__(self, places: Mapping[str, Path]):
        self._file = {path: WeightFile.at(path) for path in sorted(set(places.values()))}
        self._places = places
        self._known: dict[Path, Mapping[str, TensorPlace]] = {}

    @property
    def files(self) -> tuple[WeightFile, ...]:
        """Every file that is read."""
        return tuple(self._file.values())

    def read(self, name: str) -> Tensor:
        """The values of one tensor.

        Raises:
            WeightError: its file is gone, changed or cut short, or holds a type that is not read here.
        """
        path = self._places[name]
        if path not in self._known:
            self._known[path] = _tensor_places(self._file[path])
        return self._known[path][name].read(name)


def _tensor_places(file: WeightFile) -> Mapping[str, TensorPlace]:
    """Where each tensor of a safetensors file lies."""
    length = struct.unpack("<Q", file.read("the header", 0, 8).tobytes())[0]
    places = {}
    for name, entry in json.loads(file.read("the header", 8, length).tobytes()).items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise WeightError(f"{name} in {file.path} is {entry['dtype']}, which is not streamed; use stream=False")
        start = 8 + length + entry["data_offsets"][0]
        places[name] = TensorPlace(file, start, _DTYPES[entry["dtype"]], tuple(entry["shape"]))
    return places
