"""Attention with a hook point on every tensor: project; clip, norm, rotate in the configured order; attend."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hooks.config.attention_spec import AttentionSpec
from hooks.config.steps import STEP_OUTPUT, attention_steps
from hooks.config.transformer import HookedTransformerConfig
from hooks.functional.attend import RowsHook, attend_full, attend_fused, attend_rows
from hooks.functional.place import FROM_START, Place
from hooks.functional.rope import rotate
from hooks.modules.chunks import by_position, positions_at_once
from hooks.modules.hook_point import HookPoint, run_hooks
from hooks.modules.qk_norm import QKNorm
from hooks.modules.watching import show_to_watchers
from hooks.modules.weight_views import AttentionWeights, scaled


class PastKeys(Protocol):
    """Keys and values of the tokens before those of this pass."""

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Place]:
        """Keys and values of one layer behind those that it keeps, and where they and the queries stand."""
        ...


@dataclass(frozen=True)
class AttentionContext:
    """What every block of one forward pass shares.

    Attributes:
        positions: position of each token, which rotation, ALiBi and distances go by.
        rotations: cos and sin per layer type, each ``[batch pos pair]``.
        key_mask: False where a key is padding; None when nothing is.
        documents: where the documents begin that are packed into each row; None when each is one text.
        past: what the layers keep of the tokens before; None when there are none.
    """

    positions: Int[Tensor, "batch pos"]
    rotations: Mapping[str, tuple[Tensor, Tensor]]
    key_mask: Bool[Tensor, "batch pos"] | None = None
    documents: Int[Tensor, "batch document"] | None = None
    past: PastKeys | None = None


class Attention(AttentionWeights, nn.Module):
    """Grouped-query attention of one layer; its hook points are the registry's (`hooks.base.registry`).

    Args:
        cfg: the model's config.
        layer: index of the layer, which decides its type, window and rotation.
        device: where to allocate the projection weights ("meta" when they will be replaced).
    """

    hook_attn_scores: HookPoint
    hook_pattern: HookPoint
    hook_attn_scores_rows: HookPoint
    hook_pattern_rows: HookPoint
    hook_z: HookPoint
    hook_result: HookPoint
    hook_out: HookPoint
    sinks: nn.Parameter | None

    def __init__(self, cfg: HookedTransformerConfig, layer: int, device: torch.device | str | None = None):
        super().__init__()
        self.cfg = cfg
        self.layer = layer
        self.layer_type = cfg.layer_type(layer)
        self.rope = cfg.rope_for(layer)
        options = {"device": device, "dtype": cfg.dtype}
        q_width, kv_width = cfg.n_heads * cfg.d_head, cfg.n_kv_heads * cfg.d_head
        self.q_proj = nn.Linear(cfg.d_model, q_width, bias=cfg.attn_bias, **options)
        self.k_proj = nn.Linear(cfg.d_model, kv_width, bias=cfg.attn_bias, **options)
        self.v_proj = nn.Linear(cfg.d_model, kv_width, bias=cfg.attn_bias, **options)
        self.o_proj = nn.Linear(q_width, cfg.d_model, bias=cfg.attn_out_bias, **options)
        if cfg.qk_norm is not None:
            self.q_norm = QKNorm(cfg.qk_norm, cfg.n_heads, cfg.d_head, dtype=cfg.dtype)
            self.k_norm = QKNorm(cfg.qk_norm, cfg.n_kv_heads, cfg.d_head, dtype=cfg.dtype)
        sinks = nn.Parameter(torch.empty(cfg.n_heads, **options)) if cfg.learned_sinks else None
        self.register_parameter("sinks", sinks)
        self._add_hook_points()

    def _add_hook_points(self) -> None:
        """One point per tensor that this layer really has."""
        self.steps = {t: attention_steps(self.cfg, self.layer, t) for t in ("q", "k", "v")}
        # A copy of the stream for each head feeds q, k and v only where each head has keys and values of its own.
        names = ["hook_attn_in"] if self.cfg.n_kv_heads == self.cfg.n_heads else []
        names += [f"hook_{t}_input" for t in self.steps]
        names += [f"hook_{t}" for t in self.steps]
        names += [STEP_OUTPUT[step].format(t) for t, steps in self.steps.items() for step in steps]
        names += ["hook_attn_scores", "hook_pattern", "hook_attn_scores_rows", "hook_pattern_rows"]
        for name in [*names, "hook_z", "hook_result", "hook_out"]:
            setattr(self, name, HookPoint())

    @property
    def spec(self) -> AttentionSpec:
        """How this layer turns q and k into a pattern, its learned sinks included."""
        spec = self.cfg.attention_spec(self.layer)
        return spec if self.sinks is None else replace(spec, sinks=self.sinks)

    def forward(
        self,
        x: Float[Tensor, "batch pos d_model"],
        context: AttentionContext,
        split_inputs: Mapping[str, Float[Tensor, "batch pos head d_model"]] | None = None,
        norm: nn.Module | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """Attention output before any post-norm.

        Args:
            x: what q, k and v are projected from.
            context: positions, rotations and padding.
            split_inputs: for "q", "k" or "v", an input of its own for each head, in place of x.
            norm: what x is still to go through, piece by piece, so that the whole of it is never held.
        """
        inputs = {"q": x, "k": x, "v": x, **(split_inputs or {})}
        q, k, v = (self._prepare(tensor, inputs[tensor], context, norm) for tensor in ("q", "k", "v"))
        at, documents = context.positions, context.documents
        if context.past is None:
            place = Place(key_mask=context.key_mask, query_positions=at, key_positions=at, documents=documents)
        else:
            k, v, place = context.past.extend(self.layer, k, v)
        z = past_z(self.hook_z, attend_hooked(self, q, k, v, self.spec, place), place, k.shape[1])
        if self.hook_result.has_hooks():
            per_head = torch.einsum("bphd,hdm->bphm", z, self.W_O)
            out = self.hook_result(per_head).sum(2)
            if self.o_proj.bias is not None:
                out = out + self.b_O
        else:
            out = scaled(self._in_pieces(self.o_proj, z.flatten(2)), self.cfg.residual_scale)
        return self.hook_out(out)

    def positions_at_once(self, x: Float[Tensor, "batch pos d_model"]) -> int:
        """How many positions of x are projected together."""
        return positions_at_once(max(self.cfg.d_model, self.cfg.n_heads * self.cfg.d_head), x)

    def _in_pieces(self, linear: nn.Module, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        """A projection of x, behind a norm where there is one, some positions at a time."""

        def work(part: Tensor) -> Tensor:
            return linear(part if norm is None else norm(part))

        return by_position(work, x, at_once=self.positions_at_once(x), unless_watched=(linear,))

    def _prepare(
        self, tensor: str, x: Tensor, context: AttentionContext, norm: nn.Module | None
    ) -> Float[Tensor, "batch pos head d_head"]:
        """Project x to q, k or v and take it through its steps, past one hook point after each."""
        heads = getattr(self, f"hook_{tensor}")(self._project(tensor, x, norm))
        for step in self.steps[tensor]:
            if step == "clip":
                limit = self.cfg.clip_qkv
                heads = heads if limit is None else heads.clamp(-limit, limit)
            elif step == "norm":
                heads = getattr(self, f"{tensor}_norm")(heads)
            else:
                heads = self._rotate(heads, context)
            heads = getattr(self, STEP_OUTPUT[step].format(tensor))(heads)
        return heads

    def _project(self, tensor: str, x: Tensor, norm: nn.Module | None) -> Float[Tensor, "batch pos head d_head"]:
        """q, k or v of a shared input, or of one input per head."""
        if x.ndim == 3:
            return self._in_pieces(getattr(self, f"{tensor}_proj"), x, norm).unflatten(-1, (-1, self.cfg.d_head))
        weight, bias = getattr(self, f"W_{tensor.upper()}"), getattr(self, f"b_{tensor.upper()}")
        return torch.einsum("bphm,hmd->bphd", x, weight) + bias

    def _rotate(self, heads: Tensor, context: AttentionContext) -> Tensor:
        """Apply this layer type's rotation."""
        cos, sin = context.rotations[self.layer_type]
        interleaved = self.rope is not None and bool(self.rope.interleaved)
        turn = partial(rotate, interleaved=interleaved, in_float32=self.cfg.rope_in_float32)
        at_once = positions_at_once(heads.shape[2:].numel(), heads, itemsize=4)
        return by_position(turn, heads, cos, sin, at_once=at_once)


