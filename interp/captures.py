"""A capture as its users hold it: what it keeps, and its doors to patterns, tables and the report."""

import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

import pandas as pd
import torch
import xarray as xr
from jaxtyping import Bool, Int
from torch import Tensor
from transformer_lens import ActivationCache

from hooks import AttentionSpec, checks
from hooks.errors import CaptureError, CaptureWarning, ClusterError, InputError, OutputError, RopescopeError
from interp.analyses.patterns.windows import PatternView, top_keys
from interp.engine.clusters import cluster
from interp.engine.running import Killed, Piece, run_on
from interp.engine.threads import take_share
from interp.measure.schema import GROUPS
from interp.metrics import Metric, Resolved
from interp.recording.from_cache import data_of_cache
from interp.recording.gradients import resolved_metric
from interp.recording.in_memory import capture_in_memory
from interp.recording.plan import DEFAULT_STAGES, CapturePlan, check_model, plan_capture
from interp.recording.several import CaptureOptions, Model, OneText, SeveralTexts, positions_of, rows_of
from interp.reporting.page import report
from interp.storage.gradient_files import read_gradients, tidy_gradients, write_with_gradients
from interp.storage.gradient_record import has_gradients, read_record
from interp.storage.manifest import MANIFEST, Manifest, read_manifest
from interp.storage.reading import read_data
from interp.storage.resuming import load_model, metric_to_finish, plan_rest
from interp.storage.writing import tidy, write_capture
from interp.tensors.capture_data import CaptureData
from interp.tensors.description import as_html, holdings, in_words
from interp.tensors.selection import asked_layers
from interp.texts.texts import Text

if TYPE_CHECKING:
    from interp.explorer.widget import ExplorerWidget


