"""One pass of a model over a text that keeps what attention is made of: q and k at several stages, v, the loss."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooks.errors import MaterializationError, StageError
from interp.constants import LayerConstants, layer_constants
from interp.labels import number_ranges
from interp.layers import named_layer, stack_layers
from interp.passes.statistics_schema import GROUPS
from interp.progress import track
from interp.selection import Choice, layer_numbers, part_of
from interp.stages import stage_name, steps_before
from interp.storage.capture_plan import DEFAULT_STAGES, CapturePlan, plan_capture
from interp.storage.capture_run import run_blocks
from interp.storage.held_layers import HeldLayer, LayerCapture

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from transformer_lens import ActivationCache

    from hooks import AttentionSpec, HookedTransformer, HookedTransformerConfig
    from hooks.attached import AttachedTransformer
    from interp.patterns import PatternView
    from interp.storage.stored_statistics import StatisticsStore
    from interp.texts import Text


@dataclass(repr=False)
class Capture:
    """What a model computed on a text: q, k and v of each layer, the loss, and where all of it came from.

    Attributes:
        cfg: the model's configuration.
        model_id: the model's name.
        tokens: token ids, [pos].
        str_tokens: the same tokens as strings.
        positions: position of each token, [pos].
        loss: −ln p of each next token in nats, [pos-1]; entry i is the loss of token i + 1. Empty, as tokens may be,
            in a capture made from a cache, and in one that is not complete or was made with ``loss=False``.
        layers: the captured layers.
        provenance: model, text, settings, cited constants and versions, as nested dictionaries of plain values.
        path: the directory of a capture on disk, else None.
        is_complete: False for a capture on disk that was interrupted; `layers` are then those that were finished.
    """

    cfg: "HookedTransformerConfig"
    model_id: str
    tokens: Int[Tensor, " pos"]
    str_tokens: list[str]
    positions: Int[Tensor, " pos"]
    loss: Float[Tensor, " predicted"]
    provenance: dict[str, dict[str, str]]
    _layers: Mapping[int, HeldLayer]
    _statistics: dict[tuple, "xr.Dataset"] = field(default_factory=dict)
    path: Path | None = None
    is_complete: bool = True
    _store: "StatisticsStore | None" = None

    @classmethod
    def from_cache(
        cls,
        cache: "ActivationCache",
        spec: "AttentionSpec | Mapping[int, AttentionSpec] | None" = None,
        tokens: Int[Tensor, "*batch pos"] | None = None,
    ) -> "Capture":
        """The capture of one sequence whose q and k are already in a cache, such as a TransformerBridge's.

        Layers are those whose q the cache holds, stages those that it holds, and v is there if it was cached. Loss is
        not in a cache, so such a capture makes no report; statistics and patterns need none.

        Args:
            cache: what ``run_with_cache`` of a TransformerBridge, a `HookedTransformer` or an attached model returns,
                at positions from 0 without padding.
            spec: how q and k become a pattern, in all layers or layer by layer. Our own models know it; for a bridge
                it must be given, because neither its cache nor its config says it reliably.
            tokens: the token ids, if you want them kept.

        Raises:
            InputError: no spec for a layer, more than one sequence, or a cache that does not say its layout.
            StageError: the q or k that enters the score was not cached.

        Example:
            >>> logits, cache = bridge.run_with_cache(tokens)
            >>> cap = Capture.from_cache(cache, spec=AttentionSpec(scale=bridge.cfg.d_head**-0.5))
        """
        from interp.cached_tensors import capture_of_cache

        return capture_of_cache(cache, spec, tokens)

    @property
    def layers(self) -> tuple[int, ...]:
        """The captured layers, in order."""
        return tuple(self._layers)

    def stages(self, layer: int) -> tuple[str, ...]:
        """The stages at which q and k of this layer are held, in the order of computation; the last is final."""
        held = self._layer(layer)
        return tuple(stage_name(done, held.steps) for done in sorted(held.q))

    def q(
        self, layer: int, stage: str = "final", *, positions: Choice = None, heads: Choice = None
    ) -> Float[Tensor, "pos head d_head"]:
        """Queries of a layer at a stage; ``final`` are those that enter the score.

        Args:
            layer: which layer.
            stage: clip, norm and rope each have a ``pre_`` and a ``post_`` side.
            positions: an index, a slice or several indices; None is all. Of a capture on disk these are views
                of the file, whose hash is checked when the layer is first read.
            heads: the same for query heads. No axis is dropped.

        Raises:
            StageError: the layer was not captured, or has no such stage.
            PositionError: a position or head that is not there.
        """
        return part_of(self._layer(layer).q[self._steps_done(layer, stage)], positions, heads)

    def k(
        self, layer: int, stage: str = "final", *, positions: Choice = None, heads: Choice = None
    ) -> Float[Tensor, "pos kv_head d_head"]:
        """Keys of a layer at a stage; ``final`` are those that enter the score. Heads are kv heads; else as `q`."""
        return part_of(self._layer(layer).k[self._steps_done(layer, stage)], positions, heads)

    def v(self, layer: int, *, positions: Choice = None, heads: Choice = None) -> Float[Tensor, "pos kv_head d_head"]:
        """Values of a layer, after clipping where the model clips. Heads are kv heads; else as `q`.

        Raises:
            StageError: the layer was not captured, or the capture was made from a cache without v.
            PositionError: a position or head that is not there.
        """
        values = self._layer(layer).v
        if values is None:
            raise StageError(f"v of layer {layer} was not in the cache that this capture was made from")
        return part_of(values, positions, heads)

    def spec(self, layer: int) -> "AttentionSpec":
        """How q and k of this layer become a pattern: scale, window, soft-cap, sinks."""
        return self._layer(layer).constants.spec

    def constants(self, layer: int) -> LayerConstants:
        """Gains of the QK-norm, rotary frequencies, sizes of W_O and the attention spec of a layer."""
        return self._layer(layer).constants

    def steps(self, layer: int) -> tuple[str, ...]:
        """The steps from projection to score that this layer applies: clip, norm, rope, in its own order."""
        return self._layer(layer).steps

    def select(self, layers: int | Iterable[int]) -> "Capture":
        """The same capture with some of its layers: what is asked of it is asked of them alone. Copies nothing.

        Raises:
            StageError: a layer that was not captured.
        """
        chosen = layer_numbers(layers)
        if not chosen:
            raise StageError(f"no layer was asked for: this capture holds {number_ranges(self.layers)}")
        return replace(self, _layers={n: self._layer(n) for n in sorted(chosen)})

    def statistics(
        self, layers: int | Sequence[int] | None = None, groups: str | Sequence[str] = GROUPS, *, map_size: int = 128
    ) -> "xr.Dataset":
        """Exact attention statistics of each layer, computed once and kept: in memory, and beside a capture on disk.

        Args:
            layers: which of the captured layers; None is all of them.
            groups: families of statistics, see `interp.attention_statistics`.
            map_size: side of the pooled attention map in cells.

        Returns:
            The Dataset of `interp.attention_statistics` with a leading dimension ``layer``.
        """
        chosen = self.layers if layers is None else layer_numbers(layers)
        if not chosen:
            raise StageError(f"no layer was asked for: this capture holds {number_ranges(self.layers)}")
        groups = (groups,) if isinstance(groups, str) else tuple(sorted(set(groups)))
        found = {n: self._layer_statistics(n, groups, map_size) for n in track(chosen, "measuring attention")}
        return stack_layers(found)

    def _layer_statistics(self, layer: int, groups: tuple[str, ...], map_size: int) -> "xr.Dataset":
        """Statistics of one layer: from memory, from beside the capture, or computed and kept in both."""
        from interp.statistics import attention_statistics

        key, settings = (layer, groups, map_size), {"groups": groups, "map_size": map_size}
        held = self._layer(layer)
        if key not in self._statistics and self._store is not None:
            kept = self._store.load(layer, settings)
            if kept is not None:
                self._statistics[key] = kept
        if key not in self._statistics:
            v = held.v
            with named_layer(layer):
                found = attention_statistics(
                    self.q(layer),
                    self.k(layer),
                    held.constants.spec,
                    v=v,
                    w_o=None if v is None else held.constants.w_o,
                    groups=groups,
                    map_size=map_size,
                )
            self._statistics[key] = found
            if self._store is not None:
                self._store.save(layer, settings, found)
        return self._statistics[key]

    @property
    def pattern(self) -> "PatternView":
        """Exact attention on demand: ``cap.pattern[layer, head, queries, keys]``; see `interp.attention_pattern`."""
        from interp.patterns import PatternView

        return PatternView(self)

    def top_keys(self, layer: int, head: int, query: int | str, k: int = 10) -> "xr.Dataset":
        """The k keys that one query attends to most; see `interp.patterns.top_keys`."""
        from interp.patterns import top_keys

        return top_keys(self, layer, head, query, k)

    def report(self, path: "str | Path", **options: Any) -> "Path":
        """Write the report on this capture to one HTML file; options are those of `interp.report`."""
        from interp.reports import report

        return report(self, path, **options)

    @property
    def n_bytes(self) -> int:
        """Bytes held by q, k and v."""
        return sum(info.n_bytes for held in self._layers.values() for info in held.infos().values())

    def holdings(self) -> "pd.DataFrame":
        """What is held of each layer: its type and window, the stages and shapes of q and k, their type, the bytes."""
        from interp.holdings import holdings

        return holdings(self)

    def __repr__(self) -> str:
        from interp.holdings import in_words

        return in_words(self)

    def _repr_html_(self) -> str:
        from interp.holdings import as_html

        return as_html(self)

    def _layer(self, layer: int) -> HeldLayer:
        """The layer's tensors, or a StageError that says which layers there are."""
        if layer not in self._layers:
            raise StageError(f"layer {layer!r} is not in this capture; it holds {number_ranges(self.layers)}")
        return self._layers[layer]

    def _steps_done(self, layer: int, stage: str) -> int:
        """Key of a stage in a layer's q and k, or a StageError that says which stages there are."""
        held = self._layer(layer)
        done = steps_before(stage, held.steps)
        if done is None or done not in set(held.q):
            why = "has no such step" if done is None else "was captured without it"
            raise StageError(f"no stage {stage!r} in layer {layer}: it {why}; it holds {', '.join(self.stages(layer))}")
        return done


