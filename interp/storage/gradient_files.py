"""The gradients of a capture on disk: a directory of their own beside it, gone on with from either direction.

``gradients/gradients.json`` says of which metric they are and which files are finished; ``gradient_000.safetensors``, …
hold the gradients of a layer. On the way, and no longer, there are ``stream_001.safetensors``, …, the residual streams
before the blocks, and ``back_000.safetensors``, the gradient to one of them, from which the way back goes on.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from hooks import checks
from hooks.errors import CaptureDamagedError, CaptureError, CaptureMismatchError, OutputError
from interp.common.files import TEMPORARY, is_own, remove_file, sync_directory
from interp.metrics import Resolved
from interp.recording.gradients import run_back
from interp.recording.plan import CapturePlan
from interp.recording.provenance import environment
from interp.storage.disk import check_room, system_errors_named
from interp.storage.gradient_record import (
    DIRECTORY,
    KIND,
    NAMES,
    RECORD,
    Record,
    back_file,
    gradient_file,
    has_gradients,
    read_record,
    stream_file,
    write_record,
)
from interp.storage.lock import locked
from interp.storage.manifest import Manifest, layer_file, read_manifest
from interp.storage.own_files import is_begun
from interp.storage.tensor_files import (
    MARK,
    REMEDY,
    check_file,
    check_hash,
    read_header,
    read_tensor,
    write_tensors,
)
from interp.storage.writing import Watch, write_capture
from interp.tensors.gradients import Gradients


def read_gradients(directory: Path, manifest: Manifest) -> Gradients | None:
    """The gradients of a capture, memory-mapped; None where there are none, or not all of them yet.

    Raises:
        CaptureDamagedError: a file is missing or changed, or they are of another capture.
        CaptureError: a newer format.
    """
    if not has_gradients(directory):
        return None
    record = read_record(directory)
    if not record.is_complete:
        return None
    if record.of != _files_of(manifest):
        raise CaptureDamagedError(f"{directory / DIRECTORY} holds the gradients of another capture; {REMEDY}")
    files = _Files(directory / DIRECTORY, record)
    for name, found in record.files.items():
        check_file(files.directory / name, found)
    assert record.value is not None
    layers = {layer: _LayerGradients(files, gradient_file(layer)) for layer in record.layers}
    return Gradients(str(record.metric["name"]), record.value, layers)


def damaged_gradients(directory: Path) -> list[str]:
    """Every finished file of the gradients that is not what it was, in words; reads all of them."""
    problems: list[str] = []
    if not has_gradients(directory):
        return problems
    try:
        files = read_record(directory).files
    except CaptureError as error:
        return [str(error)]
    for name, found in files.items():
        try:
            check_file(directory / DIRECTORY / name, found)
            check_hash(directory / DIRECTORY / name, found)
        except CaptureError as error:
            problems.append(str(error))
    return problems


def write_with_gradients(
    plan: CapturePlan, path: str | Path, metric: Resolved, *, force: bool = False, watch: Watch | None = None
) -> None:
    """Capture to a directory, and then the gradients of a metric; either goes on from where it was stopped.

    Args:
        plan: what to capture.
        path: as in `write_capture`.
        metric: what the gradient is taken of.
        force: as in `write_capture`.
        watch: as in `write_capture`.

    Raises:
        InputError: a custom metric that cannot be compared with itself when the capture goes on.
        CaptureMismatchError: gradients of another metric are there, or they were begun in another environment.
        CaptureError: as in `write_capture`.
        OutputError: as in `write_capture`.
    """
    directory = checks.path("path", path, error=OutputError)
    writer = GradientWriter(directory, plan, metric, force=force)
    write_capture(replace(plan, streams=writer), directory, force=force, watch=_Begin(writer, watch))
    if has_gradients(directory) and read_record(directory).is_complete:
        tidy_gradients(directory)
        return
    with system_errors_named(directory), locked(directory):
        writer.start()
        run_back(plan, metric, writer)


def tidy_gradients(directory: Path) -> None:
    """Remove what a run left that was killed after its gradients were complete.

    Raises:
        CaptureBusyError: another process is writing.
        OutputError: it cannot be removed.
    """
    if not has_gradients(directory):
        return
    record = read_record(directory)
    if record.is_complete and _leftovers(directory, record):
        with system_errors_named(directory), locked(directory):
            _remove(directory / DIRECTORY, _leftovers(directory, record))


class GradientWriter:
    """Writes the gradients of one capture; a `recording.gradients.GradientStore`.

    Args:
        directory: the capture's.
        plan: what is captured.
        metric: what the gradient is taken of.
        force: go on in another environment.

    Raises:
        InputError: a custom metric that cannot be compared with itself.
        CaptureMismatchError: gradients of another metric are there.
    """

    def __init__(self, directory: Path, plan: CapturePlan, metric: Resolved, *, force: bool):
        self.directory, self.plan, self.force = directory, plan, force
        self.described = metric.description()
        self.n_blocks = plan.model.cfg.n_layers
        self.record: Record | None = None
        if has_gradients(directory):
            self._check_same(read_record(directory))

    def start(self) -> None:
        """Say what is to come, once the capture has its manifest and its lock; remove what a killed run left."""
        now, done = environment(self.plan.model), 0
        if has_gradients(self.directory):
            self.record = read_record(self.directory)
            self._check_same(self.record)
            self._go_on_in(now)
            done = sum(found.n_bytes for found in self.record.files.values())
        else:
            self.record = Record({}, self.described, tuple(self.plan.steps), (now,))
        if not self.record.is_complete:
            self.record = replace(self.record, source=getattr(self.plan.model, "loaded_from", None))
        if self.record.is_complete:
            self._remove_leftovers()
            return
        check_room(self.directory, self.plan.gradient_bytes + (self.n_blocks + 1) * self.plan.stream_bytes - done)
        (self.directory / DIRECTORY).mkdir(exist_ok=True)
        sync_directory(self.directory)
        write_record(self.directory, self.record)
        self._remove_leftovers()

    def holds_stream(self, layer: int) -> bool:
        """Whether the residual stream before a block is there."""
        return stream_file(layer) in self._begun.files

    def stream(self, layer: int) -> Tensor:
        """The residual stream before a block."""
        return self._read(stream_file(layer), "residual")

    def put_stream(self, layer: int, resid: Tensor) -> None:
        """Write it, unless it is there or the way back has begun."""
        if self._begun.reached is None and not self.holds_stream(layer):
            self._finish({stream_file(layer): {"residual": resid}})

    def begun(self) -> tuple[int, Tensor] | None:
        """How far the way back came."""
        reached = self._begun.reached
        return None if reached is None else (reached, self._read(back_file(reached), "gradient"))

    def begin(self, value: float, back: Tensor) -> None:
        """Write the metric's value and its gradient to the stream after the last block."""
        of = _files_of(read_manifest(self.directory))
        self._finish({back_file(self.n_blocks): {"gradient": back}}, reached=self.n_blocks, value=value, of=of)

    def put_gradients(self, layer: int, tensors: dict[str, Tensor], back: Tensor) -> None:
        """Write the gradients of a layer, and from where it goes on."""
        written: dict[str, dict[str, Tensor]] = {gradient_file(layer): tensors} if tensors else {}
        if layer > min(self.plan.steps):
            written[back_file(layer)] = {"gradient": back}
        done = {"source": None} if layer == min(self.plan.steps) else {}
        self._finish(written, reached=layer, **done)

    @property
    def _begun(self) -> Record:
        assert self.record is not None, "start() comes first"
        return self.record

    def _finish(self, tensors: dict[str, dict[str, Tensor]], **changes: Any) -> None:
        """Write files, then name them in the record; only then may those before them go."""
        place = self.directory / DIRECTORY
        new = {name: write_tensors(place / name, x, kind=KIND, ours=_is_ours) for name, x in tensors.items()}
        before = self._begun
        record = replace(before, **changes)
        reached = record.reached
        kept = {name: found for name, found in record.files.items() if reached is None or not _is_spent(name, reached)}
        self.record = replace(record, files={**kept, **new})
        write_record(self.directory, self.record)
        if len(kept) < len(before.files):
            self._remove_leftovers()

    def _read(self, name: str, tensor: str) -> Tensor:
        """A tensor of a file that the record names; a copy, aligned as it was when it was computed."""
        place, found = self.directory / DIRECTORY, self._begun.files.get(name)
        if found is None:
            raise CaptureDamagedError(f"{place / RECORD} does not name {name}, from which to go on; {REMEDY}")
        check_hash(place / name, found)
        return read_tensor(place / name, tensor).clone().to(self.plan.tokens.device)

    def _remove_leftovers(self) -> None:
        """Delete files of ours that the record does not name."""
        _remove(self.directory / DIRECTORY, _leftovers(self.directory, self._begun))

    def _check_same(self, found: Record) -> None:
        """Raise a CaptureMismatchError for gradients of another metric."""
        if found.metric == self.described:
            return
        there, here = found.metric.get("name"), self.described["name"]
        but = "other code, tokens or positions are asked for" if there == here else f"{here!r} is asked for"
        raise CaptureMismatchError(
            f"the capture in {str(self.directory)!r} holds gradients of {there!r}, and {but}: capture to another path"
        )

    def _go_on_in(self, now: dict[str, Any]) -> None:
        """Note an environment that it is forced to go on in."""
        begun = self._begun.environments[-1]
        if self._begun.is_complete or begun == now:
            return
        if not self.force:
            changed = [f"{key} {begun.get(key)} then, {now[key]} now" for key in now if begun.get(key) != now[key]]
            raise CaptureMismatchError(
                f"the gradients in {str(self.directory)!r} were begun in another environment ({', '.join(changed)}), "
                "so the rest would differ in the last bits: restore it, or go on all the same with force=True (--force)"
            )
        self.record = replace(self._begun, environments=(*self._begun.environments, now))


