"""torch's fused attention kernel in our axes, kept on its paths of O(n) memory."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def fused_kernel(
    q: Float[Tensor, "batch query head d_head"],
    k: Float[Tensor, "batch key kv_head d_head"],
    v: Float[Tensor, "batch key kv_head d_head"],
    scale: float,
    *,
    mask: Float[Tensor, "*batch query key"] | None = None,
    causal: bool = False,
) -> Float[Tensor, "batch query head d_head"]:
    """``softmax(scale · q·k + mask) · v`` in our axes; enable_gqa reads k as it is where a kernel can.

    Args:
        q: Queries.
        k: Keys, one per kv head.
        v: Values, one per kv head.
        scale: Multiplies q·k.
        mask: Added to the scores, broadcast over heads; not together with ``causal``.
        causal: Query i sees key j ≤ i.

    Returns:
        Per-head output z.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    if grouped and q.device.type == "cuda" and not _flash_takes(q, mask):
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        grouped = False
    z = scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=grouped)
    return z.transpose(1, 2)


def _flash_takes(q: Tensor, mask: Tensor | None) -> bool:
    """Whether CUDA's flash kernel can run; the other one of O(n) memory wants k and v expanded to the heads of q.

    With heads grouped and no flash, torch would build the n × n matrix.
    Source: ``can_use_flash_attention`` and ``can_use_mem_efficient_attention`` of torch 2.13, ``cuda/sdp_utils.cpp``.
    """
    return mask is None and q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] <= 256
