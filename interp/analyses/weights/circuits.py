"""What a head's projections and the rotation between them can do: W_Qᵀ R(Δ) W_K by frequency pair, and as a whole.

q of a head is ``A_q u + b_q``, u the input after the norm before attention: A its projection times that norm's gain.
A frequency pair i adds ``(A_q u + b_q)_i · R(θ_i Δ) (A_k v + b_k)_i`` to the score. Its bilinear part has rank 2, and
the singular values of a 2 × 2 matrix. Everything here is in float64.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from hooks import QKNormConfig
from interp.analyses.weights.rotation_blocks import RotationBlocks


@dataclass(frozen=True)
class Projection:
    """How q or k comes from something of bounded length: ``weight @ u + offset`` for each head.

    Attributes:
        weight: A.
        offset: b.
        radius: no u is longer; inf where nothing bounds it.
    """

    weight: Float[Tensor, "head d_head width"]
    offset: Float[Tensor, "head d_head"]
    radius: float

    @classmethod
    def of_norm(
        cls, norm: QKNormConfig, gain: Float[Tensor, "head d_head"], bias: Float[Tensor, "head d_head"] | None
    ) -> "Projection":
        """What a QK-norm makes of its normalised vector: diagonal gains, whatever was projected before."""
        width = 1 if norm.kind == "l2" else gain.numel() if norm.scope == "full" else gain.shape[-1]
        offset = torch.zeros_like(gain) if bias is None else bias
        return cls(torch.diag_embed(gain), offset, math.sqrt(width))

    def of(self, u: Float[Tensor, "token width"]) -> Float[Tensor, "token head d_head"]:
        """Q or k of some inputs, before any further step."""
        return torch.einsum("hdm,tm->thd", self.weight, u) + self.offset

    def expanded(self, heads: int) -> "Projection":
        """One row for each query head."""
        times = heads // len(self.weight)
        return replace(
            self, weight=self.weight.repeat_interleave(times, 0), offset=self.offset.repeat_interleave(times, 0)
        )

    def normed_on_average(
        self, norm: QKNormConfig, gain: Float[Tensor, "head d_head"]
    ) -> Float[Tensor, "head d_head width"]:
        """The weight with a QK-norm's divisor as it is over random inputs, and its gain: the norm made linear.

        ``Dγ A √D / ‖A‖``, D the features that are normalised together and ‖A‖ the Frobenius norm of their rows, the
        root mean square of ``‖A u‖`` over inputs of independent features with variance 1.
        """
        together = self.weight.flatten(0, 1)[None] if norm.scope == "full" else self.weight
        if norm.kind == "layer":
            together = together - together.mean(1, keepdim=True)
        width = 1.0 if norm.kind == "l2" else float(together.shape[1])
        size = together.flatten(1).norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
        linear = together * (math.sqrt(width) / size)[:, None, None]
        return linear.reshape(self.weight.shape) * gain[:, :, None]


def qk_normed(
    x: Float[Tensor, "token head d_head"],
    norm: QKNormConfig,
    gain: Float[Tensor, "head d_head"],
    bias: Float[Tensor, "head d_head"] | None,
) -> Float[Tensor, "token head d_head"]:
    """X through a QK-norm, in x's own type and past no hook."""
    together = x.flatten(1)[:, None] if norm.scope == "full" else x
    if norm.kind == "l2":
        together = together / together.norm(dim=-1, keepdim=True).clamp_min(norm.eps)
    else:
        together = together - together.mean(-1, keepdim=True) if norm.kind == "layer" else together
        together = together * torch.rsqrt(together.square().mean(-1, keepdim=True) + norm.eps)
    out = together.reshape(x.shape) * gain
    return out if bias is None else out + bias


def pair_singular_values(
    blocks: RotationBlocks,
    q: Float[Tensor, "head d_head width"],
    k: Float[Tensor, "head d_head width"],
    distance: Float[Tensor, " distance"],
) -> Float[Tensor, "head pair distance"]:
    """σ_max(A_q,iᵀ R(θ_i Δ) A_k,i) of each pair, attention factors included.

    With G_q and G_k the 2 × 2 products of a pair's rows, F = tr(G_q R G_k Rᵀ) is the sum of the squares of the two
    singular values and det² = det G_q det G_k the square of their product: ``σ² = (F + sqrt(F² − 4 det²)) / 2``.
    """
    a, b, c = _gram(blocks, q)
    e, f, g = _gram(blocks, k)
    angle = blocks.frequency[:, None] * distance
    cos, sin = angle.cos(), angle.sin()
    first = cos**2 * e + 2 * cos * sin * f + sin**2 * g
    mixed = (cos**2 - sin**2) * f + cos * sin * (g - e)
    second = sin**2 * e - 2 * cos * sin * f + cos**2 * g
    square = a * first + 2 * b * mixed + c * second
    twice_det = 2 * ((a * c - b * b).clamp_min(0) * (e * g - f * f).clamp_min(0)).sqrt()
    root = ((square - twice_det).clamp_min(0) * (square + twice_det)).sqrt()
    return blocks.stretch * ((square + root) / 2).clamp_min(0).sqrt()