class Capture(CaptureData):
    """What a model computed on a text, and what one asks of it; attributes as of `CaptureData`."""

    @classmethod
    def from_cache(
        cls,
        cache: ActivationCache,
        spec: AttentionSpec | Mapping[int, AttentionSpec] | None = None,
        tokens: Int[Tensor, "*batch pos"] | None = None,
        positions: Int[Tensor, " pos"] | Sequence[int] | None = None,
    ) -> "Capture":
        """The capture of one sequence whose q and k are already in a cache, such as a TransformerBridge's.

        Layers are those whose q the cache holds, stages those that it holds, and v is there if it was cached. Loss is
        not in a cache, so such a capture makes no report; statistics and patterns need none.

        Args:
            cache: what ``run_with_cache`` of a TransformerBridge, a `HookedTransformer` or an attached model returns,
                without padding.
            spec: how q and k become a pattern, in all layers or layer by layer. Our own models know it; for a bridge
                it must be given, because neither its cache nor its config says it reliably.
            tokens: the token ids, if you want them kept.
            positions: position of each token, counted from 0 in each of several packed documents. A cache of our own
                models knows those that it was run with; else they count from 0.

        Raises:
            InputError: no spec for a layer, more than one sequence, or a cache that does not say its layout.
            StageError: the q or k that enters the score was not cached.

        Example:
            >>> logits, cache = bridge.run_with_cache(tokens)
            >>> cap = Capture.from_cache(cache, spec=AttentionSpec(scale=bridge.cfg.d_head**-0.5))
        """
        return _front(data_of_cache(cache, spec, tokens, positions))

    @property
    def pattern(self) -> PatternView:
        """Exact attention on demand: ``cap.pattern[layer, head, queries, keys]``; see `interp.attention_pattern`."""
        return PatternView(self)

    def statistics(
        self,
        layers: int | Sequence[int] | None = None,
        groups: str | Sequence[str] = GROUPS,
        *,
        map_size: int = 128,
        device: torch.device | str | None = None,
        scheduler: Any = None,
    ) -> xr.Dataset:
        """Exact attention statistics of each layer, computed once and kept: in memory, and beside a capture on disk.

        Args:
            layers: which of the captured layers; None is all of them.
            groups: families of statistics, see `interp.attention_statistics`.
            map_size: side of the pooled attention map in cells.
            device: where to compute them, one layer there at a time; None is where q and k are, of a capture on disk
                the CPU. What is kept already is not computed again.
            scheduler: measure the layers of a capture on disk on the workers of this dask cluster, each a layer: the
                address of its scheduler, or a Client. They must see the capture under the same path.

        Returns:
            The Dataset of `interp.attention_statistics` with a leading dimension ``layer``.

        Raises:
            InputError: a device that this machine has not.
            StageError: a layer that was not captured.
            CaptureError: with a scheduler, a capture in memory.
            ClusterError: dask.distributed is not installed, nobody answers, or a layer ended every worker.
        """
        if scheduler is not None:
            chosen = asked_layers(self.layers, layers)
            how = {"groups": groups, "map_size": map_size, "device": None if device is None else str(device)}
            self._measure_on(scheduler, [n for n in chosen if n in self.layers], how)
        return super().statistics(layers, groups, map_size=map_size, device=device)

    def _measure_on(self, scheduler: Any, layers: Sequence[int], how: dict[str, Any]) -> None:
        """Have every layer measured by a worker, which keeps it beside the capture."""
        if self.path is None:
            raise CaptureError("workers cannot see a capture in memory: capture to a directory, with path=")
        place = str(self.path.resolve())
        with cluster(scheduler) as client:
            pieces = (Piece(layer, (place, layer, how)) for layer in layers)
            for layer, result in run_on(client, measure_layer, pieces) if client is not None else ():
                if isinstance(result, Killed):
                    raise ClusterError(f"layer {layer} ended every worker that measured it: give them more memory")

    def top_keys(self, layer: int, head: int, query: int | str, k: int = 10) -> xr.Dataset:
        """The k keys that one query attends to most; see `interp.patterns.top_keys`."""
        return top_keys(self, layer, head, query, k)

    def report(self, path: str | Path, **options: Any) -> Path:
        """Write the report on this capture to one HTML file; options are those of `interp.report`."""
        return report(self, path, **options)

    def explore(self, view: str = "") -> "ExplorerWidget":
        """The explorer as a widget in JupyterLab: every attention pattern as a map, exact at every zoom.

        Args:
            view: the address of what to show first, as a page or an earlier widget's ``view`` gives it.

        Raises:
            InputError: anywidget is not installed.
        """
        if find_spec("anywidget") is None:
            raise InputError("cap.explore() needs anywidget: pip install 'ropescope[explore]'")
        from interp.explorer.questions import Explorer
        from interp.explorer.widget import ExplorerWidget

        source = (
            "" if self.path is None else f"from interp import open_capture\n\ncap = open_capture({str(self.path)!r})"
        )
        return ExplorerWidget(Explorer(self, source), view)

    def holdings(self) -> pd.DataFrame:
        """What is held of each layer: type, window, stages, shapes and type of q and k, bytes, and what is derived."""
        return holdings(self)

    def __repr__(self) -> str:
        return in_words(self)

    def _repr_html_(self) -> str:
        return as_html(self)


