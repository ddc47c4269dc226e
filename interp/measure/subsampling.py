"""Measuring some queries instead of all: which rows to draw, and how far off the estimates may be."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

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
        """Rows drawn, repeats included."""
        return sum(rows.numel() for rows in self.rows)


def sample_rows(
    queries: int | Sequence[int] | Int[Tensor, " chosen"] | None, n_queries: int, device: torch.device
) -> Samples:
    """Turn the argument ``queries`` of attention_statistics into rows.

    A number m is dealt to up to 16 random groups. A group of size m_r cuts ``[0, n)`` into m_r equal strata and draws
    one point in each, so that every row is expected m_r / n times: estimates scaled by n / m are unbiased.

    Raises:
        InputError: less than one query, or an index that is not a row of q.
    """
    if queries is None:
        return Samples([torch.arange(n_queries, device=device)], estimate=False)
    if isinstance(queries, int | np.integer) and not isinstance(queries, bool):
        if queries < 1:
            raise InputError(f"queries={queries}: measure at least one query, or give None for all of them.")
        if queries >= n_queries:
            return sample_rows(None, n_queries, device)
        return Samples([rows.to(device) for rows in _stratified(int(queries), n_queries)], estimate=True)
    rows = torch.as_tensor(queries, device=device)
    if rows.ndim != 1 or not rows.numel() or rows.is_floating_point() or rows.dtype == torch.bool:
        raise InputError(f"queries must be a number or a list of rows of q, not {queries!r}.")
    if bool(((rows < 0) | (rows >= n_queries)).any()):
        raise InputError(f"queries holds rows from {int(rows.min())} to {int(rows.max())}; q has 0 to {n_queries - 1}.")
    return Samples([rows.long().unique()], estimate=False)


def _stratified(m: int, n: int) -> list[Int[Tensor, " row"]]:
    """Random groups of stratified rows, m in all."""
    generator = torch.Generator().manual_seed(_SEED)
    groups = max(min(_RANDOM_GROUPS, m // 2), 1)
    rows = []
    for group in range(groups):
        size = m // groups + (group < m % groups)
        point = torch.arange(size) + torch.rand(size, generator=generator, dtype=torch.float64)
        rows.append((point * n / size).long().clamp_max(n - 1))
    return rows


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
