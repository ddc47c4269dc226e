"""What rounding does to scores and pattern of one head, counted over blocks of queries."""

import torch
from jaxtyping import Float
from torch import Tensor

from interp.analyses.patterns.head_rows import HeadRows

# Cells of a block of scores in float64: 16 MB.
CELLS = 1 << 21


class Tally:
    """Running cost of one format over blocks of queries."""

    def __init__(self) -> None:
        self.kl_sum = self.kl_max = self.score_error_max = self.square = 0.0
        self.n_rows = self.n_pairs = 0

    def add(
        self,
        scores: Float[Tensor, "row key"],
        lse: Float[Tensor, " row"],
        rounded: Float[Tensor, "row key"],
        head: HeadRows,
    ) -> None:
        """Count a block of exact scores with their log-sum-exp, and the same scores rounded."""
        seen = scores > -torch.inf
        off = torch.where(seen, rounded - scores, 0.0)
        # Σ p ln(p/p̂) over keys and sink: the normalisers differ by one number per row.
        kl = log_sum_exp(rounded, head) - lse - ((scores - lse[:, None]).exp() * off).sum(-1)
        self.kl_sum += float(kl.clamp_min(0).sum())
        self.kl_max = max(self.kl_max, float(kl.max()))
        self.score_error_max = max(self.score_error_max, float(off.abs().max()))
        self.square += float(off.square().sum())
        self.n_rows += len(scores)
        self.n_pairs += int(seen.sum())

    @property
    def kl(self) -> float:
        """Mean divergence."""
        return self.kl_sum / self.n_rows

    @property
    def score_error_rms(self) -> float:
        """Root mean square change of a score."""
        return (self.square / self.n_pairs) ** 0.5


def log_sum_exp(scores: Float[Tensor, "row key"], head: HeadRows) -> Float[Tensor, " row"]:
    """Log-sum-exp of whole rows, the sink logit included."""
    total = scores.logsumexp(-1)
    return total if head.spec.sinks is None else torch.logaddexp(total, head.spec.sinks.to(total))
