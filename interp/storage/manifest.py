"""manifest.json: what a capture on disk is of, which of its files are finished, and what each must be."""

import hashlib
import json
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from hooks.errors import CaptureDamagedError, CaptureError, OutputError
from interp.common.files import replace_file
from interp.storage.tensor_files import FileRecord, info_from_text, info_to_text
from interp.tensors.stages import STAGES, STEPS

FORMAT = 1
MANIFEST = "manifest.json"
TOKENS, TOKEN_STRINGS = "tokens.safetensors", "tokens.json"
CONSTANTS, LOSS = "constants.safetensors", "loss.safetensors"
_NAMES = re.compile(r"(tokens|constants|loss)\.safetensors|tokens\.json|(layer|resume)_\d{3,6}\.safetensors", re.ASCII)
_MAX_BYTES = 64 * 2**20
_MAX_LAYERS = 100_000  # before anything is sized by a number that a file names


def layer_file(layer: int) -> str:
    """Name of the file with q, k and v of a layer."""
    return f"layer_{layer:03d}.safetensors"


def resume_file(blocks_run: int) -> str:
    """Name of the file with the residual stream after this many blocks."""
    return f"resume_{blocks_run:03d}.safetensors"


@dataclass(frozen=True)
class LayerRecord:
    """What a captured layer is: its steps, the stages held, and the plain values of its constants."""

    steps: tuple[str, ...]
    stages: tuple[str, ...]
    spec: dict[str, Any]
    attention_factor: float


@dataclass(frozen=True)
class Manifest:
    """What a capture is of, and how far it is.

    Attributes:
        model_id: the model's name.
        config: its whole configuration, as `HookedTransformerConfig.to_dict` gives it.
        weights: SHA-256 over its parameters.
        n_tokens: length of the text.
        tokens: SHA-256 of the token ids.
        stages: the stages asked for.
        environment: what the last bits of a result depend on: torch version, threads, device, instruction set.
        provenance: as `Capture.provenance`.
        layers: the layers to capture.
        blocks_run: how many of the model's blocks have run.
        forced: environments that the capture went on in by force, each with the block it began at.
        files: every finished file.
        loss: whether the loss is part of it.
    """

    model_id: str
    config: dict[str, Any]
    weights: str
    n_tokens: int
    tokens: str
    stages: tuple[str, ...]
    environment: dict[str, Any]
    provenance: dict[str, dict[str, str]]
    layers: dict[int, LayerRecord]
    blocks_run: int = 0
    forced: tuple[dict[str, Any], ...] = ()
    files: dict[str, FileRecord] = field(default_factory=dict)
    loss: bool = True

    @property
    def is_complete(self) -> bool:
        """Whether everything was captured; the file of the loss is the last one, empty where it was left out."""
        return LOSS in self.files

    @property
    def n_blocks(self) -> int:
        """How many of the model's blocks run: all, or without the loss those up to the last layer to capture."""
        return self.config["n_layers"] if self.loss else max(self.layers) + 1

    @property
    def finished_layers(self) -> tuple[int, ...]:
        """The captured layers whose files are there."""
        return tuple(layer for layer in self.layers if layer < self.blocks_run)

    def after(self, blocks_run: int, finished: dict[str, FileRecord]) -> "Manifest":
        """The manifest once these files are finished; of residual streams only the last one stays part of it."""
        kept = {name: record for name, record in self.files.items() if not name.startswith("resume_")}
        return replace(self, blocks_run=blocks_run, files=kept | finished)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Put the manifest in place of the one before.

    Raises:
        OSError: it cannot be written; the one before still stands.
    """
    body = _to_json(manifest)
    replace_file(directory / MANIFEST, [_encode({**body, "sha256": _signature(body)})])


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a capture, checked.

    Raises:
        CaptureError: there is no capture, or one of a newer format.
        CaptureDamagedError: the manifest is no JSON, was changed, or says what no capture can be.
    """
    path = directory / MANIFEST
    body = _read_json(directory, path)
    version = body.get("format")
    if type(version) is int and version > FORMAT:
        raise CaptureError(
            f"{path} has format {version}, and this version of ropescope reads up to {FORMAT}: update ropescope"
        )
    signature = body.pop("sha256", None)
    if version != FORMAT or signature != _signature(body):
        raise _damaged(path, "it was changed after it was written")
    try:
        return _from_json(body)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None