def capture(
    model: "HookedTransformer | AttachedTransformer",
    text_or_tokens: "str | Text | Sequence[int] | Tensor",
    path: str | Path | None = None,
    *,
    n_tokens: int | None = None,
    stages: str | Sequence[str] = DEFAULT_STAGES,
    layers: int | Iterable[int] | None = None,
    loss: bool = True,
    force: bool = False,
) -> Capture:
    """Run the model once, layer by layer, and keep q, k, v and the loss of each token.

    Memory is that of one fused forward pass plus the tensors kept, or with a path those of one layer: no attention
    matrix, never the logits as a whole. A capture on disk that was killed goes on from the last finished layer when it
    is called again, and ends with the same bytes. Hooks that are active take part in what is captured; they are not
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
        force: go on with an interrupted capture although torch, the threads, the device or the processor changed, and
            last bits with them.

    Raises:
        StageError: an unknown stage, one that no layer has, or a layer that the model does not have.
        TextError: fewer than two tokens to read.
        InputError: token ids that the model does not know.
        MaterializationError: the tensors would not fit in memory; with a path they need not.
        CaptureError: the path holds something else, another capture (`CaptureMismatchError`), one that is being written
            (`CaptureBusyError`) or a damaged one (`CaptureDamagedError`).
        OutputError: the path cannot be written, or the disk would not hold the capture.

    Example:
        >>> cap = capture(HookedTransformer.from_pretrained("gemma3-270m"), text, "essay.capture")
        >>> cap = open_capture("essay.capture")  # later, elsewhere, without the model
    """
    plan = plan_capture(model, text_or_tokens, n_tokens, stages, layers, loss)
    if path is None:
        return _capture_in_memory(plan)
    from interp.storage.capture_writing import write_capture

    return write_capture(plan, path, force=force)


