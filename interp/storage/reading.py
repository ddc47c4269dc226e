"""A capture on disk, read: memory-mapped, shapes checked when it is opened, a layer's hash when it is first read."""

import json
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooks import AttentionSpec, HookedTransformerConfig
from hooks.errors import CaptureDamagedError, CaptureError, ConfigError, DerivationWarning
from interp.storage.derived import check_close, derive, steps_done
from interp.storage.manifest import (
    LOSS,
    TOKEN_STRINGS,
    TOKENS,
    LayerRecord,
    Manifest,
    last_row,
    layer_file,
    read_manifest,
)
from interp.storage.scratch import Scratch
from interp.storage.statistics_store import StatisticsStore
from interp.storage.tensor_files import REMEDY, check_file, check_hash, read_tensor
from interp.tensors.capture_data import CaptureData
from interp.tensors.constants import LayerConstants
from interp.tensors.derivation import Derivation
from interp.tensors.documents import counted_positions
from interp.tensors.layers import TensorInfo
from interp.tensors.selection import Choice, part_of
from interp.tensors.stages import steps_before

_WEIGHTS = ("gain_q", "gain_k", "bias_q", "bias_k", "inv_freq", "w_o")
_SPEC = ("scale", "causal", "window", "softcap", "alibi_slopes")


