"""From q·k to the score that enters softmax, mask aside: scale, soft-cap, ALiBi, in this order."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooks.config.attention_spec import AttentionSpec


def finish_scores(
    products: Float[Tensor, "*batch head query key"],
    spec: AttentionSpec,
    query_positions: Int[Tensor, "*batch query"],
    key_positions: Int[Tensor, "*batch key"],
) -> Float[Tensor, "*batch head query key"]:
    """Scores of visible pairs, ``softcap · tanh(scale · q·k / softcap) − slope · |distance|``.

    Args:
        products: q·k, overwritten (where a gradient needs them, a copy is made instead).
        spec: How they become scores, with one ALiBi slope for each head of ``products``.
        query_positions: Positions of the queries in tokens; only ALiBi reads them.
        key_positions: Positions of the keys in tokens.

    Returns:
        The scores, in the type of ``products``; without gradients the same tensor.

    Source:
        Soft-cap: arXiv 2408.00118 §2. ALiBi: arXiv 2108.12409.
    """
    scores = products if spec.scale == 1 else products.mul_(spec.scale)
    if spec.softcap is not None:
        scores = scores.div_(spec.softcap).tanh_()
        # The gradient of tanh is taken from its result.
        scores = scores * spec.softcap if scores.requires_grad else scores.mul_(spec.softcap)
    if spec.alibi_slopes is not None:
        dtype = torch.promote_types(scores.dtype, torch.float32)
        distance = (query_positions[..., :, None] - key_positions[..., None, :]).abs().to(dtype)
        # Filled in place, not copied: the host would wait for a copy to a device.
        slopes = torch.stack([torch.full((), slope, dtype=dtype, device=scores.device) for slope in spec.alibi_slopes])
        scores.addcmul_(slopes[:, None, None], distance.unsqueeze(-3), value=-1)
    return scores
