"""The cache of an attached model: transformers' own, filled by the model's own code.

Source: transformers 5.23.0, ``generation/utils.py``, ``_prepare_cache_for_generation``.
"""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from hooks.attached.points import AttachedAttention
from hooks.config.attention_spec import AttentionSpec
from hooks.config.rope import LENGTH_DEPENDENT
from hooks.config.transformer import HookedTransformerConfig
from hooks.errors import AttachError
from hooks.generation.key_values import KeyValueCache


class Attached(Protocol):
    """An attached model."""

    original_model: Any
    blocks: Any

    @property
    def cfg(self) -> HookedTransformerConfig:
        """What was proven of it."""
        ...

    @property
    def attending_layers(self) -> tuple[int, ...]:
        """The layers that call softmax attention."""
        ...

    def attention_spec(self, layer: int) -> AttentionSpec:
        """How a layer attends."""
        ...


class HookedCache(DynamicCache):
    """transformers' cache of one model, which leads keys and values past our last points before it keeps them.

    Otherwise those points would see all tokens again at every step, and what a hook changed would be forgotten.

    Args:
        config: the model's.
        attentions: our points of each layer that attends, by its index.
    """

    def __init__(self, config: Any, attentions: Mapping[int, AttachedAttention]):
        super().__init__(config=config)
        self._attentions = attentions

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep new keys and values of a layer, and return all that it keeps."""
        into = partial(super().update, layer_idx=layer_idx, **kwargs)
        attention = self._attentions.get(layer_idx)
        return into(key_states, value_states) if attention is None else attention.keep(key_states, value_states, into)


def empty_cache(attached: Attached) -> Cache:
    """Layers of a cache of this model that hold nothing yet.

    Raises:
        AttachError: the model keeps its past in another form, attends in both directions, or turns keys by frequencies
            that depend on the length of the text and of which nothing is proven.
    """
    model, name = attached.original_model, type(attached.original_model).__name__
    if not getattr(model, "_supports_default_dynamic_cache", lambda: False)():
        raise AttachError(f"{name} keeps what it has read in a form of its own; use_past_kv_cache=False reads it again")
    if not all(attached.attention_spec(layer).causal for layer in attached.attending_layers):
        raise AttachError(f"{name} attends in both directions, so it cannot go on from what it has read")
    text = model.config.get_text_config(decoder=True)
    if attached.cfg.rope is None and _adapts(getattr(text, "rope_parameters", None)):
        raise AttachError(
            f"{name} adapts its rotation to the length of the text, in a way that was not proven, so kept keys would "
            "go stale unseen; use_past_kv_cache=False reads all again"
        )
    attentions = {
        getattr(block.attn.original_module, "layer_idx", layer): block.attn
        for layer, block in enumerate(attached.blocks)
        if block.attn is not None
    }
    return HookedCache(model.config, attentions)


def past_inputs(
    model: Any, past: KeyValueCache, positions: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"]
) -> dict[str, Any]:
    """What the model's forward is given so that it goes on from a cache.

    Args:
        model: the transformers model.
        past: what it has read.
        positions: of the new tokens.
        mask: 1 where one of them is real.
    """
    before = mask.new_ones(len(mask), len(past)) if past.key_mask is None else past.key_mask.to(mask)
    takes = inspect.signature(model.forward).parameters
    given: dict[str, Any] = {
        "cache" if "cache" in takes else "past_key_values": past.layers,
        "use_cache": True,
        "attention_mask": torch.cat([before, mask], 1),
    }
    counted = torch.arange(len(past), len(past) + mask.shape[1], device=positions.device)
    if not torch.equal(positions, counted.expand_as(positions)):
        given["position_ids"] = positions
    return given


def _adapts(parameters: Any) -> bool:
    """Whether a config's rope_parameters, flat or by layer type, name a schedule that depends on the length."""
    if not isinstance(parameters, Mapping):
        return False
    return parameters.get("rope_type") in LENGTH_DEPENDENT or any(map(_adapts, parameters.values()))
