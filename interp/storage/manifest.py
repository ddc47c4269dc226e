"""manifest.json: what a capture on disk is of, which of its files are finished, and what each must be.

This version writes format 3 and reads 1 to 3. Since format 2 it says what a reader must understand, so that a capture
can come to hold more without being misread:

- ``parts``: for each layer the names of all tensors that its file holds: ``q.{stage}``, ``k.{stage}`` and ``v``. A
  reader that meets another name (``grad.z``, say) refuses. A layer that has not run yet has all that it may hold.
- ``documents``: where documents begin that were packed into one row; null is one document.
- ``padding``: which tokens are padding; null is none, and this version refuses all else.
- ``extras``: anything else, by name: ``{"optional": true, …}`` may be passed over, and is kept when the capture is gone
  on with; without ``"optional": true`` a reader that does not know the name refuses. So it does every further key.

Format 3 leaves out what follows from the rest:

- ``derived``: for each layer the stages of q and k that are not stored, because clip, norm and rotation give them from
  the stage before to the last bit; each with the SHA-256 of its bytes. Its last row is stored all the same, as
  ``q.{stage}.last``, so that other last bits, as another processor may give, can be told from other numbers.
- Constants of a layer are written with it, to a file of its own, and gathered in one once everything is captured.
"""

import hashlib
import json
import re
import stat
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from hooks.errors import CaptureDamagedError, CaptureError
from interp.common.files import replace_file
from interp.storage.tensor_files import REMEDY, FileRecord, cannot_read, info_from_text, info_to_text
from interp.storage.values import flag, names, number, positive, text, texts, whole
from interp.tensors.stages import STAGES, STEPS

FORMAT = 3
MANIFEST = "manifest.json"
TOKENS, TOKEN_STRINGS = "tokens.safetensors", "tokens.json"
CONSTANTS, LOSS = "constants.safetensors", "loss.safetensors"
_NAMES = re.compile(
    r"(tokens|constants|loss)\.safetensors|tokens\.json|(layer|constants|resume)_\d{3,6}\.safetensors", re.ASCII
)
_PASSING = ("resume_", "constants_")  # files that go away before or with the end
_MAX_BYTES = 64 * 2**20
_MAX_LAYERS = 100_000  # before anything is sized by a number that a file names


def layer_file(layer: int) -> str:
    """Name of the file with q, k and v of a layer."""
    return f"layer_{layer:03d}.safetensors"


def resume_file(blocks_run: int) -> str:
    """Name of the file with the residual stream after this many blocks."""
    return f"resume_{blocks_run:03d}.safetensors"


def layer_constants_file(layer: int) -> str:
    """Name of the file with the constants of a layer, until everything is captured."""
    return f"constants_{layer:03d}.safetensors"


def last_row(name: str) -> str:
    """Name of the last row of a derived stage."""
    return f"{name}.last"


