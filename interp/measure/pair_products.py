"""The largest product of a frequency pair's features over the query-key pairs that a head sees."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooks.config.attention_spec import AttentionSpec
from interp.measure.visibility import Visibility

_CALL = 2**26  # query-key pairs of a compiled call: Ctrl-C is heard in between


def largest_pair_products(
    q: Float[Tensor, "query d_head"],
    k: Float[Tensor, "key d_head"],
    spec: AttentionSpec,
    see: Visibility,
    features: Int[Tensor, "pair 2"],
) -> Float[np.ndarray, " pair"]:
    """``scale · max (q_ia k_ja + q_ib k_jb)`` over visible i, j, a and b the two features of each pair, in float32.

    Args:
        q: queries of one head.
        k: the keys that it reads.
        spec: how they become a pattern; its scale is all that is used.
        see: which rows see which keys.
        features: the features of each pair.
    """
    from interp.measure.fused.pair_products import largest_product
    from interp.measure.fused.simd import LANES

    queries, keys = (q[see.row].cpu().float() * spec.scale), k[see.key].cpu().float()
    first, stop = (np.ascontiguousarray(edge.cpu().numpy()) for edge in (see.first, see.stop))
    room = torch.zeros(2, len(keys) + LANES)

    def parts() -> Iterator[slice]:
        height = max(_CALL // max(len(keys), 1), 1)
        yield from (slice(start, start + height) for start in range(0, len(first), height))

    def largest(pair: Tensor) -> float:
        padded = room.clone()
        padded[:, : len(keys)] = keys[:, pair].T
        flat, own = padded.flatten().numpy(), queries[:, pair].contiguous().numpy()
        return max(float(largest_product(own[part], flat, first[part], stop[part])) for part in parts())

    with ThreadPoolExecutor(max(torch.get_num_threads(), 1)) as pool:
        return np.asarray(list(pool.map(largest, features)))
