"""The hook points of an attached model, and the module hooks that lead a foreign model's tensors past them."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from hooks.attached.interface import HANDLER
from hooks.attached.masks import MaskRules
from hooks.attached.positions import true_positions
from hooks.attached.probe import LayerFacts, Tap, first_tensor, from_heads, to_heads
from hooks.base.registry import FULL_HOOKS, ROWS_HOOKS
from hooks.config.attention_spec import AttentionSpec
from hooks.config.qk_norm import QKNormConfig
from hooks.errors import AttachError, HookConflictError
from hooks.functional.head_width import same_width
from hooks.modules.attention import attend_hooked, past_z
from hooks.modules.hook_point import HookPoint

# What reads positions.
_BETWEEN = (*FULL_HOOKS, *ROWS_HOOKS)


class Pass(threading.local):
    """What the points of one model share about the pass that is running, one for each thread.

    Attributes:
        positions: position of each token where the caller gave them, [batch pos], those in its cache included.
        documents: where the documents begin that are packed into each row, which every mask must then tell apart.
        handed: positions that the model handed the layer that is running, if it did.
        silent: whether layers are being replaced by stand-ins, so that no point may fire.
        by_layer: whether the caller runs one block at a time and has had its embedding already.
        batch: rows of the batch that is running.
        turns: how often each shared module has run in the attention module that is running.
        kept: where each layer's keys and values lie that it has from its cache, past their last points already.
    """

    positions: Int[Tensor, "batch pos"] | None = None
    documents: Int[Tensor, "batch document"] | None = None
    handed: Any = None
    silent: bool = False
    by_layer: bool = False
    batch: int = 1

    def __init__(self) -> None:
        self.turns: dict[str, int] = {}
        self.kept: dict[nn.Module, dict[str, int]] = {}


class NormGain:
    """The gain of a foreign QK-norm, measured: the module's answer to a vector of ±1 is its gain times that vector.

    Args:
        tap: the module, and how its output is laid out.
        like: a tensor that it normalises, [batch pos head d_head].
    """

    def __init__(self, tap: Tap, like: Tensor):
        self.config = QKNormConfig()  # what is measured has a fixed scale in it already
        self._tap, self._signs = tap, torch.ones_like(like[:1, :1])
        self._signs[..., 1::2] = -1

    def effective_gain(self) -> Float[Tensor, "head d_head"]:
        """What each normalised feature is multiplied by, float32, an offset of 1 included."""
        up, down = self._answers()
        return (up - down) * self._signs[0, 0].float() / 2

    @property
    def bias(self) -> Float[Tensor, "head d_head"] | None:
        """What is added to each feature after its gain; None where nothing is."""
        up, down = self._answers()
        return (up + down) / 2 if bool((up + down).any()) else None

    @torch.no_grad()
    def _answers(self) -> list[Float[Tensor, "head d_head"]]:
        """The norm of signs and of opposite signs, large enough for eps not to count."""
        layout, heads = self._tap.layout, self._signs.shape[2]
        given = (from_heads(size * self._signs, layout) for size in (1000, -1000))
        return [to_heads(self._tap.module(x), heads, layout)[0, 0].float() for x in given]


class AttachedAttention(nn.Module):
    """Hook points of one foreign attention module, named as in `hooks.attention.Attention`.

    Args:
        facts: what the probe found.
        run: shared by all layers.
    """

    hook_attn_scores: HookPoint
    hook_pattern: HookPoint
    hook_attn_scores_rows: HookPoint
    hook_pattern_rows: HookPoint
    hook_z: HookPoint
    hook_out: HookPoint
    q_norm: NormGain
    k_norm: NormGain

    def __init__(self, facts: LayerFacts, run: Pass):
        super().__init__()
        self._facts, self._run = (facts,), run
        self.spec = facts.spec
        self.n_heads, self.n_kv_heads, self.d_head = facts.q.shape[2], facts.k.shape[2], facts.q.shape[3]
        names = [name for tensor in ("q", "k", "v") for name in facts.reachable(tensor)]
        names += ["hook_attn_scores", "hook_pattern", "hook_attn_scores_rows", "hook_pattern_rows", "hook_z"]
        for name in [*names, *facts.output_points]:
            setattr(self, name, HookPoint())
        for tensor, tap in facts.norms.items():
            setattr(self, f"{tensor}_norm", NormGain(tap, getattr(facts, tensor)))

    @property
    def original_module(self) -> nn.Module:
        """The model's own attention module."""
        assert self._facts[0].attention is not None
        return self._facts[0].attention

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:  # noqa: N802
        """Output weights in TransformerLens' layout, a view of the model's own.

        Raises:
            AttachError: the projection is quantised, or no plain matrix.
        """
        if "hook_result" not in self._facts[0].output_points:
            kind = type(self._facts[0].output).__name__
            raise AttachError(
                f"no W_O here: the output projection ({kind}) is quantised or no plain matrix; hook_z holds the heads' "
                "outputs before it and hook_attn_out their sum after it"
            )
        weight = cast(nn.Linear, self._facts[0].output).weight
        weight = weight.mT if isinstance(self._facts[0].output, Conv1D) else weight  # GPT-2's lies the other way round
        return rearrange(weight, "d_model (head d_head) -> head d_head d_model", head=self.n_heads)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, rules: MaskRules, position_ids: Any = None
    ) -> Tensor:
        """Attention of this layer on the model's own q, k and v, past the points at both ends."""
        kept = self._run.kept.pop(self, None)
        if not self._run.silent:
            q, k, v = (self._final(t, x, kept) for t, x in (("q", q), ("k", k), ("v", v)))
        place = rules.place
        if self._run.documents is not None and rules.documents is None:
            raise AttachError(
                f"{type(self.original_module).__name__} lets packed documents see each other: its mask does not tell "
                "them by position_ids that start again; give each document a row of its own, with an attention_mask"
            )
        if any(getattr(self, name).has_hooks() for name in _BETWEEN):
            positions = self._run.positions
            if positions is not None and rules.first_key + k.shape[1] == positions.shape[1]:
                at = positions[:, -q.shape[1] :], positions[:, -k.shape[1] :]
            else:
                handed = self._run.handed if position_ids is None else position_ids
                at = true_positions(rules, k.shape[1], q.shape[1], handed, q.device)
            place = replace(place, query_positions=at[0], key_positions=at[1])
        q, k, v, width = same_width(q, k, v)
        return past_z(self.hook_z, attend_hooked(self, q, k, v, spec, place)[..., :width], place, k.shape[1])

    def _final(self, tensor: str, x: Tensor, kept: dict[str, int] | None) -> Tensor:
        """q, k or v past the last of its points, unless it went past before the cache took it in."""
        point = getattr(self, self._facts[0].final(tensor))
        if kept is None or tensor == "q":
            return point(x)
        if point.has_hooks() and x.data_ptr() != kept[tensor]:
            raise AttachError(
                f"{type(self.original_module).__name__} changes its {tensor} between cache and score, so a hook on it "
                "cannot work on the tokens in the cache; run without one (use_past_kv_cache=False)"
            )
        return x

    def keep(
        self, k: Tensor, v: Tensor, update: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Lead new keys and values, [batch kv_head pos d_head], past their last points on their way into a cache.

        Args:
            k: keys.
            v: values.
            update: puts them into the cache, and returns all that this layer keeps.
        """
        if self._run.silent:
            return update(k, v)
        led = (
            getattr(self, self._facts[0].final(t))(x.transpose(1, 2)).transpose(1, 2) for t, x in (("k", k), ("v", v))
        )
        keys, values = update(*led)
        self._run.kept[self] = {"k": keys.data_ptr(), "v": values.data_ptr()}
        return keys, values

    def install(self) -> list[RemovableHandle]:
        """Lead the module's tensors past the points; the handles undo it."""
        facts = self._facts[0]
        self.original_module.__dict__[HANDLER] = self.attend
        handles = [self.original_module.register_forward_pre_hook(self._start)]
        handles += [self._install_tap(name, tap) for name, tap in facts.taps.items()]
        if facts.output is not None:
            handles.append(facts.output.register_forward_hook(self._project))
        return handles

    def _start(self, _: nn.Module, __: tuple) -> None:
        """Count the calls of modules that q and k share from here."""
        self._run.turns.clear()

    def _install_tap(self, name: str, tap: Tap) -> RemovableHandle:
        """One point between projection and score, on the output or the input of a module of the model."""
        point = getattr(self, name)
        heads = self.n_kv_heads if name.startswith(("hook_k", "hook_rot_k", "hook_v")) else self.n_heads

        def is_turn() -> bool:
            turn = self._run.turns[name] = self._run.turns.get(name, -1) + 1
            return point.has_hooks() and not self._run.silent and turn % tap.turns == tap.turn

        def past(x: Tensor) -> Tensor:
            return from_heads(point(to_heads(x, heads, tap.layout)), tap.layout)

        def after(_: nn.Module, __: tuple, out: Tensor) -> Tensor | None:
            return past(out) if is_turn() else None

        def before(_: nn.Module, args: tuple) -> tuple | None:
            return (past(args[0]), *args[1:]) if is_turn() else None

        return tap.module.register_forward_pre_hook(before) if tap.is_input else tap.module.register_forward_hook(after)

    def _project(self, module: nn.Module, args: tuple, out: Tensor) -> Tensor | None:
        """Past hook_result, when watched, and hook_out."""
        result: HookPoint | None = getattr(self, "hook_result", None)
        point = self.hook_out
        if self._run.silent or not (point.has_hooks() or (result is not None and result.has_hooks())):
            return None
        if result is not None and result.has_hooks():
            z = args[0].unflatten(-1, (self.n_heads, -1))
            out = result(torch.einsum("bphd,hdm->bphm", z, self.W_O)).sum(2)
            bias = cast(nn.Linear, module).bias
            out = out if bias is None else out + bias
        return point(out)


class AttachedBlock(nn.Module):
    """Hook points of one foreign decoder layer, named as in `hooks.block.Block`.

    Args:
        facts: what the probe found.
        run: shared by all layers.
        embed: where the first layer's input passes before it is this layer's.
    """

    hook_resid_pre: HookPoint
    hook_resid_post: HookPoint
    attn: AttachedAttention | None

    def __init__(self, facts: LayerFacts, run: Pass, embed: HookPoint | None = None):
        super().__init__()
        self._facts, self._run, self._embed = (facts,), run, (embed,)
        self.shows_stream = bool(facts.calls) and facts.calls[0].given.ndim == 3
        self.attn = AttachedAttention(facts, run) if facts.attention is not None else None
        names = ["hook_resid_pre", *facts.streams, "hook_resid_post"] if self.shows_stream else []
        for name in names:
            setattr(self, name, HookPoint())

    @property
    def layer(self) -> nn.Module:
        """The model's own layer."""
        return self._facts[0].layer

    def forward(self, resid: Float[Tensor, "batch pos d_model"], context: "LayerContext") -> Tensor:
        """Run this layer alone on a residual stream, with what the model would hand it beside that stream."""
        args, kwargs = context.beside[self.layer]
        before = (self._run.positions, self._run.documents, self._run.by_layer)
        self._run.positions, self._run.documents, self._run.by_layer = context.positions, context.documents, True
        try:
            out = first_tensor(self.layer(resid, *args, **kwargs))
        finally:
            self._run.positions, self._run.documents, self._run.by_layer = before
        assert out is not None
        return out

    def install(self) -> list[RemovableHandle]:
        """Lead the layer's tensors past the points; the handles undo it."""
        handles = self.attn.install() if self.attn is not None else []
        if self.shows_stream:
            handles.append(self.layer.register_forward_pre_hook(self._enter, with_kwargs=True))
            handles.append(self.layer.register_forward_hook(self._leave(self.hook_resid_post)))
            for name, module in self._facts[0].streams.items():
                handles.append(module.register_forward_hook(self._leave(getattr(self, name))))
        return handles

    def _enter(self, _: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """The stream on its way into the layer."""
        stream = args[0] if args else kwargs["hidden_states"]
        self._run.batch, self._run.handed = stream.shape[0], kwargs.get("position_ids")
        if getattr(self.layer, "gradient_checkpointing", False) and self.layer.training and self._is_hooked():
            raise HookConflictError(
                f"{type(self.layer).__name__} runs again in the backward pass (gradient checkpointing), where these "
                "hooks may be gone: call gradient_checkpointing_disable() on the model, or eval()"
            )
        points = [self.hook_resid_pre]
        if self._embed[0] is not None and not self._run.by_layer:
            points.insert(0, self._embed[0])
        if self._run.silent or not any(point.has_hooks() for point in points):
            return None
        for point in points:
            stream = point(stream)
        return ((stream, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": stream})

    def _is_hooked(self) -> bool:
        """Whether any point of this layer is."""
        return any(point.has_hooks() for point in self.modules() if isinstance(point, HookPoint))

    def _leave(self, point: HookPoint) -> Callable[[nn.Module, tuple, Any], Any]:
        """A forward hook that leads a module's output, the first of several, past a point."""

        def after(_: nn.Module, __: tuple, out: Any) -> Any:
            if self._run.silent or not point.has_hooks():
                return None
            stream = first_tensor(out)
            assert stream is not None
            # Some experts return [batch·pos d_model].
            shown = point(stream.reshape(self._run.batch, -1, stream.shape[-1])).view_as(stream)
            return shown if isinstance(out, Tensor) else type(out)((shown, *out[1:]))

        return after


@dataclass(frozen=True)
class LayerContext:
    """What a pass hands each layer beside the residual stream.

    Attributes:
        positions: position of each token, [batch pos].
        beside: positional and keyword arguments of each layer, the stream left out.
        documents: where the documents begin that are packed into each row; None when each is one text.
    """

    positions: Int[Tensor, "batch pos"]
    beside: dict[nn.Module, tuple[tuple, dict]]
    documents: Int[Tensor, "batch document"] | None = None
