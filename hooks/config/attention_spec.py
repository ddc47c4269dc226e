"""How queries and keys become a pattern, as one value."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class AttentionSpec:
    """How q and k become a pattern: ``softmax(mask(alibi(softcap(scale · q·k))))``.

    Query index i sees key index j when ``j ≤ i`` (causal) and ``|i − j| < window``. Masks go by index, as in
    transformers; ALiBi goes by position. Two specs are equal when their values are.

    Args:
        scale: Multiplies q·k; 1/sqrt(d_head) in most models.
        causal: Hide the keys after the query.
        window: Number of keys that a sliding-window query sees, itself included; None for all.
        softcap: Squash scores into ±softcap with ``softcap · tanh(s / softcap)``, before the mask.
        sinks: One learned logit per head that takes part in the softmax and carries no value.
        alibi_slopes: One slope per head; ``slope · |distance|`` is subtracted from the score.
    """

    scale: float
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    sinks: Float[Tensor, " head"] | None = None
    alibi_slopes: tuple[float, ...] | None = None

    def _plain(self) -> tuple[object, ...]:
        """Every field that compares as an ordinary value."""
        return (self.scale, self.causal, self.window, self.softcap, self.alibi_slopes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AttentionSpec) or self._plain() != other._plain():
            return False
        if self.sinks is None or other.sinks is None:
            return self.sinks is other.sinks
        return torch.equal(self.sinks, other.sinks)

    def __hash__(self) -> int:
        return hash(self._plain())
