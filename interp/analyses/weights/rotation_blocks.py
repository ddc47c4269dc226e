"""A rotation between two diagonal gains, Dγq R(Δ) Dγk, by its 2 × 2 blocks: norms in closed form, in float64."""

import torch
from jaxtyping import Float
from torch import Tensor

_CHUNK = 1 << 22


class RotationBlocks:
    """Features of one head in the pairs that rotate together, and the features that do not rotate.

    Args:
        features: features of a head.
        frequency: angle per token of each pair, [pair].
        factor: attention factor; rotated features of q and k both carry it.
        interleaved: pairs are (2i, 2i + 1) instead of (i, i + number of pairs).
    """

    def __init__(self, features: int, frequency: Float[Tensor, " pair"], factor: float, interleaved: bool) -> None:
        pairs = torch.arange(frequency.numel())
        self.first, self.second = (2 * pairs, 2 * pairs + 1) if interleaved else (pairs, pairs + frequency.numel())
        self.rest = torch.arange(2 * frequency.numel(), features)
        self.features, self.frequency, self.stretch = features, frequency, factor**2

    @classmethod
    def still(cls, features: int) -> "RotationBlocks":
        """No rotation at all."""
        return cls(features, torch.empty(0, dtype=torch.float64), 1.0, interleaved=False)

    @property
    def is_still(self) -> bool:
        """Nothing rotates."""
        return not self.frequency.numel()

    def norm(
        self, a: Float[Tensor, "head d_head"], b: Float[Tensor, "head d_head"], distance: Float[Tensor, " distance"]
    ) -> Float[Tensor, "head distance"]:
        """Largest singular value of Da R(Δ) Db at each distance."""
        if self.is_still:
            return self.largest_norm(a, b, None).expand(-1, distance.numel())
        step = max(_CHUNK // (self.frequency.numel() * len(a)), 1)
        parts = [self._pair_norm(a, b, self._cos2(part)).amax(1) for part in distance.split(step)]
        return torch.maximum(torch.cat(parts, dim=1), self._rest_norm(a, b))

    def largest_norm(
        self, a: Float[Tensor, "head d_head"], b: Float[Tensor, "head d_head"], furthest: int | None
    ) -> Float[Tensor, "head 1"]:
        """The largest over distances 0 … furthest, or over every real distance.

        σ² of a pair depends on cos²φ alone and is linear in it under the root, so its extremes lie at the extremes of
        cos²φ.
        """
        if self.is_still:
            return self._rest_norm(a, b)
        if furthest is None:
            least = torch.where(self.frequency == 0, 1.0, 0.0)[:, None]
        else:
            span = torch.arange(furthest + 1, dtype=torch.float64)
            step = max(_CHUNK // self.frequency.numel(), 1)
            least = torch.stack([self._cos2(part).amin(1) for part in span.split(step)]).amin(0)[:, None]
        extremes = torch.cat([least, torch.ones_like(least)], dim=1)
        largest = self._pair_norm(a, b, extremes).amax((1, 2))[:, None]
        return torch.maximum(largest, self._rest_norm(a, b))

    def centred_norm(
        self,
        a: Float[Tensor, "head d_head"],
        b: Float[Tensor, "head d_head"],
        kept_a: float,
        kept_b: float,
        distance: Float[Tensor, " distance"] | None,
    ) -> Float[Tensor, "head distance"]:
        """Largest singular value of Sa Da R(Δ) Db Sb, where S shrinks the mean of the features to `kept` of itself."""
        distance = torch.zeros(1, dtype=torch.float64) if distance is None else distance
        mean = torch.full((self.features, self.features), 1 / self.features, dtype=torch.float64)
        left, right = (torch.eye(self.features, dtype=torch.float64) - (1 - kept) * mean for kept in (kept_a, kept_b))
        pieces = [
            torch.linalg.matrix_norm(left @ (a[:, :, None] * self.matrix(x) * b[:, None, :]) @ right, ord=2)
            for x in distance
        ]
        return torch.stack(pieces, dim=1)

    def matrix(self, distance: Tensor) -> Float[Tensor, "d_head d_head"]:
        """R(Δ) with q·R(Δ)·k the score of a query Δ positions after its key, attention factors included."""
        out = torch.zeros(self.features, self.features, dtype=torch.float64)
        out[self.rest, self.rest] = 1.0
        angle = self.frequency * distance
        cos, sin = self.stretch * angle.cos(), self.stretch * angle.sin()
        out[self.first, self.first] = out[self.second, self.second] = cos
        out[self.first, self.second], out[self.second, self.first] = sin, -sin
        return out

    def box(self, distance: Float[Tensor, " distance"] | None) -> Float[Tensor, "1 distance"]:
        """Largest qᵀ R(Δ) k with |q_j|, |k_j| ≤ 1: 2 max(|cos φ|, |sin φ|) from a pair, 1 from any other feature."""
        if distance is None:
            distance = torch.zeros(1, dtype=torch.float64)
        cos2 = self._cos2(distance)
        pairs = 2 * self.stretch * torch.maximum(cos2, 1 - cos2).sqrt().sum(0, keepdim=True)
        return pairs + self.rest.numel()

    def reach(
        self,
        gain: Float[Tensor, "head d_head"],
        vector: Float[Tensor, "head d_head"],
        distance: Float[Tensor, " distance"] | None,
        *,
        backwards: bool,
    ) -> Float[Tensor, "head distance"]:
        """‖D R x‖ (Rᵀ if backwards) at each distance, or a bound over all rotations."""
        if distance is None:
            gains, lengths = self._pair_max(gain), self._pair_length(vector)
            return (gains * lengths).norm(dim=-1, keepdim=True)
        turned = [vector @ (self.matrix(x) if backwards else self.matrix(x).T) for x in distance]
        return torch.stack([(gain * x).norm(dim=-1) for x in turned], dim=1)

    def product(
        self,
        x: Float[Tensor, "head d_head"],
        y: Float[Tensor, "head d_head"],
        distance: Float[Tensor, " distance"] | None,
    ) -> Float[Tensor, "head distance"]:
        """|xᵀ R y| at each distance, or a bound over all rotations."""
        if distance is None:
            return (self._pair_length(x) * self._pair_length(y) / self._pair_stretch()).sum(-1, keepdim=True)
        return torch.stack([((x @ self.matrix(d)) * y).sum(-1).abs() for d in distance], dim=1)

    def _cos2(self, distance: Float[Tensor, " distance"]) -> Float[Tensor, "pair distance"]:
        """cos²φ of each pair."""
        return (self.frequency[:, None] * distance).cos().square()

    def _pair_norm(
        self, a: Float[Tensor, "head d_head"], b: Float[Tensor, "head d_head"], cos2: Float[Tensor, "pair distance"]
    ) -> Float[Tensor, "head pair distance"]:
        """σ of each pair's block: σ² = (F + sqrt(F² − 4 det²)) / 2, F the sum of squares of its entries."""
        a1, a2, b1, b2 = (x[:, at, None] for x in (a, b) for at in (self.first, self.second))
        square = cos2 * ((a1 * b1).square() + (a2 * b2).square()) + (1 - cos2) * (
            (a1 * b2).square() + (a2 * b1).square()
        )
        twice_det = 2 * (a1 * a2 * b1 * b2).abs()
        root = ((square - twice_det).clamp_min(0) * (square + twice_det)).sqrt()
        return self.stretch * ((square + root) / 2).sqrt()

    def _rest_norm(self, a: Float[Tensor, "head d_head"], b: Float[Tensor, "head d_head"]) -> Float[Tensor, "head 1"]:
        """Largest |a_j b_j| of the features that do not rotate; 0 if all do."""
        still = (a * b).abs()[:, self.rest]
        return torch.cat([still, torch.zeros_like(a[:, :1])], dim=1).amax(1, keepdim=True)

    def _pair_max(self, gain: Float[Tensor, "head d_head"]) -> Float[Tensor, "head block"]:
        """Largest |gain| of each pair, then the other features'."""
        pairs = torch.maximum(gain[:, self.first].abs(), gain[:, self.second].abs())
        return torch.cat([pairs, gain[:, self.rest].abs()], dim=1)

    def _pair_length(self, x: Float[Tensor, "head d_head"]) -> Float[Tensor, "head block"]:
        """Length of each pair times its attention factors, then the other features' size."""
        lengths = torch.cat([torch.hypot(x[:, self.first], x[:, self.second]), x[:, self.rest].abs()], dim=1)
        return lengths * self._pair_stretch()

    def _pair_stretch(self) -> Float[Tensor, " block"]:
        """Attention factors of q and k on each pair, 1 on the other features."""
        return torch.cat([torch.full_like(self.frequency, self.stretch), torch.ones(self.rest.numel())])
