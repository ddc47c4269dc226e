"""The registry of hook names: axes, meaning, when each fires, aliases, globs and did-you-mean errors.

`hook_table` describes every hook point of a config; the model's modules create the same points, and a test holds the
two against each other.
"""

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from transformer_lens.utilities.components_utils import get_act_name

from hooks.checks import shown
from hooks.config.steps import STEP_OUTPUT, attention_steps
from hooks.config.transformer import HookedTransformerConfig
from hooks.errors import HookNameError

Fires = Literal["once", "on request", "full mode", "rows mode"]
NameSelector = str | Callable[[str], bool]

ROWS_HOOKS = ("hook_attn_scores_rows", "hook_pattern_rows")
FULL_HOOKS = ("hook_attn_scores", "hook_pattern")
NO_ATTN_IN = (
    "query heads share kv heads in this model, so no one copy of the stream for each head feeds q, k and v; "
    "hook_q_input, hook_k_input and hook_v_input hold a copy each"
)
_STEP_MISSING = {
    "clip": "has no clipping (cfg.clip_qkv is None)",
    "norm": "has no QK-norm (cfg.qk_norm is None)",
    "rope": "does not rotate in this layer (no RopeConfig applies to it)",
}


@dataclass(frozen=True)
class HookInfo:
    """One hook point: its canonical name, the axes of its tensor, what it holds, when it fires, its aliases."""

    name: str
    axes: str
    meaning: str
    fires: Fires = "once"
    aliases: tuple[str, ...] = ()

    @property
    def position_axis(self) -> int:
        """Index of the axis that ``pos_slice`` slices: ``pos``, or ``query`` of scores and patterns."""
        axes = self.axes.split()
        return axes.index("pos") if "pos" in axes else axes.index("query")


def step_infos(steps_of: Mapping[str, tuple[str, ...]], prefix: str) -> list[HookInfo]:
    """The points of q, k and v after the projection and after each step, with the aliases the order gives.

    Args:
        steps_of: clip, norm and rope in the order in which "q", "k" and "v" go through them.
        prefix: what the names start with, such as ``blocks.0.attn.``.
    """
    infos = []
    for tensor, steps in steps_of.items():
        points = [f"hook_{tensor}", *(STEP_OUTPUT[step].format(tensor) for step in steps)]
        aliases: list[list[str]] = [[] for _ in points]
        for number, step in enumerate(steps):
            aliases[number].append(f"hook_{tensor}_pre_{step}")
            aliases[number + 1].append(f"hook_{tensor}_post_{step}")
        aliases[-1].append(f"hook_{tensor}_final")
        heads = "head" if tensor == "q" else "kv_head"
        meaning = ["right after the projection", *(f"after {_STEP_TITLE[step]}" for step in steps)]
        infos += [
            HookInfo(
                prefix + point,
                f"batch pos {heads} d_head",
                f"{tensor} {what}",
                aliases=tuple(prefix + alias for alias in names),
            )
            for point, what, names in zip(points, meaning, aliases, strict=True)
        ]
    return infos


_STEP_TITLE = {"clip": "clipping to ±clip_qkv", "norm": "QK-norm", "rope": "the rotation (RoPE)"}


def _attention_infos(cfg: HookedTransformerConfig, layer: int) -> list[HookInfo]:
    """Every hook point inside one attention module."""
    block = f"blocks.{layer}."
    prefix = f"{block}attn."
    inputs = [("hook_attn_in", "head", "q, k and v are")] if cfg.n_kv_heads == cfg.n_heads else []
    inputs += [(f"hook_{t}_input", "head" if t == "q" else "kv_head", f"{t} is") for t in ("q", "k", "v")]
    infos = [
        HookInfo(
            prefix + name,
            f"batch pos {heads} d_model",
            f"each head's own copy of the residual stream that {what} made from, before the norm",
            "on request",
            (block + name,),
        )
        for name, heads, what in inputs
    ]
    infos += step_infos({tensor: attention_steps(cfg, layer, tensor) for tensor in ("q", "k", "v")}, prefix)
    if cfg.qk_norm is not None:
        full_width = cfg.qk_norm.scope == "full"
        for tensor, heads in (("q", "head"), ("k", "kv_head")):
            infos.append(
                HookInfo(
                    f"{prefix}{tensor}_norm.hook_scale",
                    "batch pos 1 1" if full_width else f"batch pos {heads} 1",
                    f"what QK-norm divides {tensor} by",
                )
            )
    return infos + attending_infos(prefix)


