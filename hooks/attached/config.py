"""A HookedTransformerConfig for an attached model: what the probe measured, and a schedule where it proves right."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from hooks.attached.probe import LayerFacts
from hooks.config.qk_norm import QKNormConfig
from hooks.config.rope import RopeConfig
from hooks.config.steps import STEP_OUTPUT
from hooks.config.transformer import HookedTransformerConfig, LayerRopes
from hooks.errors import ConfigError
from hooks.functional.rope import rotate
from hooks.modules.rotary import Rotary


def attached_config(model: Any, layers: list[LayerFacts]) -> HookedTransformerConfig:
    """The settings of a foreign model that its captures and reports rely on.

    ``rope`` is set only when rotating the probe's own tensors with it gives what entered the score; otherwise it is
    None and ``provenance`` says so, since captures of such a model hold right q and k all the same.

    Args:
        model: the transformers model.
        layers: its layers, as the probe found them.
    """
    text = model.config.get_text_config()
    attending = [(i, facts) for i, facts in enumerate(layers) if facts.attention is not None]
    first = attending[0][1]
    windows = [facts.spec.window for _, facts in attending if facts.spec.window is not None]
    nope = tuple(i for i, facts in attending if "rope" not in facts.steps["q"])
    types = tuple("sliding_attention" if f.spec.window is not None else "full_attention" for f in layers)
    options = {
        "d_model": text.hidden_size,
        "d_head": first.q.shape[3],
        "n_layers": len(layers),
        "n_ctx": getattr(text, "max_position_embeddings", None) or 2048,
        "n_heads": first.q.shape[2],
        "n_key_value_heads": first.k.shape[2],
        "d_vocab": text.vocab_size,
        "d_mlp": _mlp_width(text),
        "eps": float(getattr(text, "rms_norm_eps", None) or 1e-5),
        "normalization_type": "RMS",
        "act_fn": "silu",
        "model_name": model.config.name_or_path or type(model).__name__,
        "layer_types": types,
        "window_size": max(windows, default=None),
        "attn_scale": 1 / first.spec.scale,
        "attn_scores_soft_cap": first.spec.softcap or -1.0,
        "learned_sinks": first.spec.sinks is not None,
        "qk_norm": _qk_norm(first, text),
        "dtype": model.dtype,
        "device": str(model.device),
        "provenance": {"attached to": f"transformers {type(model).__name__}"},
    }
    rope = _proven_rope(text, layers, types)
    if rope is None:
        options["provenance"]["rope"] = "not expressible as a RopeConfig; q and k are the model's own"
    return HookedTransformerConfig(**options, rope=rope, nope_layers=nope if rope is not None else ())


def _mlp_width(text: Any) -> int | None:
    """The MLPs' width, the widest where layers differ (Gemma 3n lists one per layer)."""
    width = getattr(text, "intermediate_size", None)
    return max(width) if isinstance(width, list | tuple) else width


def _qk_norm(facts: LayerFacts, text: Any) -> QKNormConfig | None:
    """The kind and scope of the QK-norm, by what its module does to a constant vector and by its gain's shape."""
    tap = facts.norms.get("q")
    if tap is None:
        return None
    own = dict(tap.module.named_parameters())
    weight, bias = next((p for n, p in own.items() if n.endswith("weight")), None), own.get("bias")
    with torch.no_grad():
        shape = facts.q[:1, :1].transpose(1, 2) if tap.layout == "head pos" else facts.q[:1, :1]
        flat = tap.layout == "flat"
        answer = tap.module(torch.full_like(shape.flatten(-2) if flat else shape, 100.0))
        centred = bool((answer - (bias if bias is not None else 0)).abs().max() < 0.1 * _largest(weight))
    eps = next((float(v) for n, v in vars(tap.module).items() if n.endswith(("eps", "epsilon"))), 1e-6)
    steps = facts.steps["q"]
    return QKNormConfig(
        kind="layer" if centred else "rms",
        scope="full" if flat else "per_head" if len(own) > 2 or (weight is not None and weight.ndim > 1) else "head",
        position="after_rope" if steps.index("norm") > 0 else "before_rope",
        eps=eps,
        affine=weight is not None,
        bias=centred and bias is not None,
    )


def _largest(weight: torch.Tensor | None) -> float:
    """The largest gain, 1 where there is none."""
    return 1.0 if weight is None or not weight.numel() else max(float(weight.abs().max()), 1e-6)


def _proven_rope(text: Any, layers: list[LayerFacts], types: tuple[str, ...]) -> RopeConfig | LayerRopes | None:
    """The config's schedule in the pairing of features that reproduces every rotation of the probe, if one does."""
    try:
        read = RopeConfig.from_hf(text.to_dict())
    except (ConfigError, KeyError, TypeError):
        return None
    for interleaved in (False, True):
        by_type = dict(read) if isinstance(read, Mapping) else dict.fromkeys(set(types), read)
        if interleaved:
            by_type = {t: rope and dataclasses.replace(rope, interleaved=True) for t, rope in by_type.items()}
        if all(_rotates_by(by_type.get(t), facts) for t, facts in zip(types, layers, strict=True)):
            if isinstance(read, Mapping):
                return LayerRopes({t: rope for t, rope in by_type.items() if t in types})
            return by_type[types[0]]
    return None


def _rotates_by(rope: RopeConfig | None, facts: LayerFacts) -> bool:
    """Whether a schedule turns the probe's q and k before rotation into those after it."""
    for tensor in ("q", "k"):
        steps = facts.steps.get(tensor, ())
        if "rope" not in steps:
            continue
        points = [f"hook_{tensor}", *(STEP_OUTPUT[step].format(tensor) for step in steps)]
        at = steps.index("rope")
        before, after = facts.seen.get(points[at]), facts.seen.get(points[at + 1])
        if rope is None or before is None or after is None:
            return False
        try:
            rotary = Rotary(rope, before.shape[-1])
            positions = torch.arange(before.shape[1], device=before.device)[None]
            turned = rotate(before, *rotary(positions, dtype=before.dtype), interleaved=bool(rope.interleaved))
        except ConfigError:
            return False
        if not torch.allclose(turned, after, rtol=0.02, atol=0.02 * float(after.abs().max())):
            return False
    return True
