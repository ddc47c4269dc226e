"""The steps between projection and score: which there are, in which order, and the name of what each gives."""

from typing import Literal

from hooks.checks import choice
from hooks.config.transformer import HookedTransformerConfig

STEP_OUTPUT = {"clip": "hook_{}_clipped", "norm": "hook_{}_normed", "rope": "hook_rot_{}"}


def attention_steps(cfg: HookedTransformerConfig, layer: int, tensor: Literal["q", "k", "v"]) -> tuple[str, ...]:
    """The steps between projection and score that `layer` applies to q, k or v, in order: clip, norm, rope."""
    tensor = choice("tensor", tensor, ("q", "k", "v"))
    clips = cfg.clip_qkv is not None
    if tensor == "v":
        return ("clip",) if clips else ()
    steps = []
    if cfg.qk_norm is not None:
        steps.append("norm")
    if cfg.rope_for(layer) is not None:
        after = cfg.qk_norm is None or cfg.qk_norm.position == "before_rope"
        steps.insert(len(steps) if after else 0, "rope")
    if clips:
        place = {"projection": 0, "norm": steps.index("norm") + 1 if "norm" in steps else 0, "rope": len(steps)}
        steps.insert(place[cfg.clip_position], "clip")
    return tuple(steps)