def pair_products(
    blocks: RotationBlocks,
    q: Float[Tensor, "head d_head"],
    k: Float[Tensor, "head d_head"],
    distance: Float[Tensor, " distance"],
) -> Float[Tensor, "head pair distance"]:
    """q_i · R(θ_i Δ) k_i of one q and one k for each head, attention factors included."""
    (q1, q2), (k1, k2) = _members(blocks, q), _members(blocks, k)
    angle = blocks.frequency[:, None] * distance
    along, across = (q1 * k1 + q2 * k2)[..., None], (q1 * k2 - q2 * k1)[..., None]
    return blocks.stretch * (along * angle.cos() + across * angle.sin())


def pair_bounds(
    blocks: RotationBlocks, q: Projection, k: Projection, distance: Float[Tensor, " distance"]
) -> Float[Tensor, "head pair distance"]:
    """The most that a pair can add over all inputs, biases included: `circuit_norm` of one pair."""
    biased = q.radius * _reach(blocks, q.weight, k.offset, distance) + k.radius * _reach(
        blocks, k.weight, q.offset, -distance
    )
    constant = pair_products(blocks, q.offset, k.offset, distance).abs()
    return q.radius * k.radius * pair_singular_values(blocks, q.weight, k.weight, distance) + biased + constant


def pair_lengths(blocks: RotationBlocks, x: Projection) -> Float[Tensor, "head pair"]:
    """The longest that a projection makes a pair: ``r σ_max(A_i) + ‖b_i‖``."""
    a, b, c = (each[..., 0] for each in _gram(blocks, x.weight))
    largest = ((a + c + torch.hypot(a - c, 2 * b)) / 2).clamp_min(0).sqrt()
    return x.radius * largest + torch.hypot(*_members(blocks, x.offset))


def rest_singular_value(
    blocks: RotationBlocks, q: Float[Tensor, "head d_head width"], k: Float[Tensor, "head d_head width"]
) -> Float[Tensor, " head"]:
    """σ_max(A_qᵀ A_k) of the features that do not rotate; 0 where all do."""
    if not blocks.rest.numel():
        return torch.zeros(len(q), dtype=torch.float64)
    return torch.linalg.matrix_norm(triangular(q[:, blocks.rest]) @ triangular(k[:, blocks.rest]).mT, ord=2)


def triangular(x: Float[Tensor, "head rows width"]) -> Float[Tensor, "head rank rows"]:
    """R of ``xᵀ = Q R`` for each head: any bilinear form between rows of x keeps its singular values with R for x."""
    return torch.linalg.qr(x.mT, mode="r").R


def circuit_norm(
    q: Projection, k: Projection, rotation: Float[Tensor, "d_head d_head"], factors: tuple[Tensor, Tensor]
) -> Float[Tensor, " head"]:
    """The largest |q · R k| over all inputs, biases included; tight without them.

    ``r² ‖A_qᵀ R A_k‖₂ + r ‖A_qᵀ R b_k‖ + r ‖A_kᵀ Rᵀ b_q‖ + |b_q · R b_k|``, r the radius of the inputs.

    Args:
        q: of the queries, one row for each query head.
        k: of the keys, likewise.
        rotation: R(Δ).
        factors: `triangular` of both weights.
    """
    upper_q, upper_k = factors
    turned_k, turned_q = k.offset @ rotation.T, q.offset @ rotation
    bilinear = torch.linalg.matrix_norm(upper_q @ rotation @ upper_k.mT, ord=2)
    by_q, by_k = (upper_q @ turned_k[..., None]).norm(dim=(1, 2)), (upper_k @ turned_q[..., None]).norm(dim=(1, 2))
    constant = (q.offset * turned_k).sum(-1).abs()
    return q.radius * k.radius * bilinear + q.radius * by_q + k.radius * by_k + constant


def longest(x: Projection, upper: Float[Tensor, "head rank rows"]) -> Float[Tensor, " head"]:
    """The longest vector that a projection puts out: ``r ‖A‖₂ + ‖b‖``."""
    return x.radius * torch.linalg.matrix_norm(upper, ord=2) + x.offset.norm(dim=-1)


def _members(blocks: RotationBlocks, x: Float[Tensor, "head d_head *rest"]) -> tuple[Tensor, Tensor]:
    """The first and the second features of the pairs."""
    return x[:, blocks.first], x[:, blocks.second]


def _gram(blocks: RotationBlocks, x: Float[Tensor, "head d_head width"]) -> tuple[Tensor, Tensor, Tensor]:
    """The three numbers of each pair's 2 × 2 matrix of products of its rows, [head pair 1]."""
    first, second = _members(blocks, x)
    square, other = first.square().sum(-1), second.square().sum(-1)
    return square[..., None], (first * second).sum(-1)[..., None], other[..., None]


def _reach(
    blocks: RotationBlocks,
    weight: Float[Tensor, "head d_head width"],
    offset: Float[Tensor, "head d_head"],
    distance: Float[Tensor, " distance"],
) -> Float[Tensor, "head pair distance"]:
    """‖A_iᵀ R(θ_i Δ) b_i‖ of each pair."""
    a, b, c = _gram(blocks, weight)
    first, second = (x[..., None] for x in _members(blocks, offset))
    angle = blocks.frequency[:, None] * distance
    x, y = first * angle.cos() + second * angle.sin(), second * angle.cos() - first * angle.sin()
    return blocks.stretch * (a * x**2 + 2 * b * x * y + c * y**2).clamp_min(0).sqrt()
