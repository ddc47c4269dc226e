"""Scores and softmax of one head for any rows and any keys, from q and k, in float64."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooks import AttentionSpec, checks
from hooks.errors import PositionError
from hooks.functional.scores import finish_scores
from interp.common.finite import not_finite
from interp.measure.visibility import Visibility
from interp.tensors.capture_data import CaptureData

# Rows and keys of one block of scores: 16 MB in float64.
_ROWS, _KEYS = 256, 8192


@dataclass(frozen=True)
class HeadRows:
    """One head of a captured layer.

    Attributes:
        q: queries as they enter the score, [query d_head].
        k: the keys that this head uses, [key d_head].
        spec: how they become a pattern, with the sink logit and slope of this head alone.
        see: which run of keys each query sees.
        name: the head in words, for errors.
    """

    q: Float[Tensor, "query d_head"]
    k: Float[Tensor, "key d_head"]
    spec: AttentionSpec
    see: Visibility
    name: str

    @classmethod
    def of(cls, cap: CaptureData, layer: int, head: int) -> "HeadRows":
        """The head of a capture.

        Raises:
            StageError: the layer was not captured.
            PositionError: the layer has no such head.
        """
        q, k, spec = cap.q(layer), cap.k(layer), cap.spec(layer)
        head = checked_head(head, q.shape[1])
        see = Visibility.of(spec, cap.positions, cap.positions, documents=cap.documents)
        return cls.among(q, k, spec, see, head, f"layer {layer}, head {head}")

    @classmethod
    def among(
        cls,
        q: Float[Tensor, "query head d_head"],
        k: Float[Tensor, "key kv_head d_head"],
        spec: AttentionSpec,
        see: Visibility,
        head: int,
        name: str,
    ) -> "HeadRows":
        """One head of a layer's q and k, as they enter the score; see the attributes."""
        spec = replace(
            spec,
            sinks=None if spec.sinks is None else spec.sinks[head : head + 1].detach().cpu(),
            alibi_slopes=None if spec.alibi_slopes is None else spec.alibi_slopes[head : head + 1],
        )
        own_k = k[:, head // (q.shape[1] // k.shape[1])]
        return cls(q[:, head].cpu(), own_k.cpu(), spec, see, name)

    def scores(self, rows: Int[Tensor, " row"], keys: Int[Tensor, " key"]) -> Float[Tensor, "row key"]:
        """Scores that enter softmax, −inf where the query does not see the key."""
        see, spec = self.see, self.spec
        products = self.q[rows].double() @ self.k[keys].double().T
        scores = finish_scores(products[None], spec, see.query_position[rows], see.key_position[keys])[0]
        hidden = (keys < see.first[rows, None]) | (keys >= see.stop[rows, None])
        return scores.masked_fill_(hidden, -torch.inf)

    def log_sum_exp(self, rows: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        """Log-sum-exp over all the keys that each row sees, the sink logit included.

        Raises:
            InputError: q or k holds NaN or infinity, or a score overflows.
        """
        start = -torch.inf if self.spec.sinks is None else float(self.spec.sinks[0])
        out = torch.full(rows.shape, start, dtype=torch.float64)
        for start in range(0, len(rows), _ROWS):
            part = slice(start, start + _ROWS)
            chosen = rows[part]
            for low in range(int(self.see.first[chosen].min()), int(self.see.stop[chosen].max()), _KEYS):
                keys = torch.arange(low, min(low + _KEYS, len(self.k)))
                out[part] = torch.logaddexp(out[part], self.scores(chosen, keys).logsumexp(-1))
        if not bool(torch.isfinite(out).all()):
            row = int(rows[~torch.isfinite(out)][0])
            raise not_finite(f"{self.name}: the scores of query {row} are not finite, for q or k hold NaN or infinity")
        return out

    def blocks(
        self, rows: Int[Tensor, " row"], keys: Int[Tensor, " key"]
    ) -> Iterator[tuple[slice, Float[Tensor, "block key"], Float[Tensor, "block key"]]]:
        """Scores and softmax values at these rows and keys, a block of rows at a time, led by its place among them."""
        total = self.log_sum_exp(rows)
        height = max(1, _ROWS * _KEYS // max(len(keys), 1))
        for start in range(0, len(rows), height):
            block = slice(start, min(start + height, len(rows)))
            scores = self.scores(rows[block], keys)
            yield block, scores, (scores - total[block, None]).exp_()


def checked_head(head: int, n_heads: int) -> int:
    """A head's index, counted from the end when negative.

    Raises:
        PositionError: there is no such head.
    """
    if not -n_heads <= checks.whole("head", head, error=PositionError) < n_heads:
        raise PositionError(f"no head {head!r}: the layer has heads 0 to {n_heads - 1}")
    return int(head) % n_heads
