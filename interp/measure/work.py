"""One pass over q and k as a value: what is measured, of which rows and keys, and where it is added."""

from collections.abc import Set
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hooks.config.attention_spec import AttentionSpec
from interp.measure.totals import Totals
from interp.measure.visibility import Visibility

OVERFLOW = "a score overflows: q, k or the scale is too large. Give q and k as float64."


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Everything that stays the same from block to block, whoever runs it.

    Attributes:
        q: queries, [query head d_head].
        k: keys, [key kv_head d_head].
        spec: how scores become a pattern.
        visibility: the rows to measure and the keys that each sees.
        totals: where results are added.
        groups: what to measure.
        low: distance of the first entry of the distance totals.
        map_shape: bins of the pooled map.
        value_norm: ‖v_j W_O‖ of each query head, [head kept], or None.
        dtype: float32 or float64.
        height: query rows of a block.
    """

    q: Float[Tensor, "query head d_head"]
    k: Float[Tensor, "key kv_head d_head"]
    spec: AttentionSpec
    visibility: Visibility
    totals: Totals
    groups: Set[str]
    low: int
    map_shape: tuple[int, int]
    value_norm: Float[Tensor, "head kept"] | None
    dtype: torch.dtype
    height: int