@dataclass(frozen=True)
class LayerRecord:
    """What a captured layer is: its steps, the stages it has, and the plain values of its constants.

    Attributes:
        steps: clip, norm and rope in its order.
        stages: the stages of q and k, the last is final.
        spec: plain values of its spec.
        attention_factor: what cos and sin are multiplied by.
        derived: names of the stages that are not stored (q.pre_rope, …), each with the SHA-256 of its bytes.
    """

    steps: tuple[str, ...]
    stages: tuple[str, ...]
    spec: dict[str, Any]
    attention_factor: float
    derived: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layer's q and k, stored or not."""
        return tuple(f"{x}.{stage}" for x in "qk" for stage in self.stages)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the tensors that the layer's file holds."""
        return (*(last_row(name) if name in self.derived else name for name in self.names), "v")

    def base(self, name: str) -> str:
        """The stored stage that a stage is derived from, or the stage itself."""
        same = [other for other in self.names if other[0] == name[0]]
        return next(other for other in reversed(same[: same.index(name) + 1]) if other not in self.derived)


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
        documents: where the documents begin that are packed into its row; None is one.
        extras: what else it holds, of which nothing here need be known.
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
    documents: tuple[int, ...] | None = None
    extras: dict[str, Any] = field(default_factory=dict)

    @property
    def dtype(self) -> str:
        """Type of the model's weights as it ran; a model that was cast has another one than its configuration."""
        return self.provenance.get("settings", {}).get("dtype", "")

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
        """The manifest once these files are finished.

        Of residual streams only the last one stays part of it, and constants of single layers until all are gathered.
        """
        spent = _PASSING if CONSTANTS in finished else ("resume_",)
        kept = {name: record for name, record in self.files.items() if not name.startswith(spent)}
        return replace(self, blocks_run=blocks_run, files=kept | finished)

    @property
    def lasting(self) -> dict[str, FileRecord]:
        """Files that no writer removes."""
        return {name: record for name, record in self.files.items() if not name.startswith(_PASSING)}

    def constants_file(self, layer: int) -> str:
        """Name of the file that has the constants of a finished layer."""
        return CONSTANTS if CONSTANTS in self.files else layer_constants_file(layer)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Put the manifest in place of the one before.

    Raises:
        OutputError: what stands there is no manifest.
        OSError: it cannot be written; the one before still stands.
    """
    body = _to_json(manifest)
    replace_file(directory / MANIFEST, [_encode({**body, "sha256": _signature(body)})], is_manifest)


def is_manifest(path: Path) -> bool:
    """Whether a file is a capture's manifest, of any version."""
    try:
        return _is_signed(_json_object(path))
    except (CaptureError, OSError):
        return False


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a capture, checked.

    Raises:
        CaptureError: there is no capture, or one of a newer format.
        CaptureDamagedError: the manifest is no JSON, was changed, or says what no capture can be.
    """
    path = directory / MANIFEST
    try:
        body = _json_object(path)
    except (FileNotFoundError, NotADirectoryError):
        raise CaptureError(f"there is no capture in {str(directory)!r}: it has no {MANIFEST}") from None
    except OSError as error:
        raise cannot_read(path, error) from None
    version, signature = body.get("format"), body.pop("sha256", None)
    if version is None and signature is None:
        raise CaptureError(f"there is no capture in {str(directory)!r}: ropescope did not write its {MANIFEST}")
    if type(version) is int and version > FORMAT:
        raise CaptureError(
            f"{path} has format {version}, and this version of ropescope reads up to {FORMAT}: update ropescope"
        )
    if type(version) is not int or version < 1 or signature != _signature(body):
        raise _damaged(path, "it was changed after it was written")
    try:
        manifest = _from_json(body)
        unknown = [] if version == 1 else _unknown(body, manifest)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    if unknown:
        raise CaptureError(
            f"the capture in {str(directory)!r} holds {', '.join(unknown)}, which this version of ropescope does not "
            "read: update ropescope"
        )
    return manifest


def _json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file that may be anything, also a device that never ends."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise _damaged(path, "it is no regular file")
    if found.st_size > _MAX_BYTES:
        raise _damaged(path, f"it is larger than {_MAX_BYTES:,} bytes")
    try:
        body = json.loads(path.read_bytes(), parse_constant=lambda word: _constant(path, word))
    except (ValueError, RecursionError):
        raise _damaged(path, "it is no JSON") from None
    if not isinstance(body, dict):
        raise _damaged(path, "it is no JSON object")
    return body


def _constant(path: Path, word: str) -> float:
    """Infinity as a number; NaN, which is none, as an error."""
    if word == "NaN":
        raise _damaged(path, "it holds NaN")
    return float(word)


def _is_signed(body: dict[str, Any]) -> bool:
    """Whether an object is a manifest by its form, whatever became of it since."""
    return type(body.get("format")) is int and isinstance(body.get("sha256"), str)


def _unknown(body: dict[str, Any], manifest: Manifest) -> list[str]:
    """What a manifest says that its capture holds and this version would not see; raises where parts are missing."""
    if "documents" not in body:
        raise ValueError("it does not say whether documents are packed")
    found = ["padding"] if body["padding"] is not None else []
    found += [name for name, extra in manifest.extras.items() if extra.get("optional") is not True]
    if sorted(body["parts"]) != sorted(map(str, manifest.layers)):
        raise ValueError("its parts are not those of its layers")
    for layer, record in manifest.layers.items():
        parts = texts(body["parts"][str(layer)])
        if missing := [name for name in record.parts if name not in parts]:
            raise ValueError(f"layer {layer} lacks {', '.join(missing)}")
        found += [name for name in parts if name not in record.parts]
    found += [name for name in body if name not in _to_json(manifest)]
    return list(dict.fromkeys(found))


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
    body["parts"] = {str(layer): list(record.parts) for layer, record in manifest.layers.items()}
    return {**body, "padding": None}


def _from_json(body: dict[str, Any]) -> Manifest:
    """The manifest from plain values; raises a KeyError, TypeError or ValueError where they cannot be."""
    n_layers = whole(body["config"]["n_layers"], 1, _MAX_LAYERS)
    for name in ("n_heads", "n_ctx", "d_model", "d_head"):
        whole(body["config"][name], 1, 2**40)
    heads = body["config"]["n_heads"]
    layers = {whole(int(layer), 0, n_layers - 1): _layer(record, heads) for layer, record in body["layers"].items()}
    manifest = Manifest(
        model_id=text(body["model_id"]),
        config=body["config"],
        weights=text(body["weights"]),
        n_tokens=whole(body["n_tokens"], 2, 2**40),
        tokens=text(body["tokens"]),
        stages=names(body["stages"], STAGES),
        environment={str(key): value for key, value in body["environment"].items()},
        provenance={
            text(section): {text(key): text(value) for key, value in rows.items()}
            for section, rows in body["provenance"].items()
        },
        layers=dict(sorted(layers.items())),
        blocks_run=whole(body["blocks_run"], 0, n_layers),
        forced=tuple(body["forced"]),
        files={_file_name(name): _record(record) for name, record in body["files"].items()},
        loss=flag(body.get("loss", True)),  # captures that were written before it could be left out have one
        documents=_documents(body.get("documents"), body["n_tokens"]),
        extras={text(name): dict(extra) for name, extra in body.get("extras", {}).items()},
    )
    if not layers:
        raise ValueError("it has no layer")
    needed = {TOKENS, TOKEN_STRINGS, *map(layer_file, manifest.finished_layers)}
    needed |= {CONSTANTS} if manifest.is_complete else set(map(manifest.constants_file, manifest.finished_layers))
    needed |= set() if manifest.is_complete else {resume_file(manifest.blocks_run)} if manifest.blocks_run else set()
    if missing := sorted(needed - set(manifest.files)):
        raise ValueError(f"it does not name {', '.join(missing)}")
    if manifest.is_complete and manifest.blocks_run < manifest.n_blocks:
        raise ValueError("it has a loss and unfinished layers")
    return manifest


def _documents(value: object, n_tokens: int) -> tuple[int, ...] | None:
    """Where several documents begin: the first at 0, each after the one before."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) < 2 or value[0] != 0:
        raise ValueError(f"{str(value)[:40]} does not say where documents begin")
    lows = [0, *(whole(start, 0, n_tokens) + 1 for start in value[:-1])]
    return tuple(whole(start, low, n_tokens - 1) for start, low in zip(value, lows, strict=True))


