"""How much each head attends to earlier copies of the current token, and to the tokens that followed them.

Tokens that occur equally often are handled together: all their queries against all their keys in one product. That
costs Σ m² cells over the tokens that occur m times, not n²; where even that is much, queries of the most frequent
tokens are subsampled.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooks.config.attention_spec import AttentionSpec
from hooks.functional.scores import finish_scores

# Query-key pairs of one head that are worth computing: every pair of a natural text of 32k tokens, about.
_PAIR_BUDGET = 2**24
_CHUNK = 2**22
_SEED = 0


@dataclass(frozen=True)
class _Group:
    """The tokens that occur equally often.

    Attributes:
        places: every occurrence of each token, ascending, [token occurrence].
        ranks: which occurrences are measured as queries, never the first, [token query].
        weight: how many queries each measured one stands for.
    """

    places: Int[Tensor, "token occurrence"]
    ranks: Int[Tensor, "token query"]
    weight: float


@dataclass(frozen=True)
class Copies:
    """Where the tokens of a text have earlier copies.

    Attributes:
        groups: tokens by how often they occur, those that occur once left out.
        n_queries: queries with an earlier copy.
        n_measured: those of them that are measured.
    """

    groups: list[_Group]
    n_queries: int
    n_measured: int

    @classmethod
    def of(cls, tokens: Int[Tensor, " pos"], pair_budget: int = _PAIR_BUDGET) -> "Copies":
        """Find them; where pairs exceed the budget, the same number of queries is drawn from each frequent token."""
        order = np.argsort(tokens.numpy(), kind="stable")
        _, starts, sizes = np.unique(tokens.numpy()[order], return_index=True, return_counts=True)
        limit = _largest_sample(sizes, pair_budget)
        generator = torch.Generator().manual_seed(_SEED)
        groups = []
        for size in np.unique(sizes[sizes > 1]):
            places = torch.from_numpy(order[starts[sizes == size, None] + np.arange(size)])
            queries = min(int(size) - 1, limit)
            ranks = torch.arange(1, size).expand(len(places), -1)
            if queries < size - 1:
                drawn = torch.rand(len(places), int(size) - 1, generator=generator).argsort(1)[:, :queries]
                ranks = drawn.sort(1).values + 1
            groups.append(_Group(places, ranks, (int(size) - 1) / queries))
        measured = sum(group.ranks.numel() for group in groups)
        return cls(groups, int((sizes - 1).sum()), measured)

    @property
    def extent(self) -> str:
        """How many queries the scores rest on, in words."""
        if self.n_measured == self.n_queries:
            return f"all {self.n_queries:,} queries with an earlier copy"
        return (
            f"{self.n_measured:,} of {self.n_queries:,} queries with an earlier copy: those of frequent tokens "
            f"subsampled with seed {_SEED} and weighted accordingly"
        )


def attention_to_copies(
    q: Float[Tensor, "pos head d_head"],
    k: Float[Tensor, "pos kv_head d_head"],
    spec: AttentionSpec,
    lse: Float[Tensor, "head pos"],
    positions: Int[Tensor, " pos"],
    copies: Copies,
    documents: Int[Tensor, " document"] | None = None,
) -> tuple[Float[np.ndarray, " head"], Float[np.ndarray, " head"]]:
    """Mean attention to earlier copies of the current token, and to the tokens right after them.

    ``mean_i Σ_{c < i, t_c = t_i} p_ic`` and ``mean_i Σ_{c < i, t_c = t_i} p_i,c+1``, each over the queries that see at
    least one such key through the window; NaN where no query does.

    Args:
        q: queries as they enter the score.
        k: keys.
        spec: how they become a pattern.
        lse: log-sum-exp of each row, a learned sink included.
        positions: position of each token; only ALiBi reads them.
        copies: where the copies are.
        documents: indices at which packed documents begin; None is one text.

    Returns:
        (duplicate, induction).
    """
    mass = torch.zeros(2, q.shape[1], dtype=torch.float64)
    count = torch.zeros(2, dtype=torch.float64)
    for group in copies.groups:
        for places, ranks in _chunks(group, q.shape[1], q.shape[2]):
            rows = places.gather(1, ranks)
            earlier = torch.arange(places.shape[1]) < ranks[..., None]
            first, stop = (edge[..., None] for edge in spec.seen(rows, len(k), documents))
            for which, keys in enumerate((places, (places + 1).clamp_max(len(k) - 1))):
                visible = earlier & (keys[:, None] >= first) & (keys[:, None] < stop)
                pattern = _pattern(q, k, spec, lse, positions, rows, keys).masked_fill_(~visible[:, None], 0)
                mass[which] += group.weight * pattern.sum((0, 2, 3), dtype=torch.float64)
                count[which] += group.weight * int(visible.any(-1).sum())
    duplicate, induction = torch.where(count[:, None] > 0, mass / count[:, None], torch.nan).numpy()
    return duplicate, induction


def _pattern(
    q: Tensor,
    k: Tensor,
    spec: AttentionSpec,
    lse: Tensor,
    positions: Int[Tensor, " pos"],
    rows: Int[Tensor, "token query"],
    keys: Int[Tensor, "token key"],
) -> Float[Tensor, "token head query key"]:
    """Softmax values of each token's queries at its keys, visible or not."""
    heads, kv_heads, dtype = q.shape[1], k.shape[1], torch.promote_types(q.dtype, torch.float32)
    # [token kv_head group·query d_head], so that k is never expanded.
    own_q = q[rows].to(dtype).unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    products = (own_q @ k[keys].to(dtype).permute(0, 2, 3, 1)).view(len(rows), heads, rows.shape[1], -1)
    scores = finish_scores(products, spec, positions[rows], positions[keys])
    return scores.sub_(lse.T[rows].permute(0, 2, 1)[..., None]).exp_()


def _chunks(group: _Group, heads: int, d_head: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Runs of tokens and of their queries whose tensors stay small."""
    occurrences, queries = group.places.shape[1], group.ranks.shape[1]
    cells = heads * max(occurrences, d_head)
    height = max(1, min(queries, _CHUNK // cells))
    width = max(1, _CHUNK // (height * cells + occurrences * heads * d_head))
    for tokens in torch.arange(len(group.places)).split(width):
        for ranks in group.ranks[tokens].split(height, dim=1):
            yield group.places[tokens], ranks


def _largest_sample(sizes: np.ndarray, budget: int) -> int:
    """The most queries per token that keep all pairs within the budget, at least one."""
    low, high = 1, max(int(sizes.max()) - 1, 1)
    while low < high:
        middle = (low + high + 1) // 2
        if int((np.minimum(sizes - 1, middle) * sizes).sum()) <= budget:
            low = middle
        else:
            high = middle - 1
    return low
