"""Tensors on disk as safetensors: hashed while they are written, memory-mapped when they are read.

The files are ordinary safetensors. They are written here, and not by the library, for three things that a capture needs
and it does not offer: the same bytes every time, no second copy of the data in memory, and the hash in the same pass.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hooks.errors import CaptureDamagedError
from interp.common.files import replace_file
from interp.tensors.layers import TensorInfo

_ALIGNMENT = 64
_CHUNK = 16 * 2**20
_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_SHAPE = re.compile(r"\[(\d{1,15}(, \d{1,15}){0,7})?\]", re.ASCII)
_DTYPES = {code: dtype for dtype, code in _CODES.items()}


@dataclass(frozen=True)
class FileRecord:
    """What a file must be: its size, its SHA-256, and the tensors in it."""

    n_bytes: int
    sha256: str
    tensors: dict[str, TensorInfo]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], note: str = "") -> FileRecord:
    """Write a safetensors file, whole or not at all, and say what was written.

    Args:
        path: where to.
        tensors: by name; on any device, of any strides.
        note: text kept in the file's metadata.

    Raises:
        OSError: the disk is full or the place not writable; what stood there before is untouched.
    """
    # Widest types first, as safetensors itself orders them: so every tensor is aligned to its type.
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))
    digest, n_bytes = hashlib.sha256(), 0

    def counted() -> Iterator[bytes | memoryview]:
        nonlocal n_bytes
        for chunk in _chunks(ordered, note):
            digest.update(chunk)
            n_bytes += len(chunk)
            yield chunk

    replace_file(path, counted())
    return FileRecord(n_bytes, digest.hexdigest(), {name: TensorInfo.of(x) for name, x in ordered.items()})


def write_bytes(path: Path, content: bytes) -> FileRecord:
    """Write a file without tensors, whole or not at all, and say what was written."""
    replace_file(path, [content])
    return FileRecord(len(content), hashlib.sha256(content).hexdigest(), {})


def read_tensor(path: Path, name: str) -> Tensor:
    """One tensor of a file, memory-mapped: pages are read when they are used; changing it does not change the file.

    Raises:
        CaptureDamagedError: the file is not there, no whole safetensors file, or lacks the tensor.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CaptureDamagedError(f"{path} cannot be read ({error}); {_REMEDY}") from None


def read_note(path: Path) -> str:
    """The text that `write_tensors` kept in a file's metadata.

    Raises:
        CaptureDamagedError: the file is not there or no whole safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("note", "")
    except (SafetensorError, OSError) as error:
        raise CaptureDamagedError(f"{path} cannot be read ({error}); {_REMEDY}") from None


def check_file(path: Path, record: FileRecord) -> None:
    """Check all of a file that can be checked without reading its data: presence, size, names, shapes and types.

    Raises:
        CaptureDamagedError: the file is not what the record says.
    """
    try:
        found = path.stat().st_size
    except OSError:
        raise CaptureDamagedError(f"{path} is missing; {_REMEDY}") from None
    if found != record.n_bytes:
        raise CaptureDamagedError(f"{path} has {found:,} bytes and was written with {record.n_bytes:,}; {_REMEDY}")
    if record.tensors and _infos(path) != record.tensors:
        raise CaptureDamagedError(f"{path} does not hold the tensors that its manifest names; {_REMEDY}")


def check_hash(path: Path, record: FileRecord) -> None:
    """Read a whole file and compare its hash.

    Raises:
        CaptureDamagedError: a byte of it changed, or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CaptureDamagedError(f"{path} cannot be read ({error.strerror}); {_REMEDY}") from None
    if found != record.sha256:
        raise CaptureDamagedError(f"{path} was changed after it was written (its SHA-256 differs); {_REMEDY}")


def info_to_text(info: TensorInfo) -> str:
    """A TensorInfo as a manifest has it: F32 [71, 4, 16]."""
    return f"{_CODES[info.dtype]} {list(info.shape)}"


def info_from_text(text: str) -> TensorInfo:
    """A TensorInfo from its text.

    Raises:
        ValueError: it is none.
    """
    code, _, shape = text.partition(" ")
    if code not in _DTYPES or not _SHAPE.fullmatch(shape):
        raise ValueError(f"{text!r} is no type and shape")
    return TensorInfo(tuple(int(n) for n in re.findall(r"\d+", shape)), _DTYPES[code])


def _chunks(tensors: Mapping[str, Tensor], note: str) -> Iterator[bytes | memoryview]:
    """The file in pieces: length of the header, header, data."""
    header: dict = {"__metadata__": {"note": note}} if note else {}
    start = 0
    for name, tensor in tensors.items():
        stop = start + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    yield len(text).to_bytes(8, "little") + text
    for tensor in tensors.values():
        if not tensor.numel():
            continue
        data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
        for at in range(0, len(data), _CHUNK):
            yield data[at : at + _CHUNK]


def _infos(path: Path) -> dict[str, TensorInfo]:
    """Names, shapes and types of a file's tensors, from its header."""
    try:
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {n: TensorInfo(tuple(p.get_shape()), _DTYPES[p.get_dtype()]) for n, p in parts.items()}
    except (SafetensorError, OSError, KeyError) as error:
        raise CaptureDamagedError(f"{path} is no whole safetensors file ({error}); {_REMEDY}") from None


_REMEDY = "copy the capture again from where it is whole, or delete it and capture again"
