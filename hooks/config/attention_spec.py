"""How queries and keys become a pattern, as one value."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
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

    def seen(
        self, query_index: Int[Tensor, "*query"], n_keys: int
    ) -> tuple[Int[Tensor, "*query"], Int[Tensor, "*query"]]:
        """The run of keys that each query sees: every mask rule is one run, and this is the one place that says which.

        ``first = i − window + 1`` (0 without a window) and ``stop = i + 1`` (causal), ``i + window`` or ``n_keys``,
        both within ``0 … n_keys``.

        Args:
            query_index: Indices of the queries in the sequence; the keys' are counted from 0.
            n_keys: How many keys there are.

        Returns:
            Index of the first key that each query sees, and one past the last; the same where it sees none.
        """
        i = query_index.long()
        first, stop = torch.zeros_like(i), torch.full_like(i, n_keys)
        if self.window is not None:
            first, stop = i - self.window + 1, i + self.window
        if self.causal:
            stop = i + 1
        return first.clamp(0, n_keys), stop.clamp(0, n_keys)

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
