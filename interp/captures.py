"""One pass of a model over a text that keeps what attention is made of: q and k at several stages, v, the loss."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooks.errors import InputError, StageError, TextError
from interp.constants import LayerConstants, layer_constants
from interp.layers import stack_layers
from interp.progress import track
from interp.provenance import describe
from interp.stages import STAGES, stage_name, steps_before
from interp.statistics_schema import GROUPS
from interp.texts import Text, as_text, tokenise

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr
    from transformer_lens import ActivationCache

    from hooks import AttentionSpec, HookedTransformer, HookedTransformerConfig
    from hooks.attached import AttachedTransformer

DEFAULT_STAGES = ("pre_norm", "pre_rope")


@dataclass(frozen=True)
class LayerCapture:
    """q and k of one layer by the number of steps (clip, norm, rope) behind them, and what scores are made of."""

    steps: tuple[str, ...]
    q: dict[int, Float[Tensor, "pos head d_head"]]
    k: dict[int, Float[Tensor, "pos kv_head d_head"]]
    v: Float[Tensor, "pos kv_head d_head"] | None
    constants: LayerConstants


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
            in a capture made from a cache.
        layers: the captured layers.
        provenance: model, text, settings, cited constants and versions, as nested dictionaries of plain values.
    """

    cfg: "HookedTransformerConfig"
    model_id: str
    tokens: Int[Tensor, " pos"]
    str_tokens: list[str]
    positions: Int[Tensor, " pos"]
    loss: Float[Tensor, " predicted"]
    provenance: dict[str, dict[str, str]]
    _layers: dict[int, LayerCapture]
    _statistics: dict[tuple, "xr.Dataset"] = field(default_factory=dict)

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

    def q(self, layer: int, stage: str = "final") -> Float[Tensor, "pos head d_head"]:
        """Queries of a layer at a stage; ``final`` are those that enter the score.

        Raises:
            StageError: the layer was not captured, or has no such stage.
        """
        return self._layer(layer).q[self._steps_done(layer, stage)]

    def k(self, layer: int, stage: str = "final") -> Float[Tensor, "pos kv_head d_head"]:
        """Keys of a layer at a stage; ``final`` are those that enter the score.

        Raises:
            StageError: the layer was not captured, or has no such stage.
        """
        return self._layer(layer).k[self._steps_done(layer, stage)]

    def v(self, layer: int) -> Float[Tensor, "pos kv_head d_head"]:
        """Values of a layer, after clipping where the model clips.

        Raises:
            StageError: the layer was not captured, or the capture was made from a cache without v.
        """
        values = self._layer(layer).v
        if values is None:
            raise StageError(f"v of layer {layer} was not in the cache that this capture was made from")
        return values

    def spec(self, layer: int) -> "AttentionSpec":
        """How q and k of this layer become a pattern: scale, window, soft-cap, sinks."""
        return self._layer(layer).constants.spec

    def constants(self, layer: int) -> LayerConstants:
        """Gains of the QK-norm, rotary frequencies, W_O and the attention spec of a layer."""
        return self._layer(layer).constants

    def steps(self, layer: int) -> tuple[str, ...]:
        """The steps from projection to score that this layer applies: clip, norm, rope, in its own order."""
        return self._layer(layer).steps

    def statistics(
        self, layers: Sequence[int] | None = None, groups: Sequence[str] = GROUPS, *, map_size: int = 128
    ) -> "xr.Dataset":
        """Exact attention statistics of each layer, computed once and kept.

        Args:
            layers: which of the captured layers; None is all of them.
            groups: families of statistics, see `interp.attention_statistics`.
            map_size: side of the pooled attention map in cells.

        Returns:
            The Dataset of `interp.attention_statistics` with a leading dimension ``layer``.
        """
        from interp.statistics import attention_statistics

        chosen = self.layers if layers is None else tuple(layers)
        if not chosen:
            raise StageError(f"no layer was asked for: this capture holds {_ranges(self.layers)}")
        settings = (tuple(sorted(groups)), map_size)
        for layer in track(chosen, "measuring attention"):
            if (layer, *settings) in self._statistics:
                continue
            held = self._layer(layer)
            self._statistics[(layer, *settings)] = attention_statistics(
                self.q(layer),
                self.k(layer),
                held.constants.spec,
                v=held.v,
                w_o=None if held.v is None else held.constants.w_o,
                groups=tuple(groups),
                map_size=map_size,
            )
        return stack_layers({layer: self._statistics[(layer, *settings)] for layer in chosen})

    def report(self, path: "str | Path") -> "Path":
        """Write the report on this capture to one HTML file; see `interp.report`."""
        from interp.reports import report

        return report(self, path)

    @property
    def n_bytes(self) -> int:
        """Bytes held by q, k and v."""
        tensors = (t for held in self._layers.values() for t in (*held.q.values(), *held.k.values(), held.v))
        distinct = {t.data_ptr(): t for t in tensors if t is not None}
        return sum(t.numel() * t.element_size() for t in distinct.values())

    def __repr__(self) -> str:
        stages = dict.fromkeys(stage for layer in self.layers for stage in self.stages(layer))
        heads = f"{self.cfg.n_heads} heads over {self.cfg.n_kv_heads} kv heads"
        return (
            f"Capture({self.model_id}: {len(self.positions):,} tokens, {len(self.layers)} layers × {heads}, "
            f"q and k at {', '.join(stages)}; {self.n_bytes / 1e6:,.1f} MB)"
        )

    def _layer(self, layer: int) -> LayerCapture:
        """The layer's tensors, or a StageError that says which layers there are."""
        if layer not in self._layers:
            raise StageError(f"layer {layer!r} is not in this capture; it holds {_ranges(self.layers)}")
        return self._layers[layer]

    def _steps_done(self, layer: int, stage: str) -> int:
        """Key of a stage in a layer's q and k, or a StageError that says which stages there are."""
        held = self._layer(layer)
        done = steps_before(stage, held.steps)
        if done is None or done not in held.q:
            why = "has no such step" if done is None else "was captured without it"
            raise StageError(f"no stage {stage!r} in layer {layer}: it {why}; it holds {', '.join(self.stages(layer))}")
        return done


