"""q and k as other steps would have made them, from the stages that a capture holds; the model does not run again."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hooks import RopeConfig
from hooks.errors import StageError
from hooks.functional.float64 import to_float64
from hooks.functional.rope import rotate, same_frequencies
from hooks.modules.qk_norm import QKNorm
from hooks.modules.rotary import Rotary
from interp.tensors.capture_data import CaptureData
from interp.tensors.stages import stage_name, steps_before


@torch.no_grad()
def recompute(
    cap: CaptureData,
    layer: int,
    tensor: Literal["q", "k"],
    steps: Sequence[str],
    rope: RopeConfig | None,
    *,
    zero_pairs: Sequence[int] = (),
    shift: int = 0,
    rows: Int[Tensor, " row"] | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "row head d_head"]:
    """Q or k of one layer as it would enter the score after other steps, with the same input and weights.

    Steps that come out as they ran are not done again: work starts from the last captured stage before the first that
    does not.

    Args:
        cap: the capture.
        layer: one of its layers.
        tensor: which of the two.
        steps: clip, norm and rope in the order to do them in; norm and clip are the layer's own.
        rope: the complete schedule of the step rope; None where there is no such step.
        zero_pairs: frequency pairs whose features become 0, so that they add nothing to any score.
        shift: added to every position; the frequencies stay those of the captured length.
        rows: which positions; None is all.
        dtype: compute in this type, angles included; None is the tensor's own type, as the model computes.

    Raises:
        StageError: the capture holds no stage to start from, or does not know the weights of a step; the message says
            what to capture.
    """
    as_run = rope == cap.cfg.rope_for(layer) and not len(zero_pairs) and shift == 0 and dtype is None
    ran = cap.steps(layer)
    kept = [step == done and (step != "rope" or as_run) for step, done in zip(steps, ran, strict=False)]
    stage = _last_held(cap, layer, kept.index(False) if False in kept else len(kept))
    x = cap.q(layer, stage) if tensor == "q" else cap.k(layer, stage)
    positions = cap.positions.to(x.device)
    if rows is not None:
        x, positions = x[rows.to(x.device)], positions[rows.to(x.device)]
    if dtype is not None:
        x = to_float64(x) if dtype == torch.float64 else x.to(dtype)
        positions = positions.to(x.device)
    for step in steps[steps_before(stage, ran) or 0 :]:
        if step == "clip":
            x = _clipped(cap, layer, x)
        elif step == "norm":
            x = _normed(cap, layer, tensor, x)
        else:
            assert rope is not None
            exact = replace(rope, precision="float64") if dtype == torch.float64 else rope
            x = _rotated(cap, layer, x, exact, positions + shift, zero_pairs)
    return x


@torch.no_grad()
def rotated_keys(
    cap: CaptureData, layer: int, x: Float[Tensor, "pos kv_head d_head"]
) -> Float[Tensor, "pos kv_head d_head"]:
    """Keys as they stand before the rotation of a layer that rotates last, rotated in float64.

    Raises:
        StageError: the layer does not rotate, or does something after it.
    """
    rope = cap.cfg.rope_for(layer)
    if rope is None or cap.steps(layer)[-1:] != ("rope",):
        steps = ", ".join(cap.steps(layer)) or "none"
        raise StageError(f"layer {layer} does not rotate keys as the last of its steps ({steps})")
    exact = replace(rope, precision="float64")
    return _rotated(cap, layer, to_float64(x), exact, cap.positions.to(x.device), ())


def silenced(table: Float[Tensor, "*pos pair"], pairs: Sequence[int]) -> Float[Tensor, "*pos pair"]:
    """A cos or sin table with 0 for some of its pairs, so that rotation makes their features 0."""
    kept = torch.ones(table.shape[-1], dtype=table.dtype, device=table.device)
    kept[[pair for pair in pairs if pair < len(kept)]] = 0
    return table * kept


def _last_held(cap: CaptureData, layer: int, most: int) -> str:
    """The last stage that the capture holds with at most `most` steps behind it."""
    ran = cap.steps(layer)
    held = {steps_before(stage, ran) or 0: stage for stage in cap.stages(layer)}
    done = max((done for done in held if done <= most), default=None)
    if done is None:
        wanted = stage_name(most, ran)
        raise StageError(
            f"layer {layer} was captured without the stage {wanted!r}, from which other steps could start: capture "
            f"with stages=({wanted!r},); it holds {', '.join(cap.stages(layer))}"
        )
    return held[done]


def _clipped(cap: CaptureData, layer: int, x: Tensor) -> Tensor:
    """Clip as the model does."""
    limit = cap.cfg.clip_qkv
    if limit is None:
        raise StageError(f"layer {layer} clips q and k, and this capture does not know at what value")
    return x.clamp(-limit, limit)


def _normed(cap: CaptureData, layer: int, tensor: str, x: Tensor) -> Tensor:
    """The layer's QK-norm, rebuilt from its effective gain and bias, [head d_head] each."""
    constants, config = cap.constants(layer), cap.cfg.qk_norm
    gain, bias = (constants.gain_q, constants.bias_q) if tensor == "q" else (constants.gain_k, constants.bias_k)
    if config is None or gain is None:
        raise StageError(
            f"layer {layer} normalises q and k, and the norm's weights are not in this capture, which was made from a "
            "cache: capture(model, text) keeps them"
        )
    scope: Any = "full" if config.scope == "full" else "per_head"
    config = replace(config, scope=scope, affine=True, bias=bias is not None, unit_offset=False)
    n_heads, d_head = gain.shape
    norm = QKNorm(config, n_heads, d_head)
    wide = torch.promote_types(x.dtype, torch.float32) if config.scale_before_cast else x.dtype
    for name, value in (("weight", gain), ("bias", bias)):
        if value is not None:
            # The fixed scale is a step of its own: in bfloat16 it rounds once more.
            own = to_float64(value).reshape(getattr(norm, name).shape) / config.scale
            setattr(norm, name, nn.Parameter(own.to(wide).to(x.device)))
    return norm(x[None])[0]


def _rotated(
    cap: CaptureData,
    layer: int,
    x: Tensor,
    rope: RopeConfig,
    positions: Int[Tensor, " row"],
    zero_pairs: Sequence[int],
) -> Tensor:
    """Rotate in the model's arithmetic, by the frequencies that it learned where they fit the schedule."""
    cfg = cap.cfg
    rotary, own, learned = Rotary(rope, cfg.d_head), cfg.rope_for(layer), cap.constants(layer).inv_freq
    fits = own is not None and own.learnable and same_frequencies(own, rope, cfg.d_head)
    if rotary.inv_freq is not None and learned is not None and fits:
        rotary.inv_freq = nn.Parameter(learned.float())
    exact = cfg.rope_in_float32 and not cfg.round_cos_sin
    kind = torch.promote_types(x.dtype, torch.float32) if exact else x.dtype
    cos, sin = rotary(positions[None], length=int(cap.positions.max()) + 1, dtype=kind)
    cos, sin = silenced(cos, zero_pairs), silenced(sin, zero_pairs)
    narrow = cfg.rope_in_float32 and x.dtype != torch.float64  # who asks for float64 asks without the model's rounding
    return rotate(x[None], cos, sin, interleaved=bool(rope.interleaved), in_float32=narrow)[0]
