"""A capture on disk, read: memory-mapped, shapes checked when it is opened, a layer's hash when it is first read."""

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooks import AttentionSpec, HookedTransformerConfig
from hooks.errors import CaptureDamagedError, CaptureError, ConfigError
from interp.storage.manifest import (
    CONSTANTS,
    LOSS,
    TOKEN_STRINGS,
    TOKENS,
    LayerRecord,
    Manifest,
    layer_file,
)
from interp.storage.statistics_store import StatisticsStore
from interp.storage.tensor_files import REMEDY, FileRecord, check_file, check_hash, read_tensor
from interp.tensors.capture_data import CaptureData
from interp.tensors.constants import LayerConstants
from interp.tensors.documents import counted_positions
from interp.tensors.layers import TensorInfo
from interp.tensors.stages import steps_before

_WEIGHTS = ("gain_q", "gain_k", "bias_q", "bias_k", "inv_freq", "w_o")
_SPEC = ("scale", "causal", "window", "softcap", "alibi_slopes")


def read_data(directory: Path, manifest: Manifest) -> CaptureData:
    """The capture that a manifest describes."""
    files = CaptureFiles(directory, manifest)
    files.check()
    tokens = files.tensor(TOKENS, "tokens")
    return CaptureData(
        cfg=config_of(directory, manifest),
        model_id=manifest.model_id,
        tokens=tokens,
        str_tokens=files.token_strings(),
        positions=files.positions(),
        loss=files.tensor(LOSS, "loss") if manifest.is_complete else torch.empty(0),
        provenance=manifest.provenance,
        _layers={layer: StoredLayer(files, layer) for layer in manifest.finished_layers},
        path=directory,
        is_complete=manifest.is_complete,
        _store=StatisticsStore(directory, {n: manifest.files[layer_file(n)].sha256 for n in manifest.finished_layers}),
    )


def config_of(directory: Path, manifest: Manifest) -> HookedTransformerConfig:
    """The model's configuration as the manifest has it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when the model was built
        try:
            return HookedTransformerConfig.from_dict(manifest.config)
        except (ConfigError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            raise CaptureError(
                f"the manifest in {str(directory)!r} has a model configuration that this version of ropescope does not "
                f"read ({error}): update ropescope, or capture again"
            ) from None


def _sizes(config: dict[str, Any]) -> tuple[int, int, int]:
    """Heads, kv heads, and width of a head."""
    return config["n_heads"], config.get("n_key_value_heads") or config["n_heads"], config["d_head"]


class CaptureFiles:
    """The files of a capture, each trusted once it was found to be what the manifest says."""

    def __init__(self, directory: Path, manifest: Manifest):
        self.directory, self.manifest = directory, manifest
        self._trusted: set[str] = set()

    def check(self) -> None:
        """Check presence, size, shapes and types of every file; raises a CaptureDamagedError for what is not so."""
        for name, record in self._lasting():
            check_file(self.directory / name, record)
        n, files = self.manifest.n_tokens, self.manifest.files
        for layer in self.manifest.finished_layers:
            self._check_layer(self.infos(layer), self.manifest.layers[layer], n, layer)
        if files[TOKENS].tensors != dict.fromkeys(("tokens", "positions"), TensorInfo((n,), torch.int64)):
            raise CaptureDamagedError(f"{self.directory / TOKENS} does not hold {n:,} token ids; {REMEDY}")
        if self.manifest.is_complete:
            predicted = n - 1 if self.manifest.loss else 0
            if {name: info.shape for name, info in files[LOSS].tensors.items()} != {"loss": (predicted,)}:
                raise CaptureDamagedError(f"{self.directory / LOSS} does not hold {predicted:,} losses; {REMEDY}")
        for name, info in files[CONSTANTS].tensors.items():
            self._check_constant(name, info)

    def _lasting(self) -> list[tuple[str, FileRecord]]:
        """Files that no writer removes: the residual stream goes with the next layer, and is checked when read."""
        return [(name, record) for name, record in self.manifest.files.items() if not name.startswith("resume_")]

    def _check_layer(self, infos: dict[str, TensorInfo], record: LayerRecord, n: int, layer: int) -> None:
        """Check that a layer holds what it should, in shapes and a type that fit its model."""
        n_heads, n_kv_heads, width = _sizes(self.manifest.config)
        dtypes = {info.dtype for info in infos.values()}
        whole = sorted(record.parts) == sorted(infos) and len(dtypes) == 1 and all(t.is_floating_point for t in dtypes)
        for name, info in infos.items():
            whole = whole and info.shape == (n, n_heads if name[0] == "q" else n_kv_heads, width)
        if not whole or any(steps_before(stage, record.steps) is None for stage in record.stages):
            raise CaptureDamagedError(
                f"{self.directory / layer_file(layer)} does not hold {', '.join(record.parts)} of {n:,} tokens, "
                f"{n_heads} heads over {n_kv_heads} kv heads of width {width}; {REMEDY}"
            )

    def _check_constant(self, name: str, info: TensorInfo) -> None:
        """Check that a constant of a layer has a shape that goes with its heads."""
        n_heads, n_kv_heads, width = _sizes(self.manifest.config)
        layer, _, which = name.partition(".")
        known = {
            "gain_q": (n_heads, width),
            "bias_q": (n_heads, width),
            "gain_k": (n_kv_heads, width),
            "bias_k": (n_kv_heads, width),
            "sinks": (n_heads,),
            "w_o": (n_heads, width, *info.shape[2:3]),
            "inv_freq": info.shape if len(info.shape) == 1 and 2 * info.shape[0] <= width else None,
        }
        if not info.dtype.is_floating_point or not layer.isdecimal() or known.get(which) != info.shape:
            raise CaptureDamagedError(
                f"{self.directory / CONSTANTS} has {name} of shape {list(info.shape)}, which no layer of this model "
                f"has; {REMEDY}"
            )

    def trusted(self, name: str) -> Path:
        """Path of a file whose hash is right; read in full the first time."""
        if name not in self._trusted:
            check_hash(self.directory / name, self.manifest.files[name])
            self._trusted.add(name)
        return self.directory / name

    def tensor(self, file: str, name: str) -> Tensor:
        """One tensor, memory-mapped."""
        return read_tensor(self.trusted(file), name)

    def positions(self) -> Int[Tensor, " pos"]:
        """Position of each token, which count from 0 in each of the documents that the manifest names."""
        found, named = self.tensor(TOKENS, "positions"), self.manifest.documents
        starts = None if named is None else torch.tensor(named)
        if not torch.equal(found, counted_positions(starts, self.manifest.n_tokens)):
            raise CaptureDamagedError(
                f"{self.directory / TOKENS} does not hold positions that count from 0 in each document; {REMEDY}"
            )
        return found

    def infos(self, layer: int) -> dict[str, TensorInfo]:
        """Shapes and types of a layer's tensors; reads no data."""
        return self.manifest.files[layer_file(layer)].tensors

    def token_strings(self) -> list[str]:
        """The tokens as strings."""
        path, n = self.trusted(TOKEN_STRINGS), self.manifest.n_tokens
        try:
            match json.loads(path.read_bytes()):
                case {"str_tokens": list(found)} if len(found) == n and all(isinstance(text, str) for text in found):
                    return found
        except (ValueError, RecursionError):
            pass
        raise CaptureDamagedError(f"{path} does not hold the texts of {n:,} tokens; {REMEDY}")

    def damaged(self) -> list[str]:
        """Every file that is not what it was, in words; reads all of them."""
        problems = []
        for name, record in self._lasting():
            try:
                check_file(self.directory / name, record)
                check_hash(self.directory / name, record)
            except CaptureError as error:
                problems.append(str(error))
        return problems