@overload
def capture(
    model: Model, text_or_tokens: OneText, path: str | Path | None = None, **options: Unpack[CaptureOptions]
) -> Capture: ...
@overload
def capture(
    model: Model, text_or_tokens: SeveralTexts, path: str | Path | None = None, **options: Unpack[CaptureOptions]
) -> list[Capture]: ...
@overload
def capture(  # ids in rows: one capture where it is one row
    model: Model,
    text_or_tokens: Sequence[Any] | Tensor,
    path: str | Path | None = None,
    **options: Unpack[CaptureOptions],
) -> Any: ...
def capture(
    model: Model,
    text_or_tokens: str | Text | Sequence[Any] | Tensor,
    path: str | Path | None = None,
    *,
    n_tokens: int | None = None,
    stages: str | Sequence[str] = DEFAULT_STAGES,
    layers: int | Iterable[int] | None = None,
    loss: bool = True,
    prepend_bos: bool | None = None,
    positions: Int[Tensor, "*batch pos"] | Sequence[Any] | None = None,
    attention_mask: Int[Tensor, "batch pos"] | Bool[Tensor, "batch pos"] | None = None,
    gradient_of: Metric | None = None,
    force: bool = False,
) -> Any:
    """Run the model once, layer by layer, and keep q, k, v and the loss of each token.

    Memory is that of one fused forward pass plus the tensors kept, or with a path those of one layer: no attention
    matrix, never the logits as a whole. A capture on disk that was killed goes on from the last finished layer when it
    is called again, and ends with the same bytes. Of q and k it stores the earliest stage, and of the later ones only
    what would not come out the same, to the last bit, when clip, norm and rotation are taken over again: the others are
    derived when they are read. Hooks that are active take part in what is captured; they are not
    part of what is compared then.

    Args:
        model: a HookedTransformer, native or attached.
        text_or_tokens: a text, or token ids in one row; or several: a list of texts or of rows of ids, or ids
            [batch, pos]. Each row is read by itself, and a list of captures returned, one a row.
        path: a directory to write to, made if it is not there; None keeps the capture in memory. Of several texts it
            holds a directory each, 000, 001, …, of which those that are finished are kept when it is called again.
        n_tokens: read at most this many tokens. The standard text is repeated when more are asked for.
        stages: tensors to keep besides the final q and k, such as ``pre_norm`` or ``post_rope``. By default those
            before the norm and before the rotation, where the model has these steps.
        layers: which layers to keep; None keeps all.
        loss: whether to compute the loss. Without it the pass ends after the last layer to keep, so that an early layer
            of a very long text costs little; a report needs the loss.
        prepend_bos: whether a text begins with the BOS token, which counts as one of n_tokens. None leaves it to the
            tokenizer, as ``model.to_tokens`` does; False leaves out even one that the tokenizer itself would add.
        positions: position of each token. Where they start again from 0 a new document starts, packed into the same
            row: no query sees another document, and the first token of each is predicted from nothing (its loss is
            NaN). None counts from 0 to the end. For several texts, a row each.
        attention_mask: 0 where a token id is padding, which is left out: what is measured is each text, at the
            positions at which the model has it.
        gradient_of: a metric of `interp.metrics`. Behind the way forth the blocks then run back from it, each once more
            with its graph, in O(n · d) memory, and ``cap.gradient`` gives ∂m/∂z, q, k, v, which `interp.attribution`
            reads.
        force: go on with an interrupted capture although torch, the threads, the device or the processor changed, and
            last bits with them.

    Raises:
        StageError: an unknown stage, one that no layer has, or a layer that the model does not have.
        TextError: fewer than two tokens to read.
        InputError: token ids that the model does not know, prepend_bos together with token ids, positions that do not
            count from 0 in each document, or a mask that does not fit; of several texts, which one.
        TokenizerError: a text, and the model has no tokenizer, or prepend_bos=True and the tokenizer no BOS token; a
            metric's token that is several.
        PositionError: a metric's position that the text does not have.
        MaterializationError: the tensors would not fit in memory; with a path they need not.
        CaptureError: the path holds something else, another capture (`CaptureMismatchError`), one that is being written
            (`CaptureBusyError`) or a damaged one (`CaptureDamagedError`).
        OutputError: the path cannot be written, or the disk would not hold the capture.

    Example:
        >>> cap = capture(HookedTransformer.from_pretrained("gemma3-270m"), text, "essay.capture")
        >>> cap = open_capture("essay.capture")  # later, elsewhere, without the model
    """
    force = checks.flag("force", force)
    check_model(model)
    rows = rows_of(model, text_or_tokens, attention_mask)
    if rows is None:
        rows, each_at, one = [text_or_tokens], [positions], True
    else:
        one = attention_mask is not None and len(rows) == 1  # ids [1, pos] are one text
        each_at = positions_of(positions, len(rows), masked=attention_mask is not None)
    options = (n_tokens, stages, layers, loss, prepend_bos)
    plans: list[tuple[CapturePlan, Resolved | None]] = []  # all of them before the first is run
    for number, (row, at) in enumerate(zip(rows, each_at, strict=True)):
        try:
            plan = plan_capture(model, row, *options, at)
            plans.append((plan, None if gradient_of is None else resolved_metric(plan, gradient_of)))
        except RopescopeError as error:
            raise error if one else type(error)(f"text {number} of {len(rows)}: {error}") from None
    places = _places(path, len(plans), one)
    made = [_captured(*plan, where, force=force) for plan, where in zip(plans, places, strict=True)]
    return made[0] if one else made


def _captured(plan: CapturePlan, metric: Resolved | None, path: Path | None, *, force: bool) -> Capture:
    """One capture, in memory or at a path."""
    if path is None:
        found = _front(capture_in_memory(plan, metric))
    else:
        _write(plan, path, metric, force=force)
        found = read_capture(path)
    return replace(found, _model=weakref.ref(plan.model))