def _layer(record: dict[str, Any], n_heads: int) -> LayerRecord:
    """One layer's record, checked."""
    spec, slopes = record["spec"], record["spec"]["alibi_slopes"]
    positive(spec["scale"])
    flag(spec["causal"])
    if spec["softcap"] is not None:
        positive(spec["softcap"])
    if spec["window"] is not None:
        whole(spec["window"], 1, 2**40)
    if slopes is not None and len([number(slope) for slope in slopes]) != n_heads:
        raise ValueError("a layer's ALiBi slopes are not one a head")
    stages = names(record["stages"], STAGES)
    if not stages or stages[-1] != "final" or len(set(stages)) < len(stages):
        raise ValueError("a layer lacks its final q and k, or has a stage twice")
    derived = {text(name): text(sha256) for name, sha256 in record.get("derived", {}).items()}
    found = LayerRecord(names(record["steps"], STEPS), stages, spec, positive(record["attention_factor"]), derived)
    # The first stage has none before it.
    if not set(derived) <= set(found.names) - {f"{x}.{stages[0]}" for x in "qk"}:
        raise ValueError("a layer derives a stage that it does not have, or from nothing")
    return found


def _record(record: dict[str, Any]) -> FileRecord:
    """One file's record, checked."""
    tensors = {text(name): info_from_text(text(info)) for name, info in record["tensors"].items()}
    return FileRecord(whole(record["bytes"], 0, 2**60), text(record["sha256"]), tensors)


def _file_name(name: str) -> str:
    """The name, if a capture has files of such names: never a path out of its directory."""
    if not _NAMES.fullmatch(name):
        raise ValueError(f"{name!r} is the name of no file of a capture")
    return name


def _signature(body: dict[str, Any]) -> str:
    """SHA-256 of everything else in the manifest."""
    return hashlib.sha256(_encode(body)).hexdigest()


def _encode(body: dict[str, Any]) -> bytes:
    """JSON for people to read, the same bytes every time."""
    return (json.dumps(body, indent=1) + "\n").encode()


def _damaged(path: Path, why: str) -> CaptureDamagedError:
    """The error for a manifest that cannot be trusted."""
    return CaptureDamagedError(f"{path} is damaged ({why}); {REMEDY}")