def attending_infos(prefix: str) -> list[HookInfo]:
    """The points from scores to the output of one attention module."""
    scores = "scores that enter softmax: scaled, soft-capped, masked with −inf"
    pattern = "attention pattern: softmax of the scores"
    axes = "batch head query key"
    return [
        HookInfo(prefix + "hook_attn_scores", axes, scores, "full mode"),
        HookInfo(prefix + "hook_pattern", axes, pattern, "full mode"),
        HookInfo(prefix + "hook_attn_scores_rows", axes, f"a block of rows of the {scores}", "rows mode"),
        HookInfo(prefix + "hook_pattern_rows", axes, f"a block of rows of the {pattern}", "rows mode"),
        HookInfo(prefix + "hook_z", "batch pos head d_head", "per-head output before W_O"),
        HookInfo(
            prefix + "hook_result",
            "batch pos head d_model",
            "per-head output after W_O (computed only when watched)",
        ),
        HookInfo(prefix + "hook_out", "batch pos d_model", "attention output before any post-norm"),
    ]


def _norm_infos(prefix: str, what: str) -> list[HookInfo]:
    """The two points of a normalisation."""
    return [
        HookInfo(f"{prefix}.hook_scale", "batch pos 1", f"what {what} divides by"),
        HookInfo(f"{prefix}.hook_normalized", "batch pos d_model", f"output of {what} before its gain"),
    ]


def _block_infos(cfg: HookedTransformerConfig, layer: int) -> list[HookInfo]:
    """Every hook point of one block."""
    b = f"blocks.{layer}."
    stream = "batch pos d_model"
    infos = [HookInfo(b + "hook_resid_pre", stream, "residual stream before the block")]
    if cfg.block_norms in ("pre", "sandwich"):
        both = " and the MLP" if cfg.parallel_shared_norm else ""
        infos += _norm_infos(b + "ln1", f"the norm before attention{both}")
    infos += _attention_infos(cfg, layer)
    if cfg.block_norms in ("post", "sandwich"):
        infos += _norm_infos(b + "ln1_post", "the norm after attention")
    infos.append(HookInfo(b + "hook_attn_out", stream, "what attention adds to the residual stream"))
    if not cfg.attn_only:
        infos += _mlp_infos(cfg, b)
    infos.append(HookInfo(b + "hook_resid_post", stream, "residual stream after the block"))
    return infos


def _mlp_infos(cfg: HookedTransformerConfig, b: str) -> list[HookInfo]:
    """The hook points between attention and the end of a block that has an MLP."""
    stream, wide = "batch pos d_model", "batch pos d_mlp"
    infos = []
    if not cfg.parallel_attn_mlp:
        infos.append(HookInfo(b + "hook_resid_mid", stream, "residual stream between attention and MLP"))
    own = "the MLP's own copy of the residual stream, before the norm"
    infos.append(HookInfo(b + "hook_mlp_in", stream, own, "on request"))
    if cfg.block_norms in ("pre", "sandwich") and not cfg.parallel_shared_norm:
        infos += _norm_infos(b + "ln2", "the norm before the MLP")
    infos.append(HookInfo(b + "mlp.hook_pre", wide, "MLP before the activation function"))
    if cfg.gated_mlp:
        infos.append(HookInfo(b + "mlp.hook_pre_linear", wide, "the MLP's linear branch, which the gate multiplies"))
    infos.append(HookInfo(b + "mlp.hook_post", wide, "MLP after the activation (and gate), before W_out"))
    infos.append(HookInfo(b + "mlp.hook_out", stream, "MLP output before any post-norm"))
    if cfg.block_norms in ("post", "sandwich"):
        infos += _norm_infos(b + "ln2_post", "the norm after the MLP")
    infos.append(HookInfo(b + "hook_mlp_out", stream, "what the MLP adds to the residual stream"))
    return infos


def hook_table(cfg: HookedTransformerConfig) -> list[HookInfo]:
    """Every hook point of a model with this config, in the order in which a forward pass reaches them."""
    infos = [HookInfo("hook_embed", "batch pos d_model", "token embedding, after embedding scaling")]
    rotating = sorted({cfg.layer_type(i) for i in range(cfg.n_layers) if cfg.rope_for(i) is not None})
    for layer_type in rotating:
        for part in ("cos", "sin"):
            infos.append(
                HookInfo(
                    f"rotary.{layer_type}.hook_{part}",
                    "batch pos pair",
                    f"{part} of each rotary angle of {layer_type} layers, times the attention factor",
                )
            )
    for layer in range(cfg.n_layers):
        infos += _block_infos(cfg, layer)
    return infos + _norm_infos("ln_final", "the final norm")