class _Begin:
    """Begins the gradients' record as soon as a capture has its manifest; then looks on as another watch does."""

    def __init__(self, writer: GradientWriter, then: Watch | None):
        self.writer, self.then = writer, then

    def start(self) -> None:
        """The blocks begin to run."""
        self.writer.start()
        if self.then is not None:
            self.then.start()

    def finished(self, layer: int) -> None:
        """A block has run."""
        if self.then is not None:
            self.then.finished(layer)


class _Files:
    """Files of gradients, each trusted once its hash was found right."""

    def __init__(self, directory: Path, record: Record):
        self.directory, self.record = directory, record
        self._trusted: set[str] = set()

    def tensor(self, file: str, name: str) -> Tensor:
        """One tensor, memory-mapped."""
        if file not in self._trusted:
            check_hash(self.directory / file, self.record.files[file])
            self._trusted.add(file)
        return read_tensor(self.directory / file, name)


class _LayerGradients(Mapping[str, Tensor]):
    """The gradients of one layer, read when asked for."""

    def __init__(self, files: _Files, file: str):
        self._files, self._file = files, file

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._files.record.files[self._file].tensors:
            raise KeyError(name)
        return self._files.tensor(self._file, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files.record.files[self._file].tensors)

    def __len__(self) -> int:
        return len(self._files.record.files[self._file].tensors)


