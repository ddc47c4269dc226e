"""A capture as its users hold it: what it keeps, and its doors to patterns, tables and the report."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import xarray as xr
from jaxtyping import Int
from torch import Tensor
from transformer_lens import ActivationCache

from hooks import AttentionSpec, HookedTransformer, checks
from hooks.attached.transformer import AttachedTransformer
from hooks.errors import CaptureError, CaptureWarning, InputError
from interp.analyses.patterns.windows import PatternView, top_keys
from interp.recording.from_cache import data_of_cache
from interp.recording.in_memory import capture_in_memory
from interp.recording.plan import DEFAULT_STAGES, check_model, plan_capture
from interp.reporting.page import report
from interp.storage.manifest import read_manifest
from interp.storage.reading import read_data
from interp.storage.resuming import load_model, plan_rest
from interp.storage.writing import tidy, write_capture
from interp.tensors.capture_data import CaptureData
from interp.tensors.description import as_html, holdings, in_words
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


def capture(
    model: HookedTransformer | AttachedTransformer,
    text_or_tokens: str | Text | Sequence[int] | Tensor,
    path: str | Path | None = None,
    *,
    n_tokens: int | None = None,
    stages: str | Sequence[str] = DEFAULT_STAGES,
    layers: int | Iterable[int] | None = None,
    loss: bool = True,
    prepend_bos: bool | None = None,
    positions: Int[Tensor, " pos"] | Sequence[int] | None = None,
    force: bool = False,
) -> Capture:
    """Run the model once, layer by layer, and keep q, k, v and the loss of each token.

    Memory is that of one fused forward pass plus the tensors kept, or with a path those of one layer: no attention
    matrix, never the logits as a whole. A capture on disk that was killed goes on from the last finished layer when it
    is called again, and ends with the same bytes. Of q and k it stores the earliest stage, and of the later ones only
    what would not come out the same, to the last bit, when clip, norm and rotation are taken over again: the others are
    derived when they are read. Hooks that are active take part in what is captured; they are not
    part of what is compared then.

    Args:
        model: a HookedTransformer, native or attached.
        text_or_tokens: a text, or token ids in one row.
        path: a directory to write to, made if it is not there; None keeps the capture in memory.
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
            NaN). None counts from 0 to the end.
        force: go on with an interrupted capture although torch, the threads, the device or the processor changed, and
            last bits with them.

    Raises:
        StageError: an unknown stage, one that no layer has, or a layer that the model does not have.
        TextError: fewer than two tokens to read.
        InputError: token ids that the model does not know, prepend_bos together with token ids, or positions that do
            not count from 0 in each document.
        TokenizerError: a text, and the model has no tokenizer, or prepend_bos=True and the tokenizer no BOS token.
        MaterializationError: the tensors would not fit in memory; with a path they need not.
        CaptureError: the path holds something else, another capture (`CaptureMismatchError`), one that is being written
            (`CaptureBusyError`) or a damaged one (`CaptureDamagedError`).
        OutputError: the path cannot be written, or the disk would not hold the capture.

    Example:
        >>> cap = capture(HookedTransformer.from_pretrained("gemma3-270m"), text, "essay.capture")
        >>> cap = open_capture("essay.capture")  # later, elsewhere, without the model
    """
    force = checks.flag("force", force)
    plan = plan_capture(model, text_or_tokens, n_tokens, stages, layers, loss, prepend_bos, positions)
    if path is None:
        return _front(capture_in_memory(plan))
    write_capture(plan, path, force=force)
    return read_capture(path)


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
    return _front(read_data(directory, manifest))


def read_capture(path: str | Path) -> Capture:
    """The capture at a path, finished or not, without a word about it."""
    directory = Path(path)
    return _front(read_data(directory, read_manifest(directory)))


def resume(
    path: str | Path, model: HookedTransformer | AttachedTransformer | None = None, *, force: bool = False
) -> Capture:
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
        OutputError: it cannot be written.
    """
    directory, force = checks.path("path", path, error=CaptureError), checks.flag("force", force)
    manifest = read_manifest(directory)
    if model is not None:
        check_model(model)
    if manifest.is_complete and model is None:
        tidy(directory)
        return read_capture(directory)
    plan = plan_rest(directory, manifest, model or load_model(directory, manifest))
    write_capture(plan, directory, force=force)
    return read_capture(directory)


def _front(data: CaptureData) -> Capture:
    """The same capture with its doors."""
    return Capture(**{field.name: getattr(data, field.name) for field in fields(data)})
