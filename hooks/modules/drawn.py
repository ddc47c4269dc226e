"""Weights of a model that was not trained."""

from collections.abc import Iterable

import torch
from torch import nn

from hooks.config.transformer import HookedTransformerConfig


def drawn_parameters(
    parameters: Iterable[tuple[str, nn.Parameter]], cfg: HookedTransformerConfig
) -> dict[str, nn.Parameter]:
    """Values for parameters that have none: normal of std cfg.initializer_range, zero biases, sinks of std 1.

    They come from a generator of their own, seeded with ``cfg.seed``.

    Args:
        parameters: names and parameters of the model.
        cfg: its config.
    """
    generator = torch.Generator()
    if cfg.seed is None:
        generator.seed()
    else:
        generator.manual_seed(cfg.seed)
    values = {}
    for name, parameter in parameters:
        if parameter.is_meta:
            std = 0.0 if name.endswith("bias") else 1.0 if name.endswith("sinks") else cfg.initializer_range
            drawn = std * torch.randn(parameter.shape, generator=generator)
            values[name] = nn.Parameter(drawn.to(parameter.dtype))
    if cfg.tie_word_embeddings:
        values["unembed.weight"] = values["embed.weight"]
    return values