def read_data(directory: Path, manifest: Manifest) -> CaptureData:
    """The capture that a manifest describes."""
    files, cfg = CaptureFiles(directory, manifest), config_of(directory, manifest)
    files.check()
    tokens = files.tensor(TOKENS, "tokens")
    return CaptureData(
        cfg=cfg,
        model_id=manifest.model_id,
        tokens=tokens,
        str_tokens=files.token_strings(),
        positions=files.positions(),
        loss=files.tensor(LOSS, "loss") if manifest.is_complete else torch.empty(0),
        provenance=manifest.provenance,
        _layers={layer: StoredLayer(files, layer, cfg) for layer in manifest.finished_layers},
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
        self.scratch = Scratch()
        self._trusted: set[str] = set()
        self._warned = False

    def check(self) -> None:
        """Check presence, size, shapes and types of every file; raises a CaptureDamagedError for what is not so."""
        for name, record in self.manifest.lasting.items():
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
        for file in {self.manifest.constants_file(layer) for layer in self.manifest.finished_layers}:
            for name, info in files[file].tensors.items():
                self._check_constant(file, name, info)

    def _check_layer(self, infos: dict[str, TensorInfo], record: LayerRecord, n: int, layer: int) -> None:
        """Check that a layer holds what it should, in shapes and a type that fit its model."""
        n_heads, n_kv_heads, width = _sizes(self.manifest.config)
        dtypes = {info.dtype for info in infos.values()}
        whole = sorted(record.parts) == sorted(infos) and len(dtypes) == 1 and all(t.is_floating_point for t in dtypes)
        for name, info in infos.items():
            rows = 1 if name.endswith(last_row("")) else n
            whole = whole and info.shape == (rows, n_heads if name[0] == "q" else n_kv_heads, width)
        if not whole or any(steps_before(stage, record.steps) is None for stage in record.stages):
            raise CaptureDamagedError(
                f"{self.directory / layer_file(layer)} does not hold {', '.join(record.parts)} of {n:,} tokens, "
                f"{n_heads} heads over {n_kv_heads} kv heads of width {width}; {REMEDY}"
            )

    def _check_constant(self, file: str, name: str, info: TensorInfo) -> None:
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
                f"{self.directory / file} has {name} of shape {list(info.shape)}, which no layer of this model "
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

    def constants_file(self, layer: int) -> str:
        """Name of the file with a layer's constants, which move once the rest of the capture is there."""
        if not (self.directory / self.manifest.constants_file(layer)).exists():
            self.manifest = read_manifest(self.directory)
        return self.manifest.constants_file(layer)

    def damaged(self) -> list[str]:
        """Every file that is not what it was, in words; reads all of them, and derives what is derived."""
        problems = []
        for name, record in self.manifest.lasting.items():
            try:
                check_file(self.directory / name, record)
                check_hash(self.directory / name, record)
            except CaptureError as error:
                problems.append(str(error))
        for layer in self.manifest.finished_layers if not problems else ():
            try:
                self.check()
                StoredLayer(self, layer, config_of(self.directory, self.manifest)).check_derived()
            except CaptureError as error:
                problems.append(str(error))
        return problems

    def warn_of_bits(self, where: str) -> None:
        """Say once that derived stages have other last bits here than where they were recorded."""
        if self._warned:
            return
        self._warned = True
        begun = self.manifest.environment
        there = f"torch {begun.get('torch')}, {begun.get('processor') or begun.get('device')}"
        here = f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
        warnings.warn(
            f"{where} was recorded with {there} and has other last bits here ({here}): what is measured of it agrees "
            "to the rounding of its type, not to the bit",
            DerivationWarning,
            stacklevel=3,
        )


class StoredLayer:
    """One layer on disk; each access maps the file anew, so that what is no longer used takes no memory.

    A stage that is not stored is derived. When it is first asked for all of it is, and compared with its hash; then
    only the rows that are asked for.
    """

    def __init__(self, files: CaptureFiles, layer: int, cfg: HookedTransformerConfig):
        self._files, self._layer, self._cfg = files, layer, cfg
        self._record = files.manifest.layers[layer]
        self._names = {(name[0], steps_done(name, self.steps)): name for name in self._record.names}
        self._constants: LayerConstants | None = None
        self._checked: set[str] = set()

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps from projection to score, in order."""
        return self._record.steps

    @property
    def q(self) -> "StoredTensors":
        """Queries by the number of steps behind them."""
        return StoredTensors(self, "q")

    @property
    def k(self) -> "StoredTensors":
        """Keys by the number of steps behind them."""
        return StoredTensors(self, "k")

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
        stored = self._files.infos(self._layer)
        return {name: stored[self._record.base(name)] for name in self._record.names} | {"v": stored["v"]}

    @property
    def derived(self) -> tuple[str, ...]:
        """Names of the stages that are not stored."""
        return tuple(self._record.derived)

    def part(self, which: str, done: int, positions: Choice = None, heads: Choice = None) -> Tensor:
        """Some positions and heads of q or k: views of the file, or derived from just these positions of it."""
        name = self._names[which, done]
        if name not in self._record.derived:
            return part_of(self._stored(name), positions, heads)
        whole = self._files.scratch.find((self._layer, name))
        if whole is None and (positions is None or name not in self._checked):
            whole = self._derive(name)
        if whole is not None:
            return part_of(whole, positions, heads)
        base = self._record.base(name)
        rows = part_of(self._stored(base), positions, None)
        index = part_of(torch.arange(self._files.manifest.n_tokens)[:, None, None], positions, None)[:, 0, 0]
        return part_of(self._derivation.rows(which, rows, index, steps_done(base, self.steps), done), None, heads)

    def check_derived(self) -> None:
        """Derive every stage that is not stored, and compare it with its hash; raises as reading it does."""
        for name in self._record.derived:
            self._derive(name)

    def _stored(self, name: str) -> Tensor:
        """A tensor of the layer's file."""
        return self._files.tensor(layer_file(self._layer), name)

    @cached_property
    def _derivation(self) -> Derivation:
        """Takes the layer's steps."""
        return Derivation(self._cfg, self._layer, self.steps, self.constants, self._files.positions())

    def _derive(self, name: str) -> Tensor:
        """A whole stage, once it is sure that it is the one that was recorded, but for last bits."""
        base, where = self._record.base(name), f"{name} of layer {self._layer} in {str(self._files.directory)!r}"
        first, last, source = steps_done(base, self.steps), steps_done(name, self.steps), self._stored(base)
        if not self._derivation.knows(name[0], first, last):
            raise CaptureDamagedError(f"{where} is not stored, and its layer lacks what it follows from; {REMEDY}")

        def fill(out: Tensor) -> None:
            sha256 = derive(out, self._derivation, name[0], source, first, last)
            if sha256 != self._record.derived[name]:
                check_close(where, out[-1:], self._stored(last_row(name)))
                self._files.warn_of_bits(where)
            self._checked.add(name)

        return self._files.scratch.make((self._layer, name), TensorInfo.of(source), fill)


class StoredTensors(Mapping[int, Tensor]):
    """q or k of a layer by the number of steps behind it, read when asked for."""

    def __init__(self, held: StoredLayer, which: str):
        self._held, self._which = held, which
        self._done = [done for other, done in held._names if other == which]

    def __getitem__(self, done: int) -> Tensor:
        if done not in self._done:
            raise KeyError(done)
        return self._held.part(self._which, done)

    def __iter__(self) -> Iterator[int]:
        return iter(self._done)

    def __len__(self) -> int:
        return len(self._done)


def constants_tensors(layer: int, constants: LayerConstants) -> dict[str, Tensor]:
    """The tensors among a layer's constants, under the names that they have in a file."""
    found = {name: getattr(constants, name) for name in _WEIGHTS} | {"sinks": constants.spec.sinks}
    return {f"{layer}.{name}": tensor for name, tensor in found.items() if tensor is not None}


def spec_values(spec: AttentionSpec) -> dict[str, Any]:
    """The plain values of a spec."""
    return {name: getattr(spec, name) for name in _SPEC}


def constants_of(files: CaptureFiles, layer: int) -> LayerConstants:
    """A layer's constants from the manifest and the constants' file."""
    file = files.constants_file(layer)
    record, there = files.manifest.layers[layer], files.manifest.files[file].tensors
    found = {
        name: files.tensor(file, f"{layer}.{name}") if f"{layer}.{name}" in there else None
        for name in (*_WEIGHTS, "sinks")
    }
    values: dict[str, Any] = {name: record.spec.get(name) for name in _SPEC}
    if values["alibi_slopes"] is not None:
        values["alibi_slopes"] = tuple(values["alibi_slopes"])
    spec = AttentionSpec(**values, sinks=found.pop("sinks"))
    return LayerConstants(**found, attention_factor=record.attention_factor, spec=spec)
