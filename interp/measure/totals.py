"""What a pass adds up: sums in float64, moments merged in centred form, extremes and counts."""

from collections.abc import Set
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.measure.score_bins import N_BINS

_ROWS = ("lse", "max_score", "min_score", "entropy", "varentropy", "mean_distance", "local_mass", "max_prob")


@dataclass
class Totals:
    """Accumulators of one attention_statistics call, keyed by the name of the variable that they become.

    Attributes:
        rows: per-query results, [head row …], filled as rows are done.
        keys: received and received_max, [head kept].
        distances: count [distance]; attention, score_mean, … [head distance].
        map: map_sum and map_max [head map_query map_key]; map_count [map_query map_key].
        scores: score_count [head score_bin].
    """

    rows: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, Tensor] = field(default_factory=dict)
    distances: dict[str, Tensor] = field(default_factory=dict)
    map: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def empty(
        cls,
        groups: Set[str],
        *,
        heads: int,
        rows: int,
        sinks: int,
        kept: int,
        distances: int,
        map_shape: tuple[int, int],
        values: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> "Totals":
        """Accumulators for the groups, before anything was seen."""

        def full(*shape: int, value: float = 0.0, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.full(shape, value, dtype=dtype, device=device)

        totals = cls()
        if "rows" in groups:
            totals.rows = {name: full(heads, rows, value=torch.nan, dtype=dtype) for name in _ROWS}
            totals.rows["argmax_key"] = full(heads, rows, value=-1, dtype=torch.int64)
            totals.rows["sink_mass"] = full(heads, rows, sinks, value=torch.nan, dtype=dtype)
        if "keys" in groups:
            totals.keys = {name: full(heads, kept) for name in ("received", "received_max")}
        if "distances" in groups:
            names = ("attention", "score_mean", "score_m2", *(("attention_value",) if values else ()))
            totals.distances = {name: full(heads, distances) for name in names}
            totals.distances["count"] = full(distances, value=0, dtype=torch.int64)
            totals.distances["score_min"] = full(heads, distances, value=torch.inf)
            totals.distances["score_max"] = full(heads, distances, value=-torch.inf)
            totals.distances["scored"] = full(heads, distances)
        if "map" in groups:
            totals.map = {name: full(heads, *map_shape) for name in ("map_sum", "map_max")}
            totals.map["map_count"] = full(*map_shape, value=0, dtype=torch.int64)
        if "scores" in groups:
            totals.scores = {"score_count": full(heads, N_BINS, value=0, dtype=torch.int64)}
        return totals

    def of_keys(self, kept: slice) -> "Totals":
        """The same accumulators, of the keys only these: what is added to one is added to both."""
        return replace(self, keys={name: x[:, kept] for name, x in self.keys.items()})

    def merge_scores(
        self,
        heads: slice,
        at: slice,
        count: Float[Tensor, " distance"],
        mean: Float[Tensor, "head distance"],
        m2: Float[Tensor, "head distance"],
        smallest: Float[Tensor, "head distance"],
        largest: Float[Tensor, "head distance"],
    ) -> None:
        """Merge moments and extremes of one block, at the distances `at`, into the totals.

        ``δ = mean_b − mean_a``; ``mean = mean_a + δ n_b/n``; ``M2 = M2_a + M2_b + δ² n_a n_b / n``.

        Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm", 1979, eq. 2.1.
        """
        d = self.distances
        before = d["scored"][heads, at]
        n = before + count
        share = torch.where(n > 0, count / n.clamp_min(1), 0.0)
        delta = mean - d["score_mean"][heads, at]
        d["score_m2"][heads, at] += m2 + delta.square() * before * share
        d["score_mean"][heads, at] += delta * share
        d["scored"][heads, at] = n
        d["score_min"][heads, at] = torch.minimum(d["score_min"][heads, at], smallest.double())
        d["score_max"][heads, at] = torch.maximum(d["score_max"][heads, at], largest.double())

    def sums(self, rows: int) -> dict[str, tuple[Tensor, Tensor]]:
        """What subsampling estimates: name → (sum so far, how many it sums: `rows` queries, pairs or cells)."""
        out: dict[str, tuple[Tensor, Tensor]] = {}
        queries = torch.tensor(float(rows))
        if self.keys:
            out["received"] = (self.keys["received"].clone(), queries)
        if self.distances:
            d = self.distances
            out["score_mean"] = (d["score_mean"] * d["scored"], d["scored"].clone())
            for name in ("attention", "attention_value"):
                if name in d:
                    out[name] = (d[name].clone(), queries)
        if self.map:
            out["map_mean"] = (self.map["map_sum"].clone(), self.map["map_count"].double())
        return out


def bin_of(index: Int[Tensor, " n"], n: int, bins: int) -> Int[Tensor, " n"]:
    """Which of `bins` even bins each index of range(n) falls into."""
    return index * bins // max(n, 1)