def capture(
    model: "HookedTransformer | AttachedTransformer",
    text_or_tokens: "str | Text | Sequence[int] | Tensor",
    *,
    n_tokens: int | None = None,
    stages: str | Sequence[str] = DEFAULT_STAGES,
    layers: int | Iterable[int] | None = None,
) -> Capture:
    """Run the model once, layer by layer, and keep q, k, v and the loss of each token.

    Memory is that of one fused forward pass plus the tensors kept: no attention matrix, never the logits as a whole.

    Args:
        model: a HookedTransformer, native or attached.
        text_or_tokens: a text, or token ids in one row.
        n_tokens: read at most this many tokens. The standard text is repeated when more are asked for.
        stages: tensors to keep besides the final q and k, such as ``pre_norm`` or ``post_rope``. By default those
            before the norm and before the rotation, where the model has these steps.
        layers: which layers to keep; None keeps all.

    Raises:
        StageError: an unknown stage, one that no layer has, or a layer that the model does not have.
        TextError: fewer than two tokens to read.
        InputError: token ids that the model does not know.
    """
    chosen = _chosen_layers(model.cfg, layers)
    stages = (stages,) if isinstance(stages, str) else stages
    steps = {layer: model.attention_steps(layer, "q") for layer in chosen}
    _check_stages(stages, steps)
    tokens, what, text = _tokens_of(model, text_or_tokens, n_tokens)
    held, nll = _run(model, tokens, stages, steps)
    str_tokens = model.to_str_tokens(tokens[0]) if model.tokenizer else [str(i) for i in tokens[0].tolist()]
    settings = {
        "tokens": f"{tokens.shape[1]:,}",
        "layers": _ranges(chosen),
        "stages": ", ".join(dict.fromkeys((*stages, "final"))),
    }
    return Capture(
        cfg=model.cfg,
        model_id=str(model.cfg.model_name),
        tokens=tokens[0].cpu(),
        str_tokens=str_tokens,
        positions=torch.arange(tokens.shape[1]),
        loss=nll,
        provenance=describe(model, text, what, tokens[0], str_tokens, settings),
        _layers=held,
    )