def _files_of(manifest: Manifest) -> dict[str, str]:
    """What tells a capture's layers from those of others."""
    return {name: manifest.files[name].sha256 for name in map(layer_file, manifest.layers)}


def _leftovers(directory: Path, record: Record) -> list[Path]:
    """Files of ours that the record does not name."""
    found = []
    for path in sorted((directory / DIRECTORY).iterdir()):
        spent = NAMES.fullmatch(path.name) and path.name not in record.files and is_own(path, _is_ours)
        if spent or (path.match(TEMPORARY) and is_own(path, is_begun)):
            found.append(path)
    return found


def _remove(place: Path, leftovers: list[Path]) -> None:
    """Delete these, for good."""
    for path in leftovers:
        remove_file(path, is_begun if path.match(TEMPORARY) else _is_ours)
    if leftovers:
        sync_directory(place)


def _is_spent(name: str, reached: int) -> bool:
    """Whether the way back that reached this block has no more use for a file."""
    kind, number = name.split(".")[0].split("_")
    return kind == "back" or (kind == "stream" and int(number) >= reached)


def _is_ours(path: Path) -> bool:
    """Whether a file is one of gradients that the tool wrote; it need not be whole."""
    found = read_header(path)
    return found is not None and found[2].get(MARK) == KIND