def _capture_in_memory(plan: CapturePlan) -> Capture:
    """Run a plan and keep everything in memory."""
    _check_fits(plan)
    kept = _InMemory(plan)
    losses = run_blocks(plan, kept)
    return Capture(
        cfg=plan.model.cfg,
        model_id=str(plan.model.cfg.model_name),
        tokens=plan.tokens[0].cpu(),
        str_tokens=plan.str_tokens,
        positions=torch.arange(plan.n_tokens),
        loss=losses,
        provenance=plan.provenance,
        _layers=kept.layers,
    )


class _InMemory:
    """Keeps what a pass leaves."""

    def __init__(self, plan: CapturePlan):
        self.plan = plan
        self.layers: dict[int, LayerCapture] = {}

    def put(self, layer: int, tensors: dict[str, Tensor], resid: Tensor) -> None:
        """Keep a captured layer."""
        if layer in self.plan.steps:
            constants = layer_constants(self.plan.model, layer, self.plan.n_tokens)
            self.layers[layer] = LayerCapture.of(self.plan.steps[layer], tensors, constants)


def _check_fits(plan: CapturePlan) -> None:
    """Raise a MaterializationError when what is to be kept would not fit in free memory."""
    import psutil

    device = plan.model.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if plan.n_bytes > free:
        raise MaterializationError(
            f"q, k and v of {plan.n_tokens:,} tokens take {plan.n_bytes / 1e9:.1f} GB in memory and {free / 1e9:.1f} "
            "GB are free: capture to disk with path=, or keep fewer layers or stages"
        )