class AttendingPoints(Protocol):
    """The points of scores and pattern, whole and by rows, of a layer's attention module."""

    hook_attn_scores: HookPoint
    hook_pattern: HookPoint
    hook_attn_scores_rows: HookPoint
    hook_pattern_rows: HookPoint


def attend_hooked(
    points: AttendingPoints,
    q: Float[Tensor, "batch query head d_head"],
    k: Float[Tensor, "batch key kv_head d_head"],
    v: Float[Tensor, "batch key kv_head d_head"],
    spec: AttentionSpec,
    place: Place = FROM_START,
    **where: Any,
) -> Float[Tensor, "batch query head d_head"]:
    """Attend past the score and pattern points of a module: fused when nobody watches, rows or full when hooked.

    A hook finds the positions of its tensor's rows and keys in ``hook.ctx["query_positions"]`` and
    ``hook.ctx["key_positions"]``, [query] and [key], with a batch axis where batch rows differ.

    Args:
        points: has ``hook_attn_scores``, ``hook_pattern`` and their ``_rows`` twins.
        q: queries as they enter the score, [batch pos head d_head].
        k: keys, one per kv head.
        v: values, one per kv head.
        spec: how scores become a pattern.
        place: where queries and keys stand.
        **where: fields of `Place`, given one by one.
    """
    place = replace(place, **where) if where else place
    show_to_watchers(cast(nn.Module, points), q, k, spec, place)
    if points.hook_attn_scores.has_hooks() or points.hook_pattern.has_hooks():
        queries, keys = place.plain().positions(slice(0, q.shape[1]), slice(0, k.shape[1]), q.device)
        for point in (points.hook_attn_scores, points.hook_pattern):
            point.ctx |= {"query_positions": queries, "key_positions": keys}
        return attend_full(q, k, v, spec, place, on_scores=points.hook_attn_scores, on_pattern=points.hook_pattern)
    if not (points.hook_attn_scores_rows.has_hooks() or points.hook_pattern_rows.has_hooks()):
        return attend_fused(q, k, v, spec, place)
    on_scores, on_pattern = _rows_hook(points.hook_attn_scores_rows), _rows_hook(points.hook_pattern_rows)
    return attend_rows(q, k, v, spec, place, on_scores=on_scores, on_pattern=on_pattern)


def past_z(
    point: HookPoint, z: Float[Tensor, "batch query head d_head"], place: Place, n_keys: int
) -> Float[Tensor, "batch query head d_head"]:
    """Lead z past its point; hooks there find in ``hook.ctx["texts"]`` which tokens are one text (`Place.texts`)."""
    if point.has_hooks():
        point.ctx["texts"] = place.texts(z.shape[1], n_keys, z.device)
    return point(z)


def _rows_hook(point: HookPoint) -> RowsHook | None:
    """What the hooks that a point has now make of a block.

    Blocks run once more in the backward pass, when these hooks may be gone, or in a thread that does not have them.
    """
    hooks = [handle.user_hook for handle in point.fwd_hooks if handle.user_hook is not None]

    def call(block: Tensor, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        point.ctx |= {"query_positions": query_positions, "key_positions": key_positions}
        return run_hooks(point, hooks, block)

    return call if hooks else None
