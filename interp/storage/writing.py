"""A capture on disk, written: killed at any moment, it goes on from the last finished layer to the same bytes."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor

from hooks import checks
from hooks.config.comparing import differing_settings
from hooks.errors import CaptureError, CaptureMismatchError, OutputError
from interp.common.files import TEMPORARY, check_own, is_own, remove_file, replace_file, sync_directory
from interp.recording.constants import layer_constants
from interp.recording.plan import CapturePlan
from interp.recording.provenance import environment, token_hash, weight_hash
from interp.recording.run import run_blocks
from interp.storage import manifest as names
from interp.storage.lock import LOCK, locked
from interp.storage.manifest import LayerRecord, Manifest, layer_file, read_manifest, resume_file, write_manifest
from interp.storage.own_files import SOURCE, OwnFiles, has_json_mark, marked_json
from interp.storage.reading import CaptureFiles, constants_tensors, spec_values
from interp.storage.tensor_files import FileRecord, write_bytes, write_tensors

# All that may stand in a directory where a capture was begun and has no manifest yet.
_OURS = (LOCK, SOURCE, names.TOKENS, names.TOKEN_STRINGS, names.CONSTANTS)
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
    with _system_errors_named(directory):
        own = OwnFiles(plan.n_tokens, plan.model.cfg.d_model, json.dumps(_source_of(plan)).encode())
        _entries(directory, own)  # before the weights are read to tell one model from another
        wanted = _manifest_of(plan)
        if names.MANIFEST in _entries(directory, own):
            found = read_manifest(directory)
            _check_same(directory, found, wanted)
            if found.is_complete and not _leftovers(directory, found, own):
                return
        else:
            _check_room(directory, plan.n_bytes + 2 * plan.stream_bytes)
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
            _check_same(directory, self.manifest, wanted)
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
        loss = run_blocks(self.plan, self, start, resid)
        self._finish(self.manifest.blocks_run, {names.LOSS: self._write(names.LOSS, {"loss": loss})})

    def put(self, layer: int, tensors: dict[str, Tensor], resid: Float[Tensor, "1 pos d_model"]) -> None:
        """Write what was kept of a block and the residual stream after it; then the manifest."""
        written = {layer_file(layer): tensors} if tensors else {}
        written[resume_file(layer + 1)] = {"residual": resid}
        self._finish(layer + 1, {name: self._write(name, x) for name, x in written.items()})
        if self.watch is not None:
            self.watch.finished(layer)

    def _write(self, name: str, tensors: dict[str, Tensor]) -> FileRecord:
        """Write one file of tensors, in the place of nothing but our own."""
        return write_tensors(self.directory / name, tensors, ours=self.own)

    def _begin(self) -> None:
        """Write all that is known before the model runs."""
        self._write_source()
        tokens = self.plan.tokens[0].cpu()
        constants = {n: layer_constants(self.plan.model, n, self.plan.rope_length) for n in self.plan.steps}
        weights = {name: x for n, found in constants.items() for name, x in constants_tensors(n, found).items()}
        strings = {"token 0": self.manifest.provenance["text"]["token 0"], "str_tokens": self.plan.str_tokens}
        self.manifest = replace(
            self.manifest,
            layers={
                n: replace(record, spec=spec_values(constants[n].spec), attention_factor=constants[n].attention_factor)
                for n, record in self.manifest.layers.items()
            },
        )
        texts = marked_json("tokens", strings)
        records = {
            names.TOKENS: self._write(names.TOKENS, {"tokens": tokens, "positions": self.plan.positions}),
            names.TOKEN_STRINGS: write_bytes(self.directory / names.TOKEN_STRINGS, texts, self.own),
            names.CONSTANTS: self._write(names.CONSTANTS, weights),
        }
        self._finish(0, records)

    def _write_source(self) -> None:
        """Write where the model came from: only a resumed run needs it, and it goes away with the end of the run."""
        replace_file(self.directory / SOURCE, [marked_json("source", _source_of(self.plan))], self.own)

    def _continue(self, *, force: bool) -> None:
        """Make sure that what is finished is whole, that the rest will fit it bit by bit, and that it has its place."""
        CaptureFiles(self.directory, self.manifest).check()
        ran, every = self.manifest.blocks_run, range(self.manifest.n_blocks + 1)
        to_come = [*(layer_file(n) for n in self.plan.steps if n >= ran), *map(resume_file, every[ran + 1 :])]
        for name in () if self.manifest.is_complete else (*to_come, names.LOSS):
            check_own(self.directory / name, self.own)
        self._remove_leftovers()
        if self.manifest.is_complete:
            return
        if (self.directory / SOURCE).is_file() and self.own(self.directory / SOURCE):
            self._write_source()  # an earlier version's carries no mark
        left = sum(self.plan.layer_bytes(n) for n in self.plan.steps if n >= self.manifest.blocks_run)
        _check_room(self.directory, left + 2 * self.plan.stream_bytes)
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
    with _system_errors_named(directory):
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


def _manifest_of(plan: CapturePlan) -> Manifest:
    """What the capture will be, before any of it is there."""
    config = plan.model.cfg.to_dict()
    config["model_name"] = model_id(plan.model)
    return Manifest(
        model_id=model_id(plan.model),
        config=json.loads(json.dumps(config)),
        weights=weight_hash(plan.model),
        n_tokens=plan.n_tokens,
        tokens=token_hash(plan.tokens[0]),
        stages=plan.stages,
        environment=environment(plan.model),
        provenance=plan.provenance,
        layers={n: LayerRecord(steps, plan.stage_names(n), {}, 1.0) for n, steps in plan.steps.items()},
        loss=plan.loss,
        documents=None if plan.documents is None else tuple(plan.documents.tolist()),
    )


def model_id(model: Any) -> str:
    """The model's name; of a path only the last part, so that a capture names no place on this machine."""
    name = str(model.cfg.model_name)
    return Path(name).name if os.path.isabs(name) else name