def _places(path: str | Path | None, count: int, one: bool) -> list[Path | None]:
    """Where each capture goes: the path itself, or a numbered directory in it each."""
    if path is None:
        return [None] * count
    directory = checks.path("path", path, error=OutputError)
    if one:
        return [directory]
    if (directory / MANIFEST).exists():
        raise CaptureError(f"{str(path)!r} holds the capture of one text, and these are {count}: choose another path")
    try:
        directory.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror or error}; choose another path") from None
    digits = max(3, len(str(count - 1)))
    return [directory / f"{number:0{digits}d}" for number in range(count)]


def open_capture(path: str | Path) -> Capture:
    """Open a capture on disk. No model is needed, and tensors are read only when they are used.

    A capture that was interrupted opens with the layers that it has, and a `CaptureWarning` that says how to go on.

    Args:
        path: the directory that `interp.capture` or ``ropescope capture`` wrote.

    Raises:
        CaptureError: there is no capture at this path, or one of a newer format.
        CaptureDamagedError: a file is missing, cut short, or not what the manifest says. That of a flipped byte in a
            layer comes when the layer is first read.

    Example:
        >>> cap = open_capture("essay.capture")
        >>> cap.q(3, "pre_rope", positions=slice(0, 100)).shape
        torch.Size([100, 4, 256])
    """
    directory = checks.path("path", path, error=CaptureError)
    manifest = read_manifest(directory)
    if not manifest.is_complete:
        warnings.warn(
            f"the capture in {str(path)!r} is unfinished: {manifest.blocks_run} of {manifest.n_blocks} layers have run"
            f"{', and there is no loss yet' if manifest.loss else ''}; go on with: ropescope resume {path}",
            CaptureWarning,
            stacklevel=2,
        )
    if has_gradients(directory) and not read_record(directory).is_complete:
        warnings.warn(
            f"the gradients of the capture in {str(path)!r} are unfinished; go on with: ropescope resume {path}",
            CaptureWarning,
            stacklevel=2,
        )
    return _opened(directory, manifest)


def read_capture(path: str | Path) -> Capture:
    """The capture at a path, finished or not, without a word about it."""
    directory = Path(path)
    return _opened(directory, read_manifest(directory))


def resume(path: str | Path, model: Model | None = None, *, force: bool = False) -> Capture:
    """Go on with an interrupted capture; a finished one is opened.

    Args:
        path: the capture's directory.
        model: the model it is of. None loads it from where `HookedTransformer.from_pretrained` loaded it before.
        force: go on although torch, the threads, the device or the processor changed, and last bits with them.

    Raises:
        CaptureError: there is no capture, or nothing says where its model came from.
        CaptureMismatchError: the model is another one, or the environment changed.
        CaptureDamagedError: a finished file is missing or changed.
        CaptureBusyError: another process is writing it.
        InputError: its gradients are of a custom metric, whose function no file holds.
        OutputError: it cannot be written.
    """
    directory, force = checks.path("path", path, error=CaptureError), checks.flag("force", force)
    manifest = read_manifest(directory)
    if model is not None:
        check_model(model)
    asked = metric_to_finish(directory, manifest)
    if manifest.is_complete and model is None and asked is None:
        tidy(directory)
    else:
        plan = plan_rest(directory, manifest, model or load_model(directory, manifest))
        _write(plan, directory, None if asked is None else resolved_metric(plan, asked), force=force)
    tidy_gradients(directory)
    return read_capture(directory)


def measure_layer(path: str, layer: int, how: dict[str, Any]) -> int:
    """Measure a layer of a capture on disk, on a worker, and keep it there."""
    take_share()
    read_capture(path).statistics(layer, **how)
    return layer


def _write(plan: CapturePlan, path: str | Path, metric: Resolved | None, *, force: bool) -> None:
    """Write a capture, and the gradients of a metric where there is one."""
    if metric is None:
        write_capture(plan, path, force=force)
    else:
        write_with_gradients(plan, path, metric, force=force)


def _opened(directory: Path, manifest: Manifest) -> Capture:
    """The capture that a manifest describes, with its gradients where they are finished."""
    data = read_data(directory, manifest)
    return _front(replace(data, gradients=read_gradients(directory, manifest) if manifest.is_complete else None))


def _front(data: CaptureData) -> Capture:
    """The same capture with its doors."""
    return Capture(**{field.name: getattr(data, field.name) for field in fields(data)})
