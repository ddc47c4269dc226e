"""A capture on disk, written: killed at any moment, it goes on from the last finished layer to the same bytes."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from hooks import checks
from hooks.errors import CaptureError, CaptureMismatchError, OutputError
from hooks.loading.stream import EMBED, HEAD
from interp.common.files import TEMPORARY, check_own, is_own, remove_file, replace_file, sync_directory
from interp.recording.constants import layer_constants
from interp.recording.plan import CapturePlan
from interp.recording.provenance import environment
from interp.recording.run import run_blocks
from interp.storage import manifest as names
from interp.storage.background import Background
from interp.storage.derived import without_derived
from interp.storage.disk import check_room, system_errors_named
from interp.storage.lock import LOCK, locked
from interp.storage.manifest import (
    Manifest,
    layer_constants_file,
    layer_file,
    read_manifest,
    resume_file,
    write_manifest,
)
from interp.storage.own_files import SOURCE, OwnFiles, has_json_mark, marked_json
from interp.storage.reading import CaptureFiles, constants_tensors
from interp.storage.tensor_files import FileRecord, write_bytes, write_tensors
from interp.storage.wanted import check_same, manifest_of
from interp.tensors.constants import LayerConstants
from interp.tensors.derivation import Derivation

# All that may stand in a directory where a capture was begun and has no manifest yet.
_OURS = (LOCK, SOURCE, names.TOKENS, names.TOKEN_STRINGS, names.CONSTANTS)
WEIGHTS = "weights"  # name of the manifest's extra with the SHA-256 of streamed weights
_STREAM = re.compile(r"resume_\d{3,6}\.safetensors", re.ASCII)


class Watch(Protocol):
    """Looks on while a capture is written."""

    def start(self) -> None:
        """The blocks begin to run."""
        ...

    def finished(self, layer: int) -> None:
        """A block has run and what it leaves is written."""
        ...


def write_capture(
    plan: CapturePlan,
    path: str | Path,
    *,
    force: bool = False,
    watch: Watch | None = None,
) -> None:
    """Capture to a directory, going on from where an earlier run of the same capture stopped.

    Args:
        plan: what to capture.
        path: the directory; made if it is not there, opened if it holds this capture already.
        force: go on although torch, the threads, the device or the processor changed, and last bits with them.
        watch: is told when the blocks begin and when each is finished.

    Raises:
        CaptureMismatchError: another capture is there, or it was begun in another environment.
        CaptureBusyError: another process is writing it.
        CaptureDamagedError: a finished file is missing or changed.
        CaptureError: the path holds something else.
        OutputError: it cannot be written, or would not fit on the disk. What is finished stays, to be resumed.
    """
    directory = checks.path("path", path, error=OutputError)
    with system_errors_named(directory):
        own = OwnFiles(plan.n_tokens, plan.model.cfg.d_model, json.dumps(_source_of(plan)).encode())
        _entries(directory, own)  # before the weights are read to tell one model from another
        wanted = manifest_of(plan)
        if names.MANIFEST in _entries(directory, own):
            found = read_manifest(directory)
            check_same(directory, found, wanted)
            if found.is_complete and not _leftovers(directory, found, own):
                return
        else:
            check_room(directory, plan.stored_bytes() + 2 * plan.stream_bytes)
            directory.mkdir(exist_ok=True)
            sync_directory(directory.absolute().parent)
        with locked(directory):
            CaptureWriter(directory, plan, wanted, own, force=force, watch=watch).run()


class CaptureWriter:
    """Writes the files of one capture, under its lock.

    A file is whole once the manifest names it. What the manifest does not name is a leftover of a run that was killed,
    and is written again.
    """

    def __init__(
        self,
        directory: Path,
        plan: CapturePlan,
        wanted: Manifest,
        own: OwnFiles,
        *,
        force: bool,
        watch: Watch | None,
    ):
        self.directory, self.plan, self.manifest, self.own, self.watch = directory, plan, wanted, own, watch
        if names.MANIFEST in _entries(directory, own):  # written by a process that held the lock until now
            self.manifest = read_manifest(directory)
            check_same(directory, self.manifest, wanted)
            self._continue(force=force)
        else:
            self._begin()

    def run(self) -> None:
        """Run what has not run, then the loss."""
        if self.manifest.is_complete:
            return
        start, resid = self.manifest.blocks_run, None
        if start:
            files = CaptureFiles(self.directory, self.manifest)
            # A copy: torch aligns it as it does the stream of a run that was not interrupted.
            resid = files.tensor(resume_file(start), "residual").clone().to(self.plan.tokens.device)
        if self.watch is not None:
            self.watch.start()
        with Background() as self._background:
            loss = run_blocks(self.plan, self, start, resid)
        self._note_weights(ran_head=self.plan.loss)
        last = {} if names.CONSTANTS in self.manifest.files else {names.CONSTANTS: self._gathered_constants()}
        last[names.LOSS] = {"loss": loss}
        self._finish(self.manifest.blocks_run, {name: self._write(name, x) for name, x in last.items()})

    def put(self, layer: int, tensors: dict[str, Tensor], resid: Float[Tensor, "1 pos d_model"]) -> None:
        """Have what was kept of a block, and the residual stream after it, written while the next one runs."""
        constants = layer_constants(self.plan.model, layer, self.plan.rope_length) if tensors else None
        if layer + 1 < self.plan.n_blocks:
            resid = resid.clone()  # a hook of the next block may edit it in place
        self._background.run(self._put, layer, tensors, constants, resid)

    def _put(self, layer: int, tensors: dict[str, Tensor], constants: LayerConstants | None, resid: Tensor) -> None:
        """Write what was kept of a block and the residual stream after it; then the manifest."""
        written = {}
        if constants is not None:
            written[layer_file(layer)] = self._stored(layer, tensors, constants)
            if names.CONSTANTS not in self.manifest.files:  # an earlier version wrote those of all layers first
                written[layer_constants_file(layer)] = constants_tensors(layer, constants)
        written[resume_file(layer + 1)] = {"residual": resid}
        self._note_weights(layer)
        self._finish(layer + 1, {name: self._write(name, x) for name, x in written.items()})
        if self.watch is not None:
            self.watch.finished(layer)

    def _stored(self, layer: int, tensors: dict[str, Tensor], constants: LayerConstants) -> dict[str, Tensor]:
        """What is to be stored of a layer, whose record is told what is not."""
        cfg, record = self.plan.model.cfg, self.manifest.layers[layer]
        known = constants.on_cpu()
        derivation = Derivation(cfg, layer, record.steps, known, self.plan.positions)
        here = {name: tensors.pop(name).cpu() for name in list(tensors)}
        stored, derived = without_derived(here, record.steps, derivation)
        layers = self.manifest.layers | {layer: replace(record, derived=derived)}
        self.manifest = replace(self.manifest, layers=layers)
        return stored

    def _gathered_constants(self) -> dict[str, Tensor]:
        """The constants of all layers, from the files that were written with them."""
        files = CaptureFiles(self.directory, self.manifest)
        found = {}
        for layer in self.manifest.layers:
            name = layer_constants_file(layer)
            found |= {tensor: files.tensor(name, tensor) for tensor in self.manifest.files[name].tensors}
        return found

    def _note_weights(self, layer: int | None = None, *, ran_head: bool = False) -> None:
        """Note the SHA-256 of the streamed weights that a block was computed with."""
        stream = getattr(self.plan.model, "stream", None)
        if stream is None:
            return
        ran = ([] if layer is None else [EMBED, f"blocks.{layer}"]) + [HEAD] * ran_head
        noted = self.manifest.extras.get(WEIGHTS, {}).get("sha256", {})
        noted = noted | {unit: stream.digests[unit] for unit in ran if unit in stream.digests}
        self.manifest = replace(
            self.manifest, extras=self.manifest.extras | {WEIGHTS: {"optional": True, "sha256": noted}}
        )

    def _write(self, name: str, tensors: dict[str, Tensor]) -> FileRecord:
        """Write one file of tensors, in the place of nothing but our own."""
        return write_tensors(self.directory / name, tensors, ours=self.own)

    def _begin(self) -> None:
        """Write all that is known before the model runs."""
        self._write_source()
        tokens = self.plan.tokens[0].cpu()
        strings = {"token 0": self.manifest.provenance["text"]["token 0"], "str_tokens": self.plan.str_tokens}
        texts = marked_json("tokens", strings)
        records = {
            names.TOKENS: self._write(names.TOKENS, {"tokens": tokens, "positions": self.plan.positions}),
            names.TOKEN_STRINGS: write_bytes(self.directory / names.TOKEN_STRINGS, texts, self.own),
        }
        self._finish(0, records)

    def _write_source(self) -> None:
        """Write where the model came from: only a resumed run needs it, and it goes away with the end of the run."""
        replace_file(self.directory / SOURCE, [marked_json("source", _source_of(self.plan))], self.own)

    def _continue(self, *, force: bool) -> None:
        """Make sure that what is finished is whole, that the rest will fit it bit by bit, and that it has its place."""
        CaptureFiles(self.directory, self.manifest).check()
        ran, every = self.manifest.blocks_run, range(self.manifest.n_blocks + 1)
        layers = [n for n in self.plan.steps if n >= ran]
        to_come = [*map(layer_file, layers), *map(layer_constants_file, layers), *map(resume_file, every[ran + 1 :])]
        for name in () if self.manifest.is_complete else (*to_come, names.LOSS):
            check_own(self.directory / name, self.own)
        self._remove_leftovers()
        if self.manifest.is_complete:
            return
        if (self.directory / SOURCE).is_file() and self.own(self.directory / SOURCE):
            self._write_source()  # an earlier version's carries no mark
        check_room(self.directory, self.plan.stored_bytes(ran) + 2 * self.plan.stream_bytes)
        begun, now = self.manifest.environment, environment(self.plan.model)
        if self.manifest.forced:
            begun = {key: value for key, value in self.manifest.forced[-1].items() if key != "from_block"}
        if begun == now:
            return
        if not force:
            changed = [f"{key} {begun.get(key)} then, {now[key]} now" for key in now if begun.get(key) != now[key]]
            raise CaptureMismatchError(
                f"the capture in {str(self.directory)!r} was begun in another environment ({', '.join(changed)}), so "
                "the rest would differ in the last bits: restore it, or go on all the same with force=True (--force)"
            )
        went_on = {"from_block": self.manifest.blocks_run, **now}
        self.manifest = replace(self.manifest, forced=(*self.manifest.forced, went_on))

    def _finish(self, blocks_run: int, records: dict[str, FileRecord]) -> None:
        """Name finished files in the manifest; only then may those before them go."""
        self.manifest = self.manifest.after(blocks_run, records)
        write_manifest(self.directory, self.manifest)
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        """Delete files of ours that the manifest does not name."""
        _remove(self.directory, _leftovers(self.directory, self.manifest, self.own), self.own)


def tidy(directory: Path) -> None:
    """Remove what a run left that was killed after its capture was complete.

    Raises:
        CaptureBusyError: another process is writing it.
        OutputError: it cannot be removed.
    """
    with system_errors_named(directory):
        manifest = read_manifest(directory)
        own = OwnFiles(manifest.n_tokens, manifest.config["d_model"])
        if manifest.is_complete and _leftovers(directory, manifest, own):
            with locked(directory):
                _remove(directory, _leftovers(directory, manifest, own), own)


def _remove(directory: Path, leftovers: list[str], own: OwnFiles) -> None:
    """Delete these files of a directory, for good."""
    if [name for name in leftovers if remove_file(directory / name, own)]:
        sync_directory(directory)


def _source_of(plan: CapturePlan) -> dict[str, str | None]:
    """Where the model of a plan was loaded from; an attached one came from somewhere else."""
    return {"model": getattr(plan.model, "loaded_from", None)}


def _entries(directory: Path, own: OwnFiles) -> set[str]:
    """Names in a directory that may not be there; raises a CaptureError for one that somebody else uses."""
    if not os.path.lexists(directory):
        return set()
    if not directory.is_dir():
        raise CaptureError(f"{str(directory)!r} is a file, and a capture is a directory: choose another path")
    found = set(os.listdir(directory))
    expected = {n for n in found if n in _OURS or Path(n).match(TEMPORARY)}
    foreign = sorted(n for n in found if n not in expected or not is_own(directory / n, own))
    if names.MANIFEST not in found and foreign:
        raise CaptureError(
            f"{str(directory)!r} is no capture and not empty (it holds {', '.join(foreign[:3])}): choose another path"
        )
    return found


def _leftovers(directory: Path, manifest: Manifest, own: OwnFiles) -> list[str]:
    """Files of ours that a killed run left, and the source once it is of no more use."""
    layers = {*map(layer_file, manifest.layers), *map(layer_constants_file, manifest.layers), names.LOSS}
    layers |= {names.CONSTANTS}
    found = []
    for name in os.listdir(directory):
        left = name not in manifest.files and (name in layers or _STREAM.fullmatch(name) or Path(name).match(TEMPORARY))
        spent = name == SOURCE and manifest.is_complete and is_own(directory / name, _has_source_mark)
        if spent or (left and is_own(directory / name, own)):
            found.append(name)
    return sorted(found)


def _has_source_mark(path: Path) -> bool:
    """Whether a file says, in this version's form, where a model came from."""
    return has_json_mark(path, "source")
