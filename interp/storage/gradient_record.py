"""gradients.json: of which metric a capture's gradients are, which of their files are finished, what each must be."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hooks.errors import CaptureDamagedError, CaptureError
from interp.common.files import replace_file
from interp.storage.tensor_files import MARK, REMEDY, FileRecord, info_from_text, info_to_text

DIRECTORY, RECORD = "gradients", "gradients.json"
FORMAT = 1
KIND = "gradients"
NAMES = re.compile(r"(gradient|stream|back)_\d{3,6}\.safetensors", re.ASCII)


def gradient_file(layer: int) -> str:
    """Name of the file with the gradients of a layer."""
    return f"gradient_{layer:03d}.safetensors"


def stream_file(layer: int) -> str:
    """Name of the file with the residual stream before a block."""
    return f"stream_{layer:03d}.safetensors"


def back_file(layer: int) -> str:
    """Name of the file with the gradient to it."""
    return f"back_{layer:03d}.safetensors"


@dataclass(frozen=True)
class Record:
    """What the gradients are of, and how far they are.

    Attributes:
        of: SHA-256 of the captured layers' files, by name: the run that they belong to; empty before the way back.
        metric: what tells the metric from others, as `Resolved.description` gives it.
        layers: the layers whose gradients are kept.
        environments: what the last bits depend on; one more for each time that it was forced to go on in another.
        value: the metric; None before the way back began.
        reached: the last block that the way back went through; the number of blocks when it began.
        files: every finished file.
        source: where the model was loaded from, for who goes on; None once the gradients are complete.
    """

    of: dict[str, str]
    metric: dict[str, Any]
    layers: tuple[int, ...]
    environments: tuple[dict[str, Any], ...]
    value: float | None = None
    reached: int | None = None
    files: dict[str, FileRecord] = field(default_factory=dict)
    source: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the way back came to the first layer kept."""
        return self.reached == min(self.layers)


def has_gradients(directory: Path) -> bool:
    """Whether gradients were begun beside a capture."""
    return (directory / DIRECTORY / RECORD).is_file()


def write_record(directory: Path, record: Record) -> None:
    """Put the record in place of the one before.

    Raises:
        OutputError: what stands there is no record.
        OSError: it cannot be written; the one before still stands.
    """
    replace_file(directory / DIRECTORY / RECORD, [_encoded(record)], _is_record)


def read_record(directory: Path) -> Record:
    """What ``gradients.json`` says, checked.

    Raises:
        CaptureDamagedError: it was changed, or says what cannot be.
        CaptureError: a newer format, or it may not be read.
    """
    path = directory / DIRECTORY / RECORD
    try:
        body = json.loads(path.read_bytes())
        signature, version = body.pop("sha256"), body["format"]
    except OSError as error:
        raise CaptureError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CaptureDamagedError(f"{path} is not what ropescope wrote; {REMEDY}") from None
    if isinstance(version, int) and version > FORMAT:
        raise CaptureError(f"{path} has format {version}, and this version reads up to {FORMAT}: update ropescope")
    try:
        if signature != _signature(body):
            raise ValueError("it was changed after it was written")
        return _record(body)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CaptureDamagedError(f"{path} cannot be right ({error}); {REMEDY}") from None


def _record(body: dict[str, Any]) -> Record:
    """The record from plain values; raises where they cannot be."""
    files = {}
    for name, found in body["files"].items():
        if not NAMES.fullmatch(name):
            raise ValueError(f"{name!r} is the name of no file of gradients")
        tensors = {str(tensor): info_from_text(info) for tensor, info in found["tensors"].items()}
        files[name] = FileRecord(int(found["bytes"]), str(found["sha256"]), tensors)
    value, reached, layers = body["value"], body["reached"], tuple(int(layer) for layer in body["layers"])
    if not layers or not isinstance(body["metric"], dict) or not body["environments"]:
        raise ValueError("it names no layer, metric or environment")
    if (value is None) != (reached is None) or (reached is not None and reached < min(layers)):
        raise ValueError("how far it is cannot be")
    record = Record(
        body["of"], body["metric"], layers, tuple(body["environments"]), value, reached, files, body["source"]
    )
    needed = () if reached is None else [layer for layer in layers if layer >= reached]
    if missing := [layer for layer in needed if gradient_file(layer) not in files]:
        raise ValueError(f"it does not name the gradients of layer {missing[0]}")
    return record


def _encoded(record: Record) -> bytes:
    """The record as it is written."""
    files = {
        name: {
            "bytes": found.n_bytes,
            "sha256": found.sha256,
            "tensors": {tensor: info_to_text(info) for tensor, info in found.tensors.items()},
        }
        for name, found in sorted(record.files.items())
    }
    body = {MARK: KIND, "format": FORMAT, "of": record.of, "metric": record.metric, "layers": list(record.layers)}
    body |= {"environments": list(record.environments), "value": record.value, "reached": record.reached}
    body |= {"source": record.source, "files": files}
    return json.dumps({**body, "sha256": _signature(body)}).encode()


def _signature(body: dict[str, Any]) -> str:
    """SHA-256 of everything else."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _is_record(path: Path) -> bool:
    """Whether a file is a record that the tool wrote."""
    try:
        return json.loads(path.read_bytes()).get(MARK) == KIND
    except (OSError, ValueError, AttributeError, RecursionError):
        return False