def _read_json(directory: Path, path: Path) -> dict[str, Any]:
    """The JSON object in a file that may be anything."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise _damaged(path, f"it is larger than {_MAX_BYTES:,} bytes")
        body = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise CaptureError(f"there is no capture in {str(directory)!r}: it has no {MANIFEST}") from None
    except OSError as error:
        raise OutputError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise _damaged(path, "it is no JSON") from None
    if not isinstance(body, dict):
        raise _damaged(path, "it is no JSON object")
    return body


def _to_json(manifest: Manifest) -> dict[str, Any]:
    """The manifest as plain values, in the order of its fields."""
    body: dict[str, Any] = {"format": FORMAT}
    body |= {f.name: getattr(manifest, f.name) for f in fields(Manifest)}
    body["layers"] = {
        str(layer): {f.name: getattr(record, f.name) for f in fields(LayerRecord)}
        for layer, record in manifest.layers.items()
    }
    body["files"] = {
        name: {
            "bytes": record.n_bytes,
            "sha256": record.sha256,
            "tensors": {tensor: info_to_text(info) for tensor, info in record.tensors.items()},
        }
        for name, record in sorted(manifest.files.items())
    }
    return body


def _from_json(body: dict[str, Any]) -> Manifest:
    """The manifest from plain values; raises a KeyError, TypeError or ValueError where they cannot be."""
    n_layers = _whole(body["config"]["n_layers"], 1, _MAX_LAYERS)
    for name in ("n_heads", "n_ctx", "d_model", "d_head"):
        _whole(body["config"][name], 1, 2**40)
    layers = {_whole(int(layer), 0, n_layers - 1): _layer(record) for layer, record in body["layers"].items()}
    manifest = Manifest(
        model_id=_text(body["model_id"]),
        config=body["config"],
        weights=_text(body["weights"]),
        n_tokens=_whole(body["n_tokens"], 2, 2**40),
        tokens=_text(body["tokens"]),
        stages=_names(body["stages"], STAGES),
        environment={str(key): value for key, value in body["environment"].items()},
        provenance={
            _text(section): {_text(key): _text(value) for key, value in rows.items()}
            for section, rows in body["provenance"].items()
        },
        layers=dict(sorted(layers.items())),
        blocks_run=_whole(body["blocks_run"], 0, n_layers),
        forced=tuple(body["forced"]),
        files={_file_name(name): _record(record) for name, record in body["files"].items()},
        loss=_flag(body.get("loss", True)),  # captures that were written before it could be left out have one
    )
    needed = {TOKENS, TOKEN_STRINGS, CONSTANTS, *map(layer_file, manifest.finished_layers)}
    needed |= set() if manifest.is_complete else {resume_file(manifest.blocks_run)} if manifest.blocks_run else set()
    if missing := sorted(needed - set(manifest.files)):
        raise ValueError(f"it does not name {', '.join(missing)}")
    if manifest.is_complete and manifest.blocks_run < manifest.n_blocks:
        raise ValueError("it has a loss and unfinished layers")
    return manifest


def _layer(record: dict[str, Any]) -> LayerRecord:
    """One layer's record, checked."""
    factor, spec = record["attention_factor"], record["spec"]
    numbers = [factor, spec["scale"], spec["softcap"] or 1.0, *(spec["alibi_slopes"] or [])]
    if not all(isinstance(number, int | float) for number in numbers) or not isinstance(spec["causal"], bool):
        raise ValueError("a layer's constants are not what a layer has")
    if spec["window"] is not None:
        _whole(spec["window"], 1, 2**40)
    stages = _names(record["stages"], STAGES)
    if not stages or stages[-1] != "final":
        raise ValueError("a layer lacks its final q and k")
    return LayerRecord(_names(record["steps"], STEPS), stages, spec, float(factor))


def _record(record: dict[str, Any]) -> FileRecord:
    """One file's record, checked."""
    tensors = {_text(name): info_from_text(_text(info)) for name, info in record["tensors"].items()}
    return FileRecord(_whole(record["bytes"], 0, 2**60), _text(record["sha256"]), tensors)


def _file_name(name: str) -> str:
    """The name, if a capture has files of such names: never a path out of its directory."""
    if not _NAMES.fullmatch(name):
        raise ValueError(f"{name!r} is the name of no file of a capture")
    return name


def _whole(value: object, low: int, high: int) -> int:
    """A whole number in a range."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{value!r} is no whole number from {low} to {high}")
    return value


def _flag(value: object) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _text(value: object) -> str:
    """A string."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _names(value: object, known: tuple[str, ...]) -> tuple[str, ...]:
    """A list of known names."""
    if not isinstance(value, list) or any(name not in known for name in value):
        raise ValueError(f"{value!r} is no list of {', '.join(known)}")
    return tuple(value)


def _signature(body: dict[str, Any]) -> str:
    """SHA-256 of everything else in the manifest."""
    return hashlib.sha256(_encode(body)).hexdigest()


def _encode(body: dict[str, Any]) -> bytes:
    """JSON for people to read, the same bytes every time."""
    return (json.dumps(body, indent=1) + "\n").encode()


def _damaged(path: Path, why: str) -> CaptureDamagedError:
    """The error for a manifest that cannot be trusted."""
    return CaptureDamagedError(
        f"{path} is damaged ({why}); copy it again from where it is whole, or delete the capture and capture again"
    )
