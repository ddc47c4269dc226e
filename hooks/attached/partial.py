"""A part of an attached model's layers: from the tokens or from a residual stream, up to a layer."""

from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hooks.attached.masks import HandedMask
from hooks.attached.points import LayerContext
from hooks.base.layers import residual_stream
from hooks.config.transformer import HookedTransformerConfig
from hooks.errors import InputError


class ByLayer(Protocol):
    """An attached model that can run one layer at a time."""

    blocks: nn.ModuleList
    original_model: Any

    @property
    def cfg(self) -> HookedTransformerConfig:
        """What was proven of it."""
        ...

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Type of the residual stream."""
        ...

    def embed_tokens(self, tokens: Tensor, *, position_ids: Tensor | None = None) -> Tensor:
        """The residual stream before the first layer."""
        ...

    def context(
        self, tokens: Tensor, *, position_ids: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> LayerContext:
        """What the layers are handed beside it."""
        ...


def run_layers(
    attached: ByLayer,
    given: Any,
    layers: range,
    *,
    from_tokens: bool,
    position_ids: Int[Tensor, "batch pos"] | None,
    attention_mask: Bool[Tensor, "batch pos"] | Int[Tensor, "batch pos"] | None,
) -> Float[Tensor, "batch pos d_model"]:
    """The residual stream after some layers.

    Args:
        attached: the model.
        given: token ids [batch pos], or the stream [batch pos d_model] before the first of the layers.
        layers: which run.
        from_tokens: token ids are given.
        position_ids: as in the model's forward.
        attention_mask: as in the model's forward.

    Raises:
        InputError: a stream, where the layers read the tokens beside it.
    """
    at = {"position_ids": position_ids, "attention_mask": attention_mask}
    if from_tokens:
        context = attached.context(given, **at)
        resid = attached.embed_tokens(given, position_ids=position_ids if attention_mask is None else context.positions)
    else:
        resid = residual_stream(given, attached.cfg.d_model, attached.dtype, attached.device)
        ids = torch.zeros(resid.shape[:2], dtype=torch.long, device=attached.device)
        context, other = (attached.context(tokens, **at) for tokens in (ids, ids + 1))
        if not _alike(tuple(context.beside.values()), tuple(other.beside.values())):
            raise InputError(
                f"the layers of {type(attached.original_model).__name__} read the tokens beside the residual stream, "
                "so none can be the first: start with the tokens and edit the stream in a hook"
            )
    for layer in layers:
        resid = attached.blocks[layer](resid, context)
    return resid


def _alike(one: Any, other: Any) -> bool:
    """Whether what two passes handed the layers holds the same numbers."""
    if isinstance(one, Tensor):
        return one.shape == other.shape and (isinstance(one, HandedMask) or torch.equal(one, other))
    if isinstance(one, dict):
        return all(_alike(one[name], other[name]) for name in one)
    return all(map(_alike, one, other)) if isinstance(one, tuple | list) else True
