"""MLP and block: attention and MLP around the residual stream, a hook point on every tensor."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooks.config.transformer import HookedTransformerConfig
from hooks.modules.activations import activation
from hooks.modules.attention import Attention, AttentionContext
from hooks.modules.chunks import by_position, has_torch_hooks, is_watched, positions_at_once
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
        """MLP output before any post-norm; a long text goes through in pieces, unless what is inside is watched."""
        at_once = self.positions_at_once(x)
        if x.shape[1] <= at_once or torch.compiler.is_compiling():
            return self.hook_out(self._out(x))
        parts = [part for part in self.children() if part is not self.hook_out]
        if not is_watched(*parts):
            return self.hook_out(by_position(self._out, x, at_once=at_once))
        return self.hook_out(self._out(x, at_once))

    def positions_at_once(self, x: Float[Tensor, "batch pos d_model"]) -> int:
        """How many positions of x go through together."""
        return positions_at_once(self.up_proj.out_features, x)

    def _out(self, x: Tensor, at_once: int | None = None) -> Tensor:
        """The output; each matrix product in pieces, whose results its hooks see whole, where a size is given."""

        def product(linear: nn.Module, x: Tensor) -> Tensor:
            if at_once is None or is_watched(linear):
                return linear(x)
            return by_position(linear, x, at_once=at_once)

        if self.gated:
            post = self.act(self.hook_pre(product(self.gate_proj, x)))
            post = post * self.hook_pre_linear(product(self.up_proj, x))
        else:
            post = self.act(self.hook_pre(product(self.up_proj, x)))
        return scaled(product(self.down_proj, self.hook_post(post)), self.residual_scale)


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
        # Of a long text each of these is as large as the stream: none is held longer than it is needed.
        stream, attn_in = self._attended(resid, context)
        if self.mlp is None:
            return self.hook_resid_post(stream)
        if self.hook_resid_mid is None:
            return self.hook_resid_post(self._add_mlp(self.mlp, stream, resid, attn_in))
        own = not is_watched(self.hook_resid_mid)
        stream = self.hook_resid_mid(stream)
        return self.hook_resid_post(self._add_mlp(self.mlp, stream, stream, attn_in, out=stream if own else None))

    def _attended(self, resid: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor | None]:
        """The stream after attention, a fresh tensor; and what attention read, where the MLP reads the same."""
        split = self._split_inputs(resid)
        if self._reads_in_pieces(resid, split):
            return resid + self.hook_attn_out(self.ln1_post(self.attn(resid, context, norm=self.ln1))), None
        attn_in = self.ln1(resid)
        attn_out = self.hook_attn_out(self.ln1_post(self.attn(attn_in, context, split)))
        return resid + attn_out, attn_in if self.shared_norm else None

    def _reads_in_pieces(self, resid: Tensor, split: dict[str, Tensor]) -> bool:
        """Whether attention's input need not be there as a whole: the text is long, and nobody looks at it."""
        if resid.shape[1] <= self.attn.positions_at_once(resid) or torch.is_grad_enabled() or self.shared_norm:
            return False
        projections = (self.attn.q_proj, self.attn.k_proj, self.attn.v_proj)
        seen = split or has_torch_hooks(self.attn) or is_watched(self.ln1, *projections)
        return not seen and not torch.compiler.is_compiling()

    def _add_mlp(
        self, mlp: MLP, stream: Tensor, read: Tensor, shared: Tensor | None, out: Tensor | None = None
    ) -> Tensor:
        """A stream and what the MLP makes of another: in pieces where the text is long and nothing here is watched.

        The result takes the place of ``out``, if it is given and there are pieces.
        """
        at_once = mlp.positions_at_once(stream)
        if stream.shape[1] > at_once and not is_watched(
            self.ln2, mlp, self.ln2_post, self.hook_mlp_in, self.hook_mlp_out
        ):

            def piece(stream: Tensor, read: Tensor) -> Tensor:
                return stream + self.ln2_post(mlp(self.ln2(read)))

            return by_position(piece, stream, read if shared is None else shared, at_once=at_once, out=out)
        return stream + self.hook_mlp_out(self.ln2_post(mlp(self._mlp_input(read, shared))))

    def _mlp_input(
        self, resid: Float[Tensor, "batch pos d_model"], attn_in: Float[Tensor, "batch pos d_model"] | None
    ) -> Float[Tensor, "batch pos d_model"]:
        """What the MLP reads of the stream: normed, and where ``hook_mlp_in`` is watched of a copy of its own."""
        if not self.hook_mlp_in.has_hooks():
            return self.ln2(resid) if attn_in is None else attn_in
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
