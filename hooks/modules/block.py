"""MLP and block: attention and MLP around the residual stream, a hook point on every tensor."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooks.config.transformer import HookedTransformerConfig
from hooks.modules.activations import activation
from hooks.modules.attention import Attention, AttentionContext
from hooks.modules.hook_point import HookPoint
from hooks.modules.norms import Norm
from hooks.modules.weight_views import MLPWeights, scaled


class MLP(MLPWeights, nn.Module):
    """W_down(act(W_gate x) ⊙ W_up x), or W_down act(W_up x) without a gate."""

    def __init__(self, cfg: HookedTransformerConfig, device: torch.device | str | None = None):
        super().__init__()
        assert cfg.d_mlp is not None, "the config resolves d_mlp"
        options = {"bias": cfg.mlp_bias, "device": device, "dtype": cfg.dtype}
        if cfg.gated_mlp:
            self.gate_proj = nn.Linear(cfg.d_model, cfg.d_mlp, **options)
            self.hook_pre_linear = HookPoint()
        self.up_proj = nn.Linear(cfg.d_model, cfg.d_mlp, **options)
        self.down_proj = nn.Linear(cfg.d_mlp, cfg.d_model, **options)
        self.gated = cfg.gated_mlp
        self.residual_scale = cfg.residual_scale
        self.act = activation(cfg)
        self.hook_pre = HookPoint()
        self.hook_post = HookPoint()
        self.hook_out = HookPoint()

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """MLP output before any post-norm."""
        if self.gated:
            post = self.act(self.hook_pre(self.gate_proj(x))) * self.hook_pre_linear(self.up_proj(x))
        else:
            post = self.act(self.hook_pre(self.up_proj(x)))
        return self.hook_out(scaled(self.down_proj(self.hook_post(post)), self.residual_scale))


class Block(nn.Module):
    """Attention and MLP around the residual stream, with norms before, after or on both sides of each."""

    hook_out_is_single_residual_stream = True  # which TransformerLens' logit lens asks for
    hook_resid_mid: HookPoint | None
    hook_mlp_in: HookPoint
    hook_mlp_out: HookPoint

    def __init__(self, cfg: HookedTransformerConfig, layer: int, device: torch.device | str | None = None):
        super().__init__()
        self.parallel, self.shared_norm = cfg.parallel_attn_mlp, cfg.parallel_shared_norm
        before, after = cfg.block_norms in ("pre", "sandwich"), cfg.block_norms in ("post", "sandwich")
        has_mlp = not cfg.attn_only

        def norm(present: bool) -> nn.Module:
            return Norm(cfg, cfg.d_model) if present else nn.Identity()

        self.hook_resid_pre = HookPoint()
        self.ln1 = norm(before)
        self.attn = Attention(cfg, layer, device)
        self.ln1_post = norm(after)
        self.hook_attn_out = HookPoint()
        self.hook_resid_mid = HookPoint() if has_mlp and not self.parallel else None
        self.ln2 = norm(before and has_mlp and not self.shared_norm)
        self.mlp = MLP(cfg, device) if has_mlp else None
        self.ln2_post = norm(after and has_mlp)
        if has_mlp:
            self.hook_mlp_in = HookPoint()
            self.hook_mlp_out = HookPoint()
        self.hook_resid_post = HookPoint()

    def forward(
        self, resid: Float[Tensor, "batch pos d_model"], context: AttentionContext
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after this block."""
        resid = self.hook_resid_pre(resid)
        attn_in = self.ln1(resid)
        attn_out = self.hook_attn_out(self.ln1_post(self.attn(attn_in, context, self._split_inputs(resid))))
        if self.mlp is None:
            return self.hook_resid_post(resid + attn_out)
        mlp_in = resid if self.hook_resid_mid is None else self.hook_resid_mid(resid + attn_out)
        mlp_out = self.hook_mlp_out(self.ln2_post(self.mlp(self._mlp_input(mlp_in, attn_in))))
        if self.parallel:
            return self.hook_resid_post(resid + attn_out + mlp_out)
        return self.hook_resid_post(mlp_in + mlp_out)

    def _mlp_input(
        self, resid: Float[Tensor, "batch pos d_model"], attn_in: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """What the MLP reads of the stream: normed, and where ``hook_mlp_in`` is watched of a copy of its own."""
        if not self.hook_mlp_in.has_hooks():
            return attn_in if self.shared_norm else self.ln2(resid)
        copied = self.hook_mlp_in(resid.clone())
        if not self.shared_norm:
            return self.ln2(copied)
        return self.ln1(copied, hooked=False) if isinstance(self.ln1, Norm) else copied

    def _split_inputs(self, resid: Float[Tensor, "batch pos d_model"]) -> dict[str, Tensor]:
        """ln1 of a copy of the stream per head, for those of q, k and v whose own, or common, copies are watched."""
        cfg, split, common = self.attn.cfg, {}, None
        point = getattr(self.attn, "hook_attn_in", None)
        if point is not None and point.has_hooks():
            common = point(resid.unsqueeze(2).repeat(1, 1, cfg.n_heads, 1))
        for tensor, heads in (("q", cfg.n_heads), ("k", cfg.n_kv_heads), ("v", cfg.n_kv_heads)):
            point = getattr(self.attn, f"hook_{tensor}_input")
            if point.has_hooks():
                copies = point(resid.unsqueeze(2).repeat(1, 1, heads, 1) if common is None else common.clone())
            elif common is not None:
                copies = common
            else:
                continue
            split[tensor] = self.ln1(copies, hooked=False) if isinstance(self.ln1, Norm) else copies
        return split

    @property
    def submodules(self) -> dict[str, nn.Module]:
        """The block's parts, where TransformerLens' tools look for them."""
        return dict(self.named_children())

    @property
    def hook_aliases(self) -> dict[str, str]:
        """Which module's output ``hook_attn_out`` is: TransformerLens refuses to patch heads through a post-norm."""
        return {"hook_attn_out": "ln1_post.hook_out" if isinstance(self.ln1_post, Norm) else "attn.hook_out"}