def _check_same(directory: Path, found: Manifest, wanted: Manifest) -> None:
    """Raise a CaptureMismatchError that says in what the capture at a path differs from the one asked for."""
    # The weights' own type counts, not the configuration's: a cast changes the first alone.
    settings = [name for name in differing_settings(wanted.config, found.config) if name != "dtype"]
    different = [f"{key} {found.config.get(key)!r} there, {wanted.config.get(key)!r} here" for key in settings[:3]]
    if found.dtype != wanted.dtype:
        different.append(f"weights of {found.dtype} there, of {wanted.dtype} here")
    elif not settings and found.weights != wanted.weights:
        different.append(f"other weights ({found.model_id} there, {wanted.model_id} here)")
    if found.tokens != wanted.tokens:
        different.append(f"another text ({found.n_tokens:,} tokens there, {wanted.n_tokens:,} here)")
    if found.documents != wanted.documents:
        there, here = (1 if m.documents is None else len(m.documents) for m in (found, wanted))
        counts = f"{there:,} there, {here:,} here" if there != here else f"{there:,} that begin elsewhere"
        different.append(f"other documents packed into its row ({counts})")
    held, asked = ({n: (r.steps, r.stages) for n, r in m.layers.items()} for m in (found, wanted))
    if set(held) != set(asked):
        different.append(f"layers {', '.join(map(str, held))} there, {', '.join(map(str, asked))} here")
    elif held != asked:
        different.append(f"stages {', '.join(found.stages)} there, {', '.join(wanted.stages)} here")
    if found.loss != wanted.loss:
        different.append("with its loss there, without here" if found.loss else "without its loss there, with it here")
    if different:
        raise CaptureMismatchError(
            f"the capture in {str(directory)!r} is another one: {'; '.join(different)}; choose another path"
        )


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
    layers = {*map(layer_file, manifest.layers), names.LOSS}
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


def _check_room(directory: Path, n_bytes: int) -> None:
    """Raise an OutputError when the disk would not hold what is to be written."""
    place = directory if directory.exists() else directory.absolute().parent
    if not place.is_dir():
        raise OutputError(f"cannot write {str(directory)!r}: there is no directory {str(place)!r}; create it first")
    free = shutil.disk_usage(place).free
    if n_bytes > free:
        raise OutputError(
            f"the capture takes {n_bytes / 1e9:.2f} GB more in {str(directory)!r} and {free / 1e9:.2f} GB are free: "
            "free some space, choose another disk, or keep fewer layers, stages or tokens"
        )


@contextmanager
def _system_errors_named(directory: Path) -> Iterator[None]:
    """Turn what the system says while writing into an OutputError that says how to go on."""
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full; free some space" if full else f"{error.strerror or error}; see that it can be written"
        raise OutputError(
            f"cannot write the capture in {str(directory)!r}: {what} and run it again: what is finished stays"
        ) from None