class HookRegistry:
    """Resolves hook names of one config: canonical names, aliases, TransformerLens shorthand, globs, predicates."""

    def __init__(self, cfg: HookedTransformerConfig, table: Iterable[HookInfo] | None = None):
        self._cfg = cfg
        self.infos = {info.name: info for info in (hook_table(cfg) if table is None else table)}
        self._canonical = {alias: info.name for info in self.infos.values() for alias in info.aliases}
        self._canonical |= {name: name for name in self.infos}

    def resolve(self, selector: NameSelector) -> list[str]:
        """Canonical names that a name, alias, glob or predicate selects, in forward order, each once.

        A glob or predicate that selects the full and the rows points of a layer gets the full ones: the two cannot run
        together, and rows points are worth asking for by name. It leaves out points that fire on request (a copy of the
        stream per head) unless it selects nothing else.

        Raises:
            HookNameError: nothing matches; the message has near matches or says which step the model lacks.
        """
        if not (callable(selector) or isinstance(selector, str)):
            raise HookNameError(f"{shown(selector)} is no hook name: give a name, an alias, a glob or a predicate")
        if callable(selector):
            accepted = {self._canonical[name] for name in self._canonical if selector(name)}
        elif any(c in selector for c in "*?["):
            accepted = {self._canonical[name] for name in fnmatch.filter(self._canonical, selector)}
        else:
            return [self.canonical(selector)]
        if not accepted:
            raise HookNameError(self._no_match(selector))
        accepted = {name for name in accepted if self.infos[name].fires != "on request"} or accepted
        full_layers = {_parent(name) for name in accepted if name.endswith(FULL_HOOKS)}
        return [
            name
            for name in self.infos
            if name in accepted and not (name.endswith(ROWS_HOOKS) and _parent(name) in full_layers)
        ]

    def canonical(self, name: str, layer: int | None = None, layer_type: str | None = None) -> str:
        """The canonical name of one hook given in full, by alias, or in shorthand (``"q_pre_rope", 3``)."""
        if layer is not None and layer < 0:
            layer += self._cfg.n_layers
        candidates = [name, f"hook_{name}", get_act_name(name, layer, layer_type)]
        if layer is not None:
            inner = [f"{layer_type}.", f"attn.{layer_type}."] if layer_type else ["", "attn.", "mlp."]
            leaves = [name, f"hook_{name.removeprefix('hook_')}"]
            candidates = [f"blocks.{layer}.{part}{leaf}" for part in inner for leaf in leaves] + candidates[2:]
        for candidate in candidates:
            if candidate in self._canonical:
                return self._canonical[candidate]
        shown = name if layer is None else f"blocks.{layer}…{name}"
        raise HookNameError(self._no_match(shown))

    def _no_match(self, selector: NameSelector) -> str:
        """Why a selector found nothing, and what would."""
        if callable(selector):
            return "the predicate accepts no hook name and no alias of this model; list them with model.hook_names()"
        leaf = selector.rsplit(".", 1)[-1].split("…")[-1]
        if "." not in selector and any(name.endswith(f".{leaf}") for name in self._canonical):
            name = next(name for name in self._canonical if name.endswith(f".{leaf}"))
            every = re.sub(r"^blocks\.\d+\.", "blocks.*.", name)
            return f"no hook {selector!r} by itself: give its layer ({name!r}), or {every!r} for all of them"
        for step, why in _STEP_MISSING.items():
            outputs = {STEP_OUTPUT[step].format(t) for t in "qkv"}
            if leaf in outputs or leaf.endswith((f"_pre_{step}", f"_post_{step}")):
                return f"no hook {selector!r}: this model {why}"
        if leaf == "hook_attn_in" and self._cfg.n_kv_heads != self._cfg.n_heads:
            return f"no hook {selector!r}: {NO_ATTN_IN}"
        close = difflib.get_close_matches(selector, self._canonical, n=3, cutoff=0.6)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        return f"no hook {selector!r} on this model{hint} (model.hook_names() lists all)"


def _parent(name: str) -> str:
    """The module that a hook sits on."""
    return name.rsplit(".", 1)[0]
