"""q and k of another width than v, brought to one."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad


def same_width(
    q: Float[Tensor, "batch query head d_qk"],
    k: Float[Tensor, "batch key kv_head d_qk"],
    v: Float[Tensor, "batch key kv_head d_v"],
) -> tuple[Tensor, Tensor, Tensor, int]:
    """q, k and v padded with zeros to one head width, which leaves scores and z as they are; and z's width."""
    width, z_width = max(q.shape[-1], v.shape[-1]), v.shape[-1]
    if q.shape[-1] != z_width:
        q, k, v = (pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
    return q, k, v, z_width