class StoredLayer:
    """One layer on disk; each access maps the file anew, so that what is no longer used takes no memory."""

    def __init__(self, files: CaptureFiles, layer: int):
        self._files, self._layer = files, layer
        self._record = files.manifest.layers[layer]
        self._constants: LayerConstants | None = None

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps from projection to score, in order."""
        return self._record.steps

    @property
    def q(self) -> "StoredTensors":
        """Queries by the number of steps behind them."""
        return StoredTensors(self._files, self._layer, "q")

    @property
    def k(self) -> "StoredTensors":
        """Keys by the number of steps behind them."""
        return StoredTensors(self._files, self._layer, "k")

    @property
    def v(self) -> Float[Tensor, "pos kv_head d_head"]:
        """Values."""
        return self._files.tensor(layer_file(self._layer), "v")

    @property
    def constants(self) -> LayerConstants:
        """What scores are made of beside q and k."""
        if self._constants is None:
            self._constants = constants_of(self._files, self._layer)
        return self._constants

    def infos(self) -> dict[str, TensorInfo]:
        """Shape and type of each tensor by name."""
        return self._files.infos(self._layer)


class StoredTensors(Mapping[int, Tensor]):
    """q or k of a layer by the number of steps behind it, read when asked for."""

    def __init__(self, files: CaptureFiles, layer: int, which: str):
        record = files.manifest.layers[layer]
        self._names = {steps_before(stage, record.steps): f"{which}.{stage}" for stage in record.stages}
        self._files, self._layer = files, layer

    def __getitem__(self, done: int) -> Tensor:
        return self._files.tensor(layer_file(self._layer), self._names[done])

    def __iter__(self) -> Iterator[int]:
        return (done for done in self._names if done is not None)

    def __len__(self) -> int:
        return len(self._names)


def constants_tensors(layer: int, constants: LayerConstants) -> dict[str, Tensor]:
    """The tensors among a layer's constants, under the names that they have in a file."""
    found = {name: getattr(constants, name) for name in _WEIGHTS} | {"sinks": constants.spec.sinks}
    return {f"{layer}.{name}": tensor for name, tensor in found.items() if tensor is not None}


def spec_values(spec: AttentionSpec) -> dict[str, Any]:
    """The plain values of a spec."""
    return {name: getattr(spec, name) for name in _SPEC}


def constants_of(files: CaptureFiles, layer: int) -> LayerConstants:
    """A layer's constants from the manifest and the constants' file."""
    record = files.manifest.layers[layer]
    there = files.manifest.files[CONSTANTS].tensors
    found = {
        name: files.tensor(CONSTANTS, f"{layer}.{name}") if f"{layer}.{name}" in there else None
        for name in (*_WEIGHTS, "sinks")
    }
    values: dict[str, Any] = {name: record.spec.get(name) for name in _SPEC}
    if values["alibi_slopes"] is not None:
        values["alibi_slopes"] = tuple(values["alibi_slopes"])
    spec = AttentionSpec(**values, sinks=found.pop("sinks"))
    return LayerConstants(**found, attention_factor=record.attention_factor, spec=spec)
