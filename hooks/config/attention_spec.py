"""How queries and keys become a pattern, as one value."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooks import checks
from hooks.errors import ConfigError


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

    Raises:
        ConfigError: A value of another kind, or one under which there is no pattern (a window without keys, a scale or
            soft-cap that is not above 0).
    """

    scale: float
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    sinks: Float[Tensor, " head"] | None = None
    alibi_slopes: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", checks.number("scale", self.scale, above=0, error=ConfigError))
        object.__setattr__(self, "causal", checks.flag("causal", self.causal, error=ConfigError))
        if self.window is not None:
            object.__setattr__(
                self, "window", checks.whole("window", self.window, at_least=1, at_most=2**53, error=ConfigError)
            )
        if self.softcap is not None:
            object.__setattr__(self, "softcap", checks.number("softcap", self.softcap, above=0, error=ConfigError))
        # Their values are looked at where they are measured: here it would wait for the device in every forward pass.
        logits = isinstance(self.sinks, Tensor) and self.sinks.ndim == 1 and self.sinks.is_floating_point()
        if self.sinks is not None and not logits:
            raise ConfigError(f"sinks={checks.shown(self.sinks)}: give a tensor of one logit per head")
        if self.alibi_slopes is not None:
            if not isinstance(self.alibi_slopes, Sequence) or isinstance(self.alibi_slopes, str):
                raise ConfigError(f"alibi_slopes={checks.shown(self.alibi_slopes)}: give one number per head")
            slopes = tuple(checks.number("alibi_slopes", slope, error=ConfigError) for slope in self.alibi_slopes)
            object.__setattr__(self, "alibi_slopes", slopes)

    def seen(
        self, query_index: Int[Tensor, "*query"], n_keys: int, documents: Int[Tensor, "*batch document"] | None = None
    ) -> tuple[Int[Tensor, "*rows"], Int[Tensor, "*rows"]]:
        """The run of keys that each query sees: every mask rule is one run, and this is the one place that says which.

        ``first = i − window + 1`` (0 without a window) and ``stop = i + 1`` (causal), ``i + window`` or ``n_keys``,
        both within ``0 … n_keys``, and within the query's document where several are packed into one row.

        Args:
            query_index: Indices of the queries in the sequence; the keys' are counted from 0.
            n_keys: How many keys there are.
            documents: Indices at which documents begin, ascending from 0; rows of a batch that have fewer than others
                are filled up with indices past the last key. None is one document.

        Returns:
            Index of the first key that each query sees, and one past the last; the same where it sees none. With a
            leading batch axis where ``documents`` has one.
        """
        i = query_index.long()
        first, stop = torch.zeros_like(i), torch.full_like(i, n_keys)
        if self.window is not None:
            first, stop = i - self.window + 1, i + self.window
        if self.causal:
            stop = i + 1
        first, stop = first.clamp(0, n_keys), stop.clamp(0, n_keys)
        if documents is None:
            return first, stop
        begin, end = _document_of(i, n_keys, documents)
        return torch.maximum(first, begin), torch.minimum(stop, end)

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


def _document_of(
    index: Int[Tensor, "*query"], n_keys: int, documents: Int[Tensor, "*batch document"]
) -> tuple[Int[Tensor, "*rows"], Int[Tensor, "*rows"]]:
    """Where the document of each index begins and ends, with a leading batch axis where ``documents`` has one."""
    starts = documents.to(index.device).contiguous()
    shape = (*starts.shape[:-1], *index.shape)
    place = torch.searchsorted(starts, index.flatten().expand(*starts.shape[:-1], -1).contiguous(), right=True)
    edges = torch.cat((starts, torch.full_like(starts[..., :1], n_keys)), -1).clamp_max(n_keys)
    return edges.gather(-1, place - 1).view(shape), edges.gather(-1, place).view(shape)
