"""The gradients that a capture holds: of one metric, to z, q, k and v of each layer."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Gradients:
    """∂m/∂x for what a capture holds.

    Attributes:
        metric: what the metric m is called.
        value: m on the captured text.
        layers: for each layer its gradients by name: z, q.pre_norm, …, k.final, v.
    """

    metric: str
    value: float
    layers: Mapping[int, Mapping[str, Float[Tensor, "pos head d_head"]]]
