"""Activation functions of the MLP: transformers' own, and xIELU, which has parameters."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus
from transformers.activations import ACT2FN

from hooks.config.transformer import HookedTransformerConfig

XIELU_BETA, XIELU_EPS = 0.5, -1e-6


def activation(cfg: HookedTransformerConfig) -> Callable[[Tensor], Tensor]:
    """The activation that ``cfg.act_fn`` names; each layer's own where it has parameters."""
    return XIELU(cfg.dtype) if cfg.act_fn == "xielu" else ACT2FN[cfg.act_fn]


class XIELU(nn.Module):
    """α_p·x² + βx for x > 0 and α_n·(exp(min(x, ε)) − 1 − x) + βx elsewhere, with α_p and α_n learned.

    α_p = softplus(alpha_p), α_n = β + softplus(alpha_n), β = 0.5, ε = −1e-6; both start at 0.8.

    Args:
        dtype: of the parameters.

    Source:
        arXiv 2411.13010; transformers 5.23.0 ``activations.XIELUActivation``, whose order of operations this is.
    """

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        start = torch.tensor([0.8, 0.8 - XIELU_BETA]).expm1().log().to(dtype)
        self.alpha_p, self.alpha_n = (nn.Parameter(value.clone()) for value in start.split(1))

    def forward(self, x: Float[Tensor, "batch pos d_mlp"]) -> Float[Tensor, "batch pos d_mlp"]:
        """The activated tensor."""
        alpha_p, alpha_n = softplus(self.alpha_p), XIELU_BETA + softplus(self.alpha_n)
        above = alpha_p * x * x + XIELU_BETA * x
        below = (torch.expm1(x.clamp(max=XIELU_EPS)) - x) * alpha_n + XIELU_BETA * x
        return torch.where(x > 0, above, below)
