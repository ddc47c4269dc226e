"""A HookedTransformerConfig for an attached model: what the probe measured, and a schedule where it proves right."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float

from hooks.attached.points import NormGain
from hooks.attached.probe import LayerFacts
from hooks.attached.schedule import Schedule, layer_type
from hooks.config.qk_norm import QKNormConfig
from hooks.config.transformer import HookedTransformerConfig


def attached_config(model: Any, layers: list[LayerFacts], schedule: Schedule) -> HookedTransformerConfig:
    """The settings of a foreign model that its captures and reports rely on.

    ``rope`` is set only where it was proven; otherwise it is None and ``provenance`` says why, since captures of such a
    model hold right q and k all the same.

    Args:
        model: the transformers model.
        layers: its layers, as the probe found them.
        schedule: what was proven of its rotation.
    """
    text = model.config.get_text_config()
    attending = [(i, facts) for i, facts in enumerate(layers) if facts.attention is not None]
    first = attending[0][1]
    windows = [facts.spec.window for _, facts in attending if facts.spec.window is not None]
    nope = tuple(i for i, facts in attending if "rope" not in facts.steps["q"])
    types = tuple(map(layer_type, layers))
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
    rope = schedule.rope
    if rope is None:
        options["provenance"]["rope"] = f"{schedule.why_not}; q and k are the model's own"
    return HookedTransformerConfig(**options, rope=rope, nope_layers=nope if rope is not None else ())


def unseen(layers: list[LayerFacts]) -> Iterator[str]:
    """What of the layers cannot be seen from outside, in sentences."""
    silent = [i for i, facts in enumerate(layers) if facts.attention is None]
    if silent:
        yield f"layers {', '.join(map(str, silent))} call no softmax attention: nothing of them can be captured"
    fused = [i for i, facts in enumerate(layers) if facts.attention is not None and not facts.visible_steps()]
    if fused:
        yield (
            f"in layers {', '.join(map(str, fused))} q and k are seen only as they enter the score: whether they pass "
            "a norm of another name before was not seen"
        )


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
        unit_offset=weight is not None and _adds_one(weight, NormGain(tap, facts.q).effective_gain()),
        bias=centred and bias is not None,
    )


def _adds_one(weight: torch.Tensor, gain: Float[torch.Tensor, "head d_head"]) -> bool:
    """Whether a measured gain is 1 + weight rather than weight."""
    own = weight.detach().to(gain).reshape(-1, gain.shape[-1])
    return bool((gain - 1 - own).abs().max() < (gain - own).abs().max())


def _largest(weight: torch.Tensor | None) -> float:
    """The largest gain, 1 where there is none."""
    return 1.0 if weight is None or not weight.numel() else max(float(weight.abs().max()), 1e-6)
