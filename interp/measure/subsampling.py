"""Measuring some queries instead of all: which rows to draw, and how far off the estimates may be."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooks import checks
from hooks.errors import InputError

_RANDOM_GROUPS = 16
_SEED = 0


@dataclass(frozen=True)
class Samples:
    """Rows of q to measure, in random groups when they stand for all.

    Attributes:
        rows: ascending rows of each group.
        estimate: the rows stand for all queries, so that sums are scaled up.
    """

    rows: list[Int[Tensor, " row"]]
    estimate: bool

    @property
    def n_rows(self) -> int:
        """Rows drawn."""
        return sum(rows.numel() for rows in self.rows)


def sample_rows(
    queries: int | Sequence[int] | Int[Tensor, " chosen"] | None, n_queries: int, device: torch.device
) -> Samples:
    """Turn the argument ``queries`` of attention_statistics into rows.

    A number m draws m different rows, each with probability m / n, so that sums scaled by n / m are unbiased; they are
    dealt to up to 16 random groups, whose spread tells the error.

    Raises:
        InputError: less than one query, or an index that is not a row of q.
    """
    if queries is None:
        return Samples([torch.arange(n_queries, device=device)], estimate=False)
    if not len(getattr(queries, "shape", ())) and not isinstance(queries, Sequence):
        chosen = checks.whole("queries", queries, at_least=1)
        if chosen >= n_queries:
            return sample_rows(None, n_queries, device)
        return Samples([rows.to(device) for rows in _stratified(chosen, n_queries)], estimate=True)
    rows = checks.wholes("queries", queries, at_least=0, at_most=n_queries - 1)
    if not rows:
        raise InputError("queries is empty: name at least one row of q, or give None for all of them")
    return Samples([torch.tensor(sorted(rows), device=device)], estimate=False)


def _stratified(m: int, n: int) -> list[Int[Tensor, " row"]]:
    """M different rows of n in random groups: one of each of m strata, dealt out stratum after stratum.

    The strata, as even as whole rows allow, lie at a random place of the circle of rows, so that each row is drawn with
    probability m / n although not all are of one size.
    """
    generator = torch.Generator().manual_seed(_SEED)
    groups = max(min(_RANDOM_GROUPS, m // 2), 1)
    size = n // m + (torch.arange(m) < n % m).long()
    inside = (torch.rand(m, generator=generator, dtype=torch.float64) * size).long().minimum(size - 1)
    turn = torch.randint(n, (1,), generator=generator)
    rows = (size.cumsum(0) - size + inside + turn) % n
    hands = [torch.randperm(groups, generator=generator) for _ in range(-(-m // groups))]
    group = torch.cat(hands)[:m]
    return [rows[group == number].sort().values for number in range(groups)]


@dataclass
class GroupErrors:
    """Spread of the random groups' estimates: for each variable Σ S², Σ S c and Σ c² over groups of sum S, size c.

    The estimate is the ratio ``R = ΣS / Σc``; its standard error is ``sqrt(G / (G − 1) · Σ(S − R c)²) / Σc``.

    Source: Wolter, Introduction to Variance Estimation, 2nd ed., sections 2.4 and 2.8.
    """

    groups: int = 0
    _moments: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, before: dict[str, tuple[Tensor, Tensor]], after: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Count one group by what it added to the running sums and to their sizes."""
        self.groups += 1
        for name, (total, size) in after.items():
            s, c = total - before[name][0], size - before[name][1]
            values = [s, c, s.square(), s * c, c.square()]
            held = self._moments.get(name)
            self._moments[name] = values if held is None else [a + b for a, b in zip(held, values, strict=True)]

    def stderr(self, name: str) -> Float[Tensor, "*variable"]:
        """Standard error of the ratio; NaN with fewer than two groups or where nothing was measured."""
        total, size, s2, sc, c2 = self._moments[name]
        if self.groups < 2:
            return torch.full_like(total, torch.nan)
        ratio = total / size
        spread = (s2 - 2 * ratio * sc + ratio.square() * c2).clamp_min(0)
        return (self.groups / (self.groups - 1) * spread).sqrt() / size