def _run(
    model: "HookedTransformer | AttachedTransformer",
    tokens: Int[Tensor, "1 pos"],
    stages: Sequence[str],
    steps: dict[int, tuple],
) -> tuple[dict[int, LayerCapture], Float[Tensor, " predicted"]]:
    """The forward pass, one block at a time; returns the kept tensors and the loss."""
    held = {}
    with torch.no_grad():
        resid = model.embed_tokens(tokens)
        context = model.context(tokens)
        for layer in track(range(model.cfg.n_layers), "running the model"):
            kept: dict[str, Tensor] = {}
            hooks = _keepers(layer, steps[layer], stages, kept) if layer in steps else []
            with model.hooks(fwd_hooks=hooks):
                resid = model.blocks[layer](resid, context)
            if layer in steps:
                held[layer] = _layer_capture(model, layer, steps[layer], stages, kept, tokens.shape[1])
        nll = model.residual_loss(resid, tokens)
    return held, nll[0].float().cpu()


def _keepers(layer: int, steps: tuple[str, ...], stages: Sequence[str], kept: dict[str, Tensor]) -> list:
    """(name, hook) pairs that put the wanted tensors of one layer into `kept`, by their alias."""
    wanted = [stage for stage in (*stages, "final") if steps_before(stage, steps) is not None]
    names = [f"hook_{x}_{stage}" for x in "qk" for stage in wanted] + ["hook_v_final"]

    def keeper(name: str):
        def keep(tensor: Tensor, hook: object) -> None:
            kept[name] = tensor.detach()[0]

        return keep

    return [(f"blocks.{layer}.attn.{name}", keeper(name)) for name in dict.fromkeys(names)]


def _layer_capture(
    model: "HookedTransformer | AttachedTransformer",
    layer: int,
    steps: tuple[str, ...],
    stages: Sequence[str],
    kept: dict[str, Tensor],
    n_tokens: int,
) -> LayerCapture:
    """One layer's tensors by the number of steps behind them, with its constants."""
    by_steps = {}
    for stage in (*stages, "final"):
        done = steps_before(stage, steps)
        if done is not None:
            by_steps[done] = stage
    return LayerCapture(
        steps=steps,
        q={done: kept[f"hook_q_{stage}"] for done, stage in by_steps.items()},
        k={done: kept[f"hook_k_{stage}"] for done, stage in by_steps.items()},
        v=kept["hook_v_final"],
        constants=layer_constants(model, layer, n_tokens),
    )


def _tokens_of(
    model: "HookedTransformer | AttachedTransformer",
    source: "str | Text | Sequence[int] | Tensor",
    n_tokens: int | None,
) -> tuple[Int[Tensor, "1 pos"], str, Text | None]:
    """Tokens in one row, one line on what they are, and the text if there is one."""
    if isinstance(source, str | Text):
        text = as_text(source)
        tokens, what = tokenise(model, text, n_tokens)
        return tokens, what, text
    if not isinstance(source, Tensor | Sequence | np.ndarray):
        raise InputError(f"cannot read a {type(source).__name__}: give a text, or token ids in one row")
    ids = torch.as_tensor(source if isinstance(source, Tensor) else np.asarray(source))
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
    return ids.long()[None], "token ids given in memory", None


def _chosen_layers(cfg: "HookedTransformerConfig", layers: int | Iterable[int] | None) -> tuple[int, ...]:
    """The layers to keep, in order, checked against the model."""
    layers = [layers] if isinstance(layers, int) else layers
    chosen = range(cfg.n_layers) if layers is None else sorted({int(layer) for layer in layers})
    if not chosen:
        raise StageError("no layer was asked for: name at least one")
    for layer in chosen:
        if not 0 <= layer < cfg.n_layers:
            raise StageError(f"the model has no layer {layer}: its layers are 0 to {cfg.n_layers - 1}")
    return tuple(chosen)


def _check_stages(stages: Sequence[str], steps: dict[int, tuple[str, ...]]) -> None:
    """Raise a StageError for an unknown stage, or one asked for by name that no layer has."""
    for stage in stages:
        found = [layer for layer in steps if steps_before(stage, steps[layer]) is not None]
        if not found and stages is not DEFAULT_STAGES:
            there = [s for s in STAGES if any(steps_before(s, own) is not None for own in steps.values())]
            raise StageError(f"no layer of this model has a stage {stage!r}; it has {', '.join(there)}")


def _ranges(numbers: Sequence[int]) -> str:
    """Whole numbers as text, runs shortened: 0-3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{a}-{b}" if b > a else f"{a}" for a, b in runs)
