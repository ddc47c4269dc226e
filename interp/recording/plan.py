"""What to capture, checked before anything runs: the tokens, the layers, the stages, and what they will cost."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooks import HookedTransformer, HookedTransformerConfig, checks
from hooks.attached.transformer import AttachedTransformer
from hooks.base.inputs import token_positions
from hooks.errors import InputError, StageError, TextError
from interp.common.words import number_ranges
from interp.recording.provenance import describe
from interp.tensors.documents import check_counted, counted_positions, document_starts
from interp.tensors.selection import asked_layers
from interp.tensors.stages import STAGES, stage_name, steps_before
from interp.texts.texts import Text, as_text, tokenise

DEFAULT_STAGES = ("pre_norm", "pre_rope")


class StreamSink(Protocol):
    """Takes residual streams."""

    def put_stream(self, layer: int, resid: Float[Tensor, "1 pos d_model"]) -> None:
        """Take the stream before a block, or after the last one."""
        ...


@dataclass(frozen=True)
class CapturePlan:
    """A model, a text and what to keep of the pass over it.

    Attributes:
        model: the model.
        tokens: token ids, [1 pos].
        str_tokens: the same tokens as strings.
        stages: the stages asked for.
        steps: clip, norm and rope in the order of each layer to keep.
        provenance: as `Capture.provenance`.
        loss: whether to compute the loss, for which every block must run.
        documents: where the documents begin that are packed into the row; None is one text.
        streams: takes the residual stream after each block, for the way back from a metric; None without.
    """

    model: HookedTransformer | AttachedTransformer
    tokens: Int[Tensor, "1 pos"]
    str_tokens: list[str]
    stages: tuple[str, ...]
    steps: dict[int, tuple[str, ...]]
    provenance: dict[str, dict[str, str]]
    loss: bool = True
    documents: Int[Tensor, " document"] | None = None
    streams: StreamSink | None = None

    @property
    def positions(self) -> Int[Tensor, " pos"]:
        """Position of each token, counted from 0 in each document."""
        return counted_positions(self.documents, self.n_tokens)

    @property
    def rope_length(self) -> int:
        """Length that dynamic and longrope schedules adapt to: that of the longest document."""
        return int(self.positions.max()) + 1

    @property
    def n_blocks(self) -> int:
        """How many of the model's blocks run: all, or without the loss those up to the last layer to keep."""
        return self.model.cfg.n_layers if self.loss else max(self.steps) + 1

    @property
    def n_tokens(self) -> int:
        """Length of the text."""
        return self.tokens.shape[1]

    def stage_names(self, layer: int) -> tuple[str, ...]:
        """The stages to keep of a layer, in the order of computation; the last is final."""
        return stages_of(self.steps[layer], self.stages)

    def layer_bytes(self, layer: int) -> int:
        """Bytes of the q, k and v kept of a layer."""
        return layer_bytes(self.model.cfg, self.steps[layer], self.stages, self.n_tokens, self.model.dtype)

    @property
    def n_bytes(self) -> int:
        """Bytes of all q, k and v kept."""
        return sum(self.layer_bytes(layer) for layer in self.steps)

    def stored_bytes(self, start: int = 0) -> int:
        """Bytes that a capture on disk stores of the layers from one on, where later stages follow from the first."""
        one = stored_bytes(self.model.cfg, self.n_tokens, self.model.dtype)
        return one * sum(layer >= start for layer in self.steps)

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the gradients of all that is kept, and of what the heads give."""
        cfg = self.model.cfg
        z = cfg.n_heads * cfg.d_head * self.n_tokens * self.model.dtype.itemsize
        return self.n_bytes + len(self.steps) * z

    @property
    def stream_bytes(self) -> int:
        """Bytes of the residual stream."""
        return self.n_tokens * self.model.cfg.d_model * self.model.dtype.itemsize


def plan_capture(
    model: HookedTransformer | AttachedTransformer,
    text_or_tokens: "str | Text | Sequence[int] | Tensor",
    n_tokens: int | None = None,
    stages: str | Sequence[str] = DEFAULT_STAGES,
    layers: int | Iterable[int] | None = None,
    loss: bool = True,
    prepend_bos: bool | None = None,
    positions: Int[Tensor, " pos"] | Sequence[int] | None = None,
) -> CapturePlan:
    """Check what is asked of a capture; arguments and errors as of `interp.capture`."""
    check_model(model)
    # A hybrid's other layers have no q and k.
    attending = getattr(model, "attending_layers", tuple(range(model.cfg.n_layers)))
    if checks.flag("loss", loss) and not getattr(model, "has_head", True):
        raise StageError("this model was attached without its output head, so it has no loss: capture with loss=False")
    stages, steps = asked_of(model.cfg, stages, attending if layers is None else layers, model.attention_steps)
    prepend_bos = None if prepend_bos is None else checks.flag("prepend_bos", prepend_bos)
    n_tokens = None if n_tokens is None else checks.whole("n_tokens", n_tokens, at_least=2)
    tokens, what, text = tokens_of(model, text_or_tokens, n_tokens, prepend_bos)
    documents = None if positions is None else _documents_of(positions, tokens)
    str_tokens = list(model.to_str_tokens(tokens[0])) if model.tokenizer else [str(i) for i in tokens[0].tolist()]
    settings = {
        "tokens": f"{tokens.shape[1]:,}",
        "layers": number_ranges(tuple(steps)),
        "stages": ", ".join(dict.fromkeys((*stages, "final"))),
    }
    if layers is None and len(attending) < model.cfg.n_layers:
        others = set(range(model.cfg.n_layers)) - set(attending)
        settings["layers"] += f"; {number_ranges(sorted(others))} left out: they call no softmax attention"
    if not loss:
        settings["loss"] = "left out"
    if documents is not None:
        settings["documents"] = f"{len(documents):,} packed into one row"
    provenance = describe(model, text, what, tokens[0], str_tokens, settings)
    return CapturePlan(model, tokens, str_tokens, stages, steps, provenance, loss, documents)


def asked_of(
    cfg: HookedTransformerConfig,
    stages: str | Sequence[str],
    layers: int | Iterable[int],
    steps_of: Callable[[int, Literal["q"]], tuple[str, ...]],
) -> tuple[tuple[str, ...], dict[int, tuple[str, ...]]]:
    """The stages that are asked for, and the steps of each layer to keep, in order; both checked against the model.

    Raises:
        StageError: an unknown stage, one that no layer has, or a layer that the model does not have.
    """
    chosen = _chosen_layers(cfg, layers)
    named = _stage_names(stages)
    steps = {layer: steps_of(layer, "q") for layer in chosen}
    _check_stages(named, steps)
    return named, steps


def stages_of(steps: tuple[str, ...], stages: Sequence[str]) -> tuple[str, ...]:
    """The stages to keep of a layer with these steps, in the order of computation; the last is final."""
    done = {steps_before(stage, steps) for stage in (*stages, "final")}
    return tuple(stage_name(n, steps) for n in sorted(n for n in done if n is not None))


def layer_bytes(
    cfg: HookedTransformerConfig, steps: tuple[str, ...], stages: Sequence[str], n_tokens: int, dtype: torch.dtype
) -> int:
    """Bytes of the q, k and v that a capture keeps of one layer."""
    rows = len(stages_of(steps, stages)) * (cfg.n_heads + cfg.n_kv_heads) + cfg.n_kv_heads
    return rows * cfg.d_head * n_tokens * dtype.itemsize


def stored_bytes(cfg: HookedTransformerConfig, n_tokens: int, dtype: torch.dtype) -> int:
    """Bytes of them on disk, the one place that says so: v, and q and k at one stage, from which the later follow."""
    return (cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.d_head * n_tokens * dtype.itemsize


def tokens_of(
    model: HookedTransformer | AttachedTransformer,
    source: "str | Text | Sequence[int] | Tensor",
    n_tokens: int | None,
    prepend_bos: bool | None,
) -> tuple[Int[Tensor, "1 pos"], str, Text | None]:
    """Tokens in one row, one line on what they are, and the text if there is one; arguments as of `interp.capture`."""
    if isinstance(source, str | Text):
        text = as_text(source)
        tokens, what = tokenise(model, text, n_tokens, prepend_bos)
        return tokens, what, text
    if prepend_bos is not None:
        raise InputError(f"prepend_bos={prepend_bos} is for a text: token ids are read as they are; leave it out")
    if not isinstance(source, Tensor | Sequence | np.ndarray):
        raise InputError(f"cannot read a {type(source).__name__}: give a text, or token ids in one row")
    try:
        ids = torch.as_tensor(source if isinstance(source, Tensor) else np.asarray(source))
    except (TypeError, ValueError):
        raise InputError(
            f"cannot read a {type(source).__name__} of that: give token ids in one row, or a text"
        ) from None
    if ids.ndim == 2 and ids.shape[0] == 1:
        ids = ids[0]
    if ids.ndim != 1 or (len(ids) and (ids.is_floating_point() or ids.dtype == torch.bool)):
        raise InputError(
            f"tokens must be one row of whole numbers, not shape {tuple(ids.shape)} of {ids.dtype!s}: "
            "capture one sequence at a time"
        )
    if n_tokens is not None:
        ids = ids[:n_tokens]
    if len(ids) < 2:
        raise TextError(f"{len(ids)} token to read: attention needs at least 2")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= model.cfg.d_vocab:
        wrong = low if low < 0 else high
        raise InputError(f"token id {wrong} is outside this model's vocabulary, 0 to {model.cfg.d_vocab - 1}")
    return ids.long()[None].to(model.device), "token ids given in memory", None


def check_model(model: object) -> None:
    """Raise unless a capture can be made of this model."""
    if not isinstance(model, HookedTransformer | AttachedTransformer):
        raise InputError(
            f"model={checks.shown(model)}: give a HookedTransformer, or what HookedTransformer.attach(model) gives"
        )


def _documents_of(positions: object, tokens: Int[Tensor, "1 pos"]) -> Int[Tensor, " document"] | None:
    """Where the documents begin, from the position of each token."""
    found = token_positions(positions, tokens, None, name="positions")[0].cpu()
    check_counted(found)
    return document_starts(found)


def _chosen_layers(cfg: HookedTransformerConfig, layers: int | Iterable[int] | None) -> tuple[int, ...]:
    """The layers to keep, in order, checked against the model."""
    chosen = sorted(asked_layers(range(cfg.n_layers), layers))
    for layer in chosen:
        if not 0 <= layer < cfg.n_layers:
            raise StageError(f"the model has no layer {layer}: its layers are 0 to {cfg.n_layers - 1}")
    return tuple(chosen)


def _stage_names(stages: str | Iterable[str]) -> tuple[str, ...]:
    """Stages, one or several, as a tuple; whether there are such stages is not asked."""
    several = (stages,) if isinstance(stages, str) else stages
    if not isinstance(several, Iterable) or isinstance(several, bytes | dict) or hasattr(several, "shape"):
        raise StageError(f"stages={checks.shown(stages)}: give the name of a stage, or several")
    named = tuple(several)
    if not all(isinstance(stage, str) for stage in named):
        raise StageError(f"stages={checks.shown(stages)}: give the name of a stage, or several")
    return named


def _check_stages(stages: Sequence[str], steps: dict[int, tuple[str, ...]]) -> None:
    """Raise a StageError for an unknown stage, or one asked for by name that no layer has."""
    for stage in stages:
        found = [layer for layer in steps if steps_before(stage, steps[layer]) is not None]
        if not found and stages is not DEFAULT_STAGES:
            there = [s for s in STAGES if any(steps_before(s, own) is not None for own in steps.values())]
            raise StageError(f"no layer of this model has a stage {checks.shown(stage)}; it has {', '.join(there)}")
