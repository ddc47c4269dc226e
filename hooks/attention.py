"""Attention with a hook point on every tensor: project; clip, norm, rotate in the configured order; attend."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from hooks.attend import AttentionSpec, attend_full, attend_fused, attend_rows
from hooks.config import HookedTransformerConfig
from hooks.names import STEP_OUTPUT, attention_steps
from hooks.qk_norm import QKNorm
from hooks.rope import rotate


@dataclass(frozen=True)
class AttentionContext:
    """What every block of one forward pass shares.

    Attributes:
        positions: position of each token, which rotation, ALiBi and distances go by.
        rotations: cos and sin per layer type, each ``[batch pos pair]``.
        key_mask: False where a key is padding; None when nothing is.
    """

    positions: Int[Tensor, "batch pos"]
    rotations: Mapping[str, tuple[Tensor, Tensor]]
    key_mask: Bool[Tensor, "batch pos"] | None = None


class Attention(nn.Module):
    """Grouped-query attention of one layer; its hook points are the registry's (`hooks.names`).

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
            self.q_norm = QKNorm(cfg.qk_norm, cfg.n_heads, cfg.d_head)
            self.k_norm = QKNorm(cfg.qk_norm, cfg.n_kv_heads, cfg.d_head)
        sinks = nn.Parameter(torch.empty(cfg.n_heads, **options)) if cfg.learned_sinks else None
        self.register_parameter("sinks", sinks)
        self._add_hook_points()

    def _add_hook_points(self) -> None:
        """One point per tensor that this layer really has."""
        self.steps = {t: attention_steps(self.cfg, self.layer, t) for t in ("q", "k", "v")}
        names = [f"hook_{t}" for t in self.steps]
        names += [STEP_OUTPUT[step].format(t) for t, steps in self.steps.items() for step in steps]
        names += ["hook_attn_scores", "hook_pattern", "hook_attn_scores_rows", "hook_pattern_rows"]
        for name in [*names, "hook_z", "hook_result", "hook_out"]:
            setattr(self, name, HookPoint())

    @property
    def spec(self) -> AttentionSpec:
        """How this layer turns q and k into a pattern, its learned sinks included."""
        return replace(self.cfg.attention_spec(self.layer), sinks=self.sinks)

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:  # noqa: N802
        """Query weights in TransformerLens' layout, a view of the projection."""
        return rearrange(self.q_proj.weight, "(head d_head) d_model -> head d_model d_head", d_head=self.cfg.d_head)

    @property
    def W_K(self) -> Float[Tensor, "kv_head d_model d_head"]:  # noqa: N802
        """Key weights in TransformerLens' layout, kv heads not expanded."""
        return rearrange(self.k_proj.weight, "(head d_head) d_model -> head d_model d_head", d_head=self.cfg.d_head)

    @property
    def W_V(self) -> Float[Tensor, "kv_head d_model d_head"]:  # noqa: N802
        """Value weights in TransformerLens' layout, kv heads not expanded."""
        return rearrange(self.v_proj.weight, "(head d_head) d_model -> head d_model d_head", d_head=self.cfg.d_head)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:  # noqa: N802
        """Output weights in TransformerLens' layout."""
        return rearrange(self.o_proj.weight, "d_model (head d_head) -> head d_head d_model", d_head=self.cfg.d_head)

    def forward(
        self, x: Float[Tensor, "batch pos d_model"], context: AttentionContext
    ) -> Float[Tensor, "batch pos d_model"]:
        """Attention output before any post-norm."""
        q, k, v = (self._prepare(tensor, x, context) for tensor in ("q", "k", "v"))
        z = self.hook_z(self._attend(q, k, v, context))
        if self.hook_result.has_hooks():
            per_head = torch.einsum("bphd,hdm->bphm", z, self.W_O)
            out = self.hook_result(per_head).sum(2)
            if self.o_proj.bias is not None:
                out = out + self.o_proj.bias
        else:
            out = self.o_proj(z.flatten(2))
        return self.hook_out(out)

    def _prepare(self, tensor: str, x: Tensor, context: AttentionContext) -> Float[Tensor, "batch pos head d_head"]:
        """Project x to q, k or v and take it through its steps, past one hook point after each."""
        heads = rearrange(getattr(self, f"{tensor}_proj")(x), "b p (h d) -> b p h d", d=self.cfg.d_head)
        heads = getattr(self, f"hook_{tensor}")(heads)
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

    def _rotate(self, heads: Tensor, context: AttentionContext) -> Tensor:
        """Apply this layer type's rotation."""
        cos, sin = context.rotations[self.layer_type]
        interleaved = self.rope is not None and bool(self.rope.interleaved)
        return rotate(heads, cos, sin, interleaved=interleaved, in_float32=self.cfg.rope_in_float32)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, context: AttentionContext) -> Tensor:
        """Fused when nobody watches, rows or full when their points are hooked."""
        options = {
            "key_mask": context.key_mask,
            "query_positions": context.positions,
            "key_positions": context.positions,
        }
        if self.hook_attn_scores.has_hooks() or self.hook_pattern.has_hooks():
            return attend_full(
                q, k, v, self.spec, on_scores=self.hook_attn_scores, on_pattern=self.hook_pattern, **options
            )
        if not (self.hook_attn_scores_rows.has_hooks() or self.hook_pattern_rows.has_hooks()):
            return attend_fused(q, k, v, self.spec, **options)

        def at(point: HookPoint):
            def call(block: Tensor, query_positions: Tensor, key_positions: Tensor) -> Tensor:
                point.ctx |= {"query_positions": query_positions, "key_positions": key_positions}
                return point(block)

            return call if point.has_hooks() else None

        return attend_rows(
            q,
            k,
            v,
            self.spec,
            on_scores=at(self.hook_attn_scores_rows),
            on_pattern=at(self.hook_pattern_rows),
            **options,
        )
