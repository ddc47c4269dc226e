"""Whether position enters a layer's scores by the distance alone, from the order of its steps and its gains."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from hooks import HookedTransformerConfig, QKNormConfig
from interp.analyses.weights.rotation_blocks import RotationBlocks
from interp.tensors.constants import LayerConstants

# Gains of a pair that differ by less are alike: float32 holds no more.
_ALIKE = 1e-6
YES, NO, NONE, UNKNOWN = "yes", "no", "no position", "unknown"


def relative(
    cfg: HookedTransformerConfig,
    layer: int,
    steps: Sequence[str],
    blocks: RotationBlocks | None,
    constants: LayerConstants,
    *,
    foreign: bool,
) -> tuple[str, str]:
    """Whether a layer's score depends on positions by their difference alone, and why.

    Args:
        cfg: settings of norm, rotation and clip.
        layer: which layer.
        steps: the steps behind q and k, in order.
        blocks: its pairs; None where its rotation is not known.
        constants: its gains.
        foreign: whether it is of an attached model, whose positions may enter where nothing is seen.
    """
    if "rope" not in steps:
        if cfg.alibi_slopes is not None:
            return YES, "ALiBi lowers every score in proportion to the distance"
        if foreign:
            return UNKNOWN, cfg.provenance.get("rope", "") or "no rotation was seen, and positions may enter elsewhere"
        return NONE, "nothing turns: position enters by the mask alone"
    if cfg.rope_for(layer) is None or blocks is None:
        return UNKNOWN, cfg.provenance.get("rope", "") or "how this model rotates q and k is not known"
    after = steps[steps.index("rope") + 1 :]
    if not after:
        return YES, "the rotation is the last step"
    if "clip" in after:
        return NO, "q and k are clipped feature by feature after they were turned"
    return _after_rotation(cfg.qk_norm, blocks, constants)


def _after_rotation(norm: QKNormConfig | None, blocks: RotationBlocks, constants: LayerConstants) -> tuple[str, str]:
    """A norm behind the rotation: its divisor does not see the angle, its mean and gains may."""
    if norm is None or constants.gain_q is None or constants.gain_k is None:
        return UNKNOWN, "the gains of the norm behind the rotation are not known"
    if norm.kind == "layer":
        return NO, "the LayerNorm behind the rotation takes away a mean that turns with the position"
    uneven = asymmetry(blocks, constants)
    if float(uneven.max(initial=0.0)) > _ALIKE:
        return NO, f"behind the rotation, gains of a pair differ by up to {float(uneven.max()):.1%} of the largest"
    return YES, "the norm comes after the rotation, and each pair has one gain"


def asymmetry(blocks: RotationBlocks, constants: LayerConstants) -> Float[np.ndarray, " head"]:
    """The largest ``|γ_q1 γ_k1 − γ_q2 γ_k2|`` of a pair, as a share of the largest |γ_q γ_k|, for each query head."""
    assert constants.gain_q is not None and constants.gain_k is not None
    q, k = constants.gain_q.detach().cpu().double(), constants.gain_k.detach().cpu().double()
    product = q * k.repeat_interleave(len(q) // len(k), 0)
    turns = blocks.frequency != 0
    apart = (product[:, blocks.first[turns]] - product[:, blocks.second[turns]]).abs().amax(1)
    return (apart / product.abs().amax(1).clamp_min(1e-300)).numpy()
