"""Hook names of an attached model: the registry's own, as far as its modules let them be reached."""

import re

from hooks.attached.probe import LayerFacts
from hooks.base.registry import HookInfo, HookRegistry, NameSelector, attending_infos, step_infos
from hooks.config.steps import STEP_OUTPUT
from hooks.config.transformer import HookedTransformerConfig
from hooks.errors import HookNameError

_STREAM = "batch pos d_model"
_STREAMS = {
    "hook_resid_pre": "residual stream before the block",
    "hook_attn_out": "what attention adds to the residual stream",
    "hook_mlp_out": "what the MLP adds to the residual stream",
    "hook_resid_post": "residual stream after the block",
}


class AttachedRegistry(HookRegistry):
    """Resolves names on an attached model; a name that is right but out of reach raises what can be had instead.

    Args:
        cfg: the model's settings.
        layers: what the probe found.
    """

    def __init__(self, cfg: HookedTransformerConfig, layers: list[LayerFacts]):
        self._layers = layers
        table = [HookInfo("hook_embed", _STREAM, "what enters the first block")]
        for i, facts in enumerate(layers):
            table += _layer_infos(i, facts)
        super().__init__(cfg, table)

    def steps(self, layer: int, tensor: str) -> tuple[str, ...]:
        """The steps of a tensor between points that both q and k have.

        Raises:
            HookNameError: the layer has no attention that could be hooked.
        """
        facts = self._layers[layer]
        if facts.attention is None:
            raise HookNameError(self._without_attention(layer))
        steps = facts.steps[tensor]
        return () if tensor == "v" else steps[len(steps) - facts.visible_steps() :]

    def _no_match(self, selector: NameSelector) -> str:
        """Why a selector found nothing, and what would."""
        if callable(selector):
            return super()._no_match(selector)
        leaf = selector.rsplit(".", 1)[-1].split("…")[-1]
        number = re.match(r"blocks\.(\d+)[.…]", selector)
        layer = int(number[1]) if number else 0
        if layer < len(self._layers):
            why = self._why(layer, selector, leaf)
            if why is not None:
                return f"no hook {selector!r}: {why}"
        return super()._no_match(selector)

    def _without_attention(self, layer: int) -> str:
        """What a layer without softmax attention offers."""
        kind = type(self._layers[layer].layer).__name__
        having = [i for i, facts in enumerate(self._layers) if facts.attention is not None]
        return (
            f"layer {layer} ({kind}) calls no softmax attention; layers {', '.join(map(str, having))} do, and "
            "hook_resid_pre and hook_resid_post of this one can be hooked"
        )

    def _why(self, layer: int, selector: str, leaf: str) -> str | None:
        """Why this name is out of reach here, None for a name that means nothing."""
        facts = self._layers[layer]
        in_attention = re.match(r"hook_(rot_)?([qkv])(?![a-z])", leaf) or leaf in {
            info.name for info in attending_infos("")
        }
        if facts.attention is None:
            return self._without_attention(layer) if in_attention or ".attn." in selector else None
        if leaf in ("hook_q_input", "hook_k_input", "hook_v_input", "hook_attn_in", "hook_mlp_in"):
            return (
                "the model's own code reads the stream, all heads and both branches the same tensor; "
                "hook_resid_pre holds it before the block"
            )
        stage = re.match(r"hook_(?:rot_)?([qkv])(?![a-z])", leaf)
        if stage:
            return _stage_reason(facts, leaf, stage[1], layer)
        if leaf in ("hook_result", "hook_out"):
            return (
                "the output projection is quantised or no plain matrix; hook hook_z before it or hook_attn_out after it"
            )
        if leaf in ("hook_attn_out", "hook_mlp_out"):
            return (
                "no module's output is what this layer adds to the stream; hook_resid_pre and hook_resid_post frame it"
            )
        if leaf == "hook_resid_mid":
            return "the sum between attention and MLP is inside the layer's code; hook_resid_pre + hook_attn_out is it"
        if ".mlp." in f".{selector}" or leaf in ("hook_pre", "hook_post", "hook_pre_linear"):
            return (
                "an attached model's MLP or experts run inside its own code (experts may share one tensor); "
                "hook_mlp_out holds what they add to the stream"
            )
        if leaf in ("hook_scale", "hook_normalized", "hook_cos", "hook_sin"):
            return (
                "norms and rotations of an attached model are its own modules; hook the tensors on both sides, "
                "or load a family that has a row with HookedTransformer.from_pretrained"
            )
        return None


def _stage_reason(facts: LayerFacts, leaf: str, tensor: str, layer: int) -> str:
    """Why a stage of q or k is out of reach."""
    kind = type(facts.attention).__name__
    there = ", ".join(facts.reachable(tensor))
    for step, what in (("norm", "QK-norm"), ("rope", "rotation")):
        output = STEP_OUTPUT[step].format(tensor)
        if (leaf == output or leaf.endswith((f"_pre_{step}", f"_post_{step}"))) and step not in facts.steps[tensor]:
            return f"layer {layer} ({kind}) has no {what}; it has {there}"
    if "clip" in leaf or "clip" in facts.steps[tensor]:
        return f"clipping, where {kind} has any, happens inside its code; it has {there}"
    return (
        f"{kind} makes {tensor} from a fused or compressed projection, so this stage has no module of its own; "
        f"it has {there}, and {facts.final(tensor)} is what enters the score"
    )


def _layer_infos(layer: int, facts: LayerFacts) -> list[HookInfo]:
    """The points of one layer, in the order of a pass."""
    b = f"blocks.{layer}."
    with_stream = bool(facts.calls) and facts.calls[0].given.ndim == 3
    streams = ["hook_resid_pre", *facts.streams, "hook_resid_post"] if with_stream else []
    infos = {name: HookInfo(b + name, _STREAM, _STREAMS[name]) for name in streams}
    before = [infos.pop("hook_resid_pre")] if with_stream else []
    return before + (_attention_infos(b + "attn.", facts) if facts.attention is not None else []) + list(infos.values())


def _attention_infos(prefix: str, facts: LayerFacts) -> list[HookInfo]:
    """The points of one attention module."""
    infos = []
    for tensor in ("q", "k", "v"):
        reachable = [prefix + name for name in facts.reachable(tensor)]
        infos += [info for info in step_infos({tensor: facts.steps[tensor]}, prefix) if info.name in reachable]
    weights = {"hook_result", "hook_out"} - set(facts.output_points)
    return infos + [info for info in attending_infos(prefix) if info.name.removeprefix(prefix) not in weights]
