"""What a capture holds and says of itself: q, k and v of each layer, the loss, and their exact statistics."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from hooks import AttentionSpec, HookedTransformerConfig, checks
from hooks.errors import InputError, StageError
from hooks.functional.attend import attend_fused
from hooks.functional.head_width import same_width
from interp.common.progress import track
from interp.common.stacking import named_layer, stack_layers
from interp.common.words import number_ranges
from interp.measure.schema import GROUPS
from interp.measure.statistics import attention_statistics
from interp.tensors.constants import LayerConstants
from interp.tensors.documents import counted_positions, document_starts
from interp.tensors.gradients import Gradients
from interp.tensors.layers import HeldLayer
from interp.tensors.selection import Choice, asked_layers, part_of
from interp.tensors.stages import stage_name, steps_before


class StatisticsStore(Protocol):
    """Where statistics are kept beside a capture on disk."""

    def load(self, layer: int, settings: Mapping[str, Any]) -> xr.Dataset | None:
        """The statistics of a layer under these settings, if they are kept."""
        ...

    def save(self, layer: int, settings: Mapping[str, Any], dataset: xr.Dataset) -> None:
        """Keep them."""
        ...


@dataclass(repr=False)
class CaptureData:
    """What a model computed on a text: q, k and v of each layer, the loss, and where all of it came from.

    Attributes:
        cfg: the model's configuration.
        model_id: the model's name.
        tokens: token ids, [pos].
        str_tokens: the same tokens as strings.
        positions: position of each token, counted from 0 in each document that is packed into the row, [pos].
        loss: −ln p of each next token in nats, [pos-1]; entry i is the loss of token i + 1. Empty, as tokens may be,
            in a capture made from a cache, and in one that is not complete or was made with ``loss=False``. NaN for the
            first token of a document that stands behind another.
        layers: the captured layers.
        provenance: model, text, settings, cited constants and versions, as nested dictionaries of plain values.
        path: the directory of a capture on disk, else None.
        is_complete: False for a capture on disk that was interrupted; `layers` are then those that were finished.
        gradients: the metric of which gradients were captured, its value, and they; None without.
    """

    cfg: HookedTransformerConfig
    model_id: str
    tokens: Int[Tensor, " pos"]
    str_tokens: list[str]
    positions: Int[Tensor, " pos"]
    loss: Float[Tensor, " predicted"]
    provenance: dict[str, dict[str, str]]
    _layers: Mapping[int, HeldLayer]
    _statistics: dict[tuple, xr.Dataset] = field(default_factory=dict)
    path: Path | None = None
    is_complete: bool = True
    _store: StatisticsStore | None = None
    gradients: Gradients | None = None
    _model: Callable[[], Any] | None = None  # gives the model that it was made of while that is alive

    @property
    def layers(self) -> tuple[int, ...]:
        """The captured layers, in order."""
        return tuple(self._layers)

    @property
    def documents(self) -> Int[Tensor, " document"] | None:
        """Indices at which the documents begin that are packed into the row; None where all tokens are one text."""
        return document_starts(self.positions)

    @property
    def places(self) -> Int[Tensor, " pos"]:
        """Place of each token in its document, counted from 0; in the text, where it is one."""
        return counted_positions(self.documents, len(self.positions))

    @property
    def longest(self) -> int:
        """Tokens of the longest document; of the text, where it is one."""
        return int(self.places.max()) + 1

    @property
    def labels(self) -> Int[Tensor, " pos"]:
        """What names each token as a query or key: its position in one text, its index in a row of several."""
        return self.positions if self.documents is None else torch.arange(len(self.positions))

    @property
    def standing(self) -> dict[str, Any]:
        """Where queries and keys stand, as `attention_statistics` takes it."""
        if self.documents is None:
            return {"query_positions": self.positions, "key_positions": self.positions}
        return {"documents": self.documents}  # in each of which positions count on with the index

    def check_one_text(self, analysis: str) -> None:
        """Raise an InputError where documents are packed into the row and an analysis reads it as one text."""
        if self.documents is not None:
            raise InputError(
                f"{analysis} reads one text from begin to end, and this capture packs {len(self.documents):,} "
                "documents into a row: capture the document that you ask about alone"
            )

    @property
    def predicted_loss(self) -> Float[Tensor, " predicted"]:
        """The loss of each token that another of its document comes before."""
        if self.documents is None or not len(self.loss):
            return self.loss
        return self.loss[self.places[1:] > 0]

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
                of the file, whose hash is checked when the layer is first read; of a stage that follows from another
                just these positions are computed.
            heads: the same for query heads. No axis is dropped.

        Raises:
            StageError: the layer was not captured, or has no such stage.
            PositionError: a position or head that is not there.
        """
        return self._layer(layer).part("q", self._steps_done(layer, stage), positions, heads)

    def k(
        self, layer: int, stage: str = "final", *, positions: Choice = None, heads: Choice = None
    ) -> Float[Tensor, "pos kv_head d_head"]:
        """Keys of a layer at a stage; ``final`` are those that enter the score. Heads are kv heads; else as `q`."""
        return self._layer(layer).part("k", self._steps_done(layer, stage), positions, heads)

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

    def z(
        self,
        layer: int,
        *,
        q: Float[Tensor, "pos head d_head"] | None = None,
        k: Float[Tensor, "pos kv_head d_head"] | None = None,
    ) -> Float[Tensor, "pos head d_head"]:
        """What each query head of a layer gives, before W_O: ``z_i = Σ_j p_ij v_j``, computed anew from q, k and v.

        O(n) memory. It is what the model computed up to rounding, if no hook edited scores, pattern or z.

        Args:
            layer: which layer.
            q: queries that enter the score in the place of its own.
            k: keys in the place of its own.

        Raises:
            StageError: the layer was not captured, or the capture was made from a cache without v.
            InputError: q or k of another shape than its own.
        """
        queries, keys = _instead("q", q, self.q(layer)), _instead("k", k, self.k(layer))
        q, k, v, width = same_width(queries[None], keys[None], self.v(layer)[None])
        spec = self.spec(layer)
        if spec.sinks is not None:
            spec = replace(spec, sinks=spec.sinks.to(q.device))
        standing = {name: at.to(q.device) for name, at in self.standing.items()}
        with torch.no_grad():
            return attend_fused(q, k, v, spec, **standing)[0, ..., :width]

    def gradient(
        self,
        layer: int,
        tensor: Literal["z", "q", "k", "v"],
        stage: str = "final",
        *,
        positions: Choice = None,
        heads: Choice = None,
    ) -> Float[Tensor, "pos head d_head"]:
        """∂m/∂x of the metric that the capture was made with: how m moves when this tensor alone is moved.

        Args:
            layer: which layer.
            tensor: "z" is what each head gives before W_O; k and v have kv heads.
            stage: of q and k, as in `q`: before or after a step. z and v have the final one alone.
            positions: as in `q`.
            heads: as in `q`.

        Raises:
            StageError: no gradient was captured, the layer was not captured, or has no such stage.
            PositionError: a position or head that is not there.
        """
        held = self._layer(layer)
        tensor = checks.choice("tensor", tensor, ("z", "q", "k", "v"), error=StageError)
        done = steps_before(checks.text("stage", stage, error=StageError), held.steps)
        if self.gradients is None:
            raise StageError(
                "this capture has no gradients: capture(model, tokens, gradient_of=metrics.logit(…)) takes them"
            )
        found = self.gradients.layers[layer]
        name = tensor if tensor in "zv" else f"{tensor}.{'' if done is None else stage_name(done, held.steps)}"
        if name not in found or (tensor in "zv" and stage != "final"):
            there = ", ".join(found)
            raise StageError(f"no gradient of {tensor} at stage {stage!r} in layer {layer}; it holds those of {there}")
        return part_of(found[name], positions, heads)

    def spec(self, layer: int) -> AttentionSpec:
        """How q and k of this layer become a pattern: scale, window, soft-cap, sinks."""
        return self._layer(layer).constants.spec

    def constants(self, layer: int) -> LayerConstants:
        """Gains of the QK-norm, rotary frequencies, sizes of W_O and the attention spec of a layer."""
        return self._layer(layer).constants

    def steps(self, layer: int) -> tuple[str, ...]:
        """The steps from projection to score that this layer applies: clip, norm, rope, in its own order."""
        return self._layer(layer).steps

    def select(self, layers: int | Iterable[int]) -> Self:
        """The same capture with some of its layers: what is asked of it is asked of them alone. Copies nothing.

        Raises:
            StageError: a layer that was not captured.
        """
        chosen = asked_layers(self.layers, layers)
        return replace(self, _layers={n: self._layer(n) for n in sorted(chosen)})

    def statistics(
        self,
        layers: int | Sequence[int] | None = None,
        groups: str | Sequence[str] = GROUPS,
        *,
        map_size: int = 128,
        device: torch.device | str | None = None,
    ) -> xr.Dataset:
        """Exact attention statistics of each layer, computed once and kept: in memory, and beside a capture on disk.

        Args:
            layers: which of the captured layers; None is all of them.
            groups: families of statistics, see `interp.attention_statistics`.
            map_size: side of the pooled attention map in cells.
            device: where to compute them, one layer there at a time; None is where q and k are, of a capture on disk
                the CPU. What is kept already is not computed again.

        Returns:
            The Dataset of `interp.attention_statistics` with a leading dimension ``layer``.

        Raises:
            InputError: a device that this machine has not.
            StageError: a layer that was not captured.
        """
        device = checks.device("device", device)
        chosen = asked_layers(self.layers, layers)
        groups = tuple(sorted(checks.choices("groups", groups, GROUPS)))
        map_size = checks.whole("map_size", map_size, at_least=1)
        found = {n: self._layer_statistics(n, groups, map_size, device) for n in track(chosen, "measuring attention")}
        return stack_layers(found)

    def _layer_statistics(
        self, layer: int, groups: tuple[str, ...], map_size: int, device: torch.device | str | None
    ) -> xr.Dataset:
        """Statistics of one layer: from memory, from beside the capture, or computed and kept in both."""
        key, settings = (layer, groups, map_size), {"groups": groups, "map_size": map_size}
        held = self._layer(layer)
        if key not in self._statistics and self._store is not None:
            kept = self._store.load(layer, settings)
            if kept is not None:
                self._statistics[key] = kept
        if key not in self._statistics:
            q, k, v, spec = self.q(layer), self.k(layer), held.v, held.constants.spec
            w_o = None if v is None else held.constants.w_o
            if device is not None:
                q, k = q.to(device), k.to(device)
                v, w_o = (None if x is None else x.to(device) for x in (v, w_o))
                spec = replace(spec, sinks=None if spec.sinks is None else spec.sinks.to(device))
            with named_layer(layer):
                found = attention_statistics(
                    q, k, spec, v=v, w_o=w_o, groups=groups, map_size=map_size, **self.standing
                )
            self._statistics[key] = found
            if self._store is not None:
                self._store.save(layer, settings, found)
        return self._statistics[key]

    @property
    def n_bytes(self) -> int:
        """Bytes of q, k and v at all stages, those included that are derived when they are read."""
        return sum(info.n_bytes for held in self._layers.values() for info in held.infos().values())

    @property
    def stored_bytes(self) -> int:
        """Bytes of those that are stored."""
        kept = [(held.infos(), held.derived) for held in self._layers.values()]
        return sum(info.n_bytes for infos, derived in kept for name, info in infos.items() if name not in derived)

    def _layer(self, layer: int) -> HeldLayer:
        """The layer's tensors, or a StageError that says which layers there are."""
        layer = checks.whole("layer", layer, error=StageError)
        if layer not in self._layers:
            raise StageError(f"layer {layer!r} is not in this capture; it holds {number_ranges(self.layers)}")
        return self._layers[layer]

    def _steps_done(self, layer: int, stage: str) -> int:
        """Key of a stage in a layer's q and k, or a StageError that says which stages there are."""
        held = self._layer(layer)
        done = steps_before(checks.text("stage", stage, error=StageError), held.steps)
        if done is None or done not in set(held.q):
            why = "has no such step" if done is None else "was captured without it"
            raise StageError(f"no stage {stage!r} in layer {layer}: it {why}; it holds {', '.join(self.stages(layer))}")
        return done


def check_capture(cap: CaptureData, name: str = "cap") -> CaptureData:
    """The capture, if it is one.

    Raises:
        InputError: it is something else.
    """
    return checks.instance(name, cap, CaptureData, "a Capture, as capture(model, text) or open_capture(path) makes one")


def _instead(name: str, given: Tensor | None, own: Tensor) -> Tensor:
    """What was given in the place of a capture's own queries or keys."""
    if given is None:
        return own
    given = checks.instance(name, given, Tensor, "queries or keys, as a capture gives them")
    if given.shape != own.shape:
        raise InputError(f"{name} has shape {tuple(given.shape)}, and the capture's own has {tuple(own.shape)}")
    return given.to(own)
