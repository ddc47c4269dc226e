"""Tensors on disk as safetensors: hashed while they are written, memory-mapped when they are read.

The files are ordinary safetensors. They are written here, and not by the library, for three things that a capture needs
and it does not offer: the same bytes every time, no second copy of the data in memory, and the hash in the same pass.
"""

import hashlib
import json
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hooks.errors import CaptureDamagedError, CaptureError
from interp.common.files import Ours, replace_file
from interp.tensors.layers import TensorInfo

MARK = "ropescope"  # key of the metadata, and of small JSON files, whose value says what a file of ours is
_ALIGNMENT = 64
_LONGEST_HEADER = 2**26
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


def has_mark(path: Path) -> bool:
    """Whether a file is a safetensors file that carries the mark."""
    found = read_header(path)
    return found is not None and MARK in found[2]


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], note: str = "", *, kind: str = "capture", ours: Ours = has_mark
) -> FileRecord:
    """Write a safetensors file, whole or not at all, and say what was written.

    Args:
        path: where to.
        tensors: by name; on any device, of any strides.
        note: text kept in the file's metadata.
        kind: what the mark says that the file is.
        ours: tells whether the file that stands there may be replaced.

    Raises:
        OutputError: what stands there is not ours.
        OSError: the disk is full or the place not writable; what stood there before is untouched.
    """
    # Widest types first, as safetensors itself orders them: so every tensor is aligned to its type.
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))
    infos = {name: TensorInfo.of(x) for name, x in ordered.items()}
    digest, n_bytes = hashlib.sha256(), 0

    def counted() -> Iterator[bytes | memoryview]:
        nonlocal n_bytes
        for chunk in _chunks(ordered, header(infos, {MARK: kind} | ({"note": note} if note else {}))):
            digest.update(chunk)
            n_bytes += len(chunk)
            yield chunk

    replace_file(path, counted(), ours)
    return FileRecord(n_bytes, digest.hexdigest(), infos)


def write_bytes(path: Path, content: bytes, ours: Ours) -> FileRecord:
    """Write a file without tensors, whole or not at all, and say what was written; errors as of `write_tensors`."""
    replace_file(path, [content], ours)
    return FileRecord(len(content), hashlib.sha256(content).hexdigest(), {})


def read_tensor(path: Path, name: str) -> Tensor:
    """One tensor of a file, memory-mapped: pages are read when they are used; changing it does not change the file.

    Raises:
        CaptureDamagedError: the file is not there, no whole safetensors file, or lacks the tensor.
        CaptureError: it may not be read.
    """
    _check_readable(path)
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CaptureDamagedError(f"{path} cannot be read ({error}); {REMEDY}") from None


def read_note(path: Path) -> str:
    """The text that `write_tensors` kept in a file's metadata.

    Raises:
        CaptureDamagedError: the file is not there or no whole safetensors file.
        CaptureError: it may not be read.
    """
    _check_readable(path)
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("note", "")
    except (SafetensorError, OSError) as error:
        raise CaptureDamagedError(f"{path} cannot be read ({error}); {REMEDY}") from None


def check_file(path: Path, record: FileRecord) -> None:
    """Check all of a file that can be checked without reading its data: presence, size, names, shapes and types.

    Raises:
        CaptureDamagedError: the file is not what the record says.
        CaptureError: it may not be read.
    """
    found = _check_readable(path)
    if found != record.n_bytes:
        raise CaptureDamagedError(f"{path} has {found:,} bytes and was written with {record.n_bytes:,}; {REMEDY}")
    if record.tensors and _infos(path) != record.tensors:
        raise CaptureDamagedError(f"{path} does not hold the tensors that its manifest names; {REMEDY}")


def check_hash(path: Path, record: FileRecord) -> None:
    """Read a whole file and compare its hash.

    Raises:
        CaptureDamagedError: a byte of it changed, or it is not there.
        CaptureError: it may not be read.
    """
    if _check_readable(path, "cannot be read: it is missing") == record.n_bytes:  # another file of any size is not read
        try:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == record.sha256:
                    return
        except OSError as error:
            raise cannot_read(path, error) from None
    raise CaptureDamagedError(f"{path} was changed after it was written (its SHA-256 differs); {REMEDY}")


def _check_readable(path: Path, missing: str = "is missing") -> int:
    """Size of a regular file that may be read: a FIFO or a device would keep whoever opens it waiting."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise CaptureDamagedError(f"{path} cannot be read: it is no regular file; {REMEDY}")
        with path.open("rb"):
            return found.st_size
    except (FileNotFoundError, NotADirectoryError):
        raise CaptureDamagedError(f"{path} {missing}; {REMEDY}") from None
    except OSError as error:
        raise cannot_read(path, error) from None


def cannot_read(path: Path, error: OSError) -> CaptureError:
    """The error for a file of which the system says that it cannot be read, which is no damage."""
    return CaptureError(f"cannot read {path}: {error.strerror or error}; see that you may read it, and try again")


def read_header(path: Path) -> tuple[bytes, dict[str, TensorInfo], dict[str, str]] | None:
    """Header, tensors and metadata of a safetensors file; None for another, also one that is cut short in its header.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= _LONGEST_HEADER else b""
    if not length or len(text) != length:
        return None
    try:
        found = json.loads(text)
        metadata = found.pop("__metadata__", {})
        infos = {name: TensorInfo(tuple(x["shape"]), _DTYPES[x["dtype"]]) for name, x in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return (length.to_bytes(8, "little") + text, infos, metadata) if isinstance(metadata, dict) else None


def header(infos: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """The beginning of a file with these tensors, in their order: length of the header, header."""
    found: dict = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, info in infos.items():
        stop = start + info.n_bytes
        found[name] = {"dtype": _CODES[info.dtype], "shape": list(info.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(found, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


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


def _chunks(tensors: Mapping[str, Tensor], beginning: bytes) -> Iterator[bytes | memoryview]:
    """The file in pieces: its header, its data."""
    yield beginning
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
        raise CaptureDamagedError(f"{path} is no whole safetensors file ({error}); {REMEDY}") from None


REMEDY = "copy the capture again from where it is whole, or capture again to another path"
