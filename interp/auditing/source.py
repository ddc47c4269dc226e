"""What an audit reads of a layer, one at a time: constants, steps, projections; from a model or a config alone."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from hooks import HookedTransformerConfig
from hooks.attached.transformer import AttachedTransformer
from hooks.config.steps import attention_steps
from hooks.functional.rope import inv_freq
from hooks.loading.stream import EMBED
from hooks.model import HookedTransformer
from hooks.modules.block import Block
from hooks.modules.norms import Norm
from interp.analyses.weights.circuits import Projection
from interp.analyses.weights.rotation_blocks import RotationBlocks
from interp.common.finite import not_finite
from interp.recording.constants import score_constants
from interp.tensors.constants import LayerConstants

Source = HookedTransformer | AttachedTransformer | HookedTransformerConfig
CONFIG_ONLY = "only the config was read, and this is in the weights"
_FOREIGN = "the projections of an attached model are modules of its own: load it with HookedTransformer.from_pretrained"
_NEEDED = ("ln1.", "attn.q_proj.", "attn.k_proj.", "attn.q_norm.", "attn.k_norm.", "attn.sinks")


@dataclass(frozen=True)
class LayerWeights:
    """What is known of a layer.

    Attributes:
        layer: which.
        steps: the steps of q and k, in order.
        constants: what decides its scores besides the projections; gains in float64.
        blocks: the pairs that turn; None where its rotation is not known.
        q: the projection of queries; None where it was not read.
        k: the projection of keys.
        missing: why something was not read; empty where all was.
        foreign: whether it is of an attached model.
    """

    layer: int
    steps: tuple[str, ...]
    constants: LayerConstants
    blocks: RotationBlocks | None
    q: Projection | None = None
    k: Projection | None = None
    missing: str = ""
    foreign: bool = False


def config_of(source: Source) -> HookedTransformerConfig:
    """The settings of what is audited."""
    return source if isinstance(source, HookedTransformerConfig) else source.cfg


def layers_of(source: Source) -> tuple[int, ...]:
    """The layers that attend."""
    if isinstance(source, AttachedTransformer):
        return source.attending_layers
    return tuple(range(config_of(source).n_layers))


def read_layer(source: Source, layer: int) -> LayerWeights:
    """Everything that an audit needs of a layer; of a streamed model nothing else is read.

    Raises:
        InputError: a weight that is not finite.
    """
    if isinstance(source, HookedTransformerConfig):
        steps = attention_steps(source, layer, "q")
        constants = _exact(_constants_of_config(source, layer))
        return LayerWeights(layer, steps, constants, _blocks(source, layer, steps, constants), missing=CONFIG_ONLY)
    steps = source.attention_steps(layer, "q")
    if isinstance(source, AttachedTransformer):
        constants = _exact(score_constants(source, layer, source.cfg.n_ctx))
        blocks = _blocks(source.cfg, layer, steps, constants)
        return LayerWeights(layer, steps, constants, blocks, missing=_FOREIGN, foreign=True)
    with torch.no_grad(), source.resident(layer, _NEEDED):
        constants = _exact(score_constants(source, layer, source.cfg.n_ctx))
        q, k = (_projection(source, layer, tensor) for tensor in ("q", "k"))
    return LayerWeights(layer, steps, constants, _blocks(source.cfg, layer, steps, constants), q, k)


def block_inputs(model: HookedTransformer, embedding: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
    """Embeddings through the norm before attention, its gain and bias left to `Projection`."""
    if not _has_norm(model.cfg):
        return embedding
    if model.cfg.normalization_type == "LN":
        embedding = embedding - embedding.mean(-1, keepdim=True)
    return embedding * torch.rsqrt(embedding.square().mean(-1, keepdim=True) + model.cfg.eps)


def token_embeddings(model: HookedTransformer, most: int) -> Float[Tensor, "token d_model"]:
    """Embeddings of tokens at even steps through the vocabulary, in float64; padding behind the tokenizer's is none.

    Args:
        model: the model.
        most: how many tokens.
    """
    real = model.cfg.d_vocab
    if model.tokenizer is not None:
        real = min(real, _length(model.tokenizer) or real)
    ids = torch.linspace(0, real - 1, min(most, real), dtype=torch.float64).round().long()
    with torch.no_grad(), _embedding(model):
        found = model.embed.W_E[ids.to(model.embed.W_E.device)]
        if model.cfg.embed_scale is not None:  # rounded as the model rounds it
            found = found * torch.tensor(model.cfg.embed_scale, dtype=found.dtype, device=found.device)
    return found.detach().cpu().double()


@contextmanager
def _embedding(model: HookedTransformer) -> Iterator[None]:
    """Have the embedding in memory, also of a model that streams it."""
    with nullcontext() if model.stream is None else model.stream.resident(EMBED):
        yield


def _length(tokenizer: Any) -> int | None:
    """How many tokens a tokenizer knows, if it says so."""
    try:
        return len(tokenizer)
    except TypeError:
        return None


def _has_norm(cfg: HookedTransformerConfig) -> bool:
    """Whether a norm stands before attention, so that its input is of bounded length."""
    return cfg.block_norms in ("pre", "sandwich")


def _projection(model: HookedTransformer, layer: int, tensor: str) -> Projection:
    """The projection of q or k with the gain of the norm before it, in float64."""
    block = cast(Block, model.blocks[layer])
    linear = block.attn.q_proj if tensor == "q" else block.attn.k_proj
    weight = linear.weight.detach().cpu().double()
    offset = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias.detach().cpu().double()
    radius = math.inf
    if _has_norm(model.cfg):
        norm = cast(Norm, block.ln1)
        if norm.bias is not None:
            offset = offset + weight @ norm.bias.detach().cpu().double()
        gain = norm.gain
        weight = weight * (gain.detach().cpu().double() if isinstance(gain, Tensor) else gain)
        if model.cfg.normalization_type == "LN":
            weight = weight - weight.mean(-1, keepdim=True)
        radius = math.sqrt(model.cfg.d_model)
    if not (torch.isfinite(weight).all() and torch.isfinite(offset).all()):
        raise not_finite(f"the weights of {tensor} hold NaN or infinity")
    d_head = model.cfg.d_head
    return Projection(weight.unflatten(0, (-1, d_head)), offset.view(-1, d_head), radius)


def _constants_of_config(cfg: HookedTransformerConfig, layer: int) -> LayerConstants:
    """The constants that follow from the settings: gains only where a norm has none to learn."""
    rope = cfg.rope_for(layer)
    frequencies, factor = (None, 1.0) if rope is None else inv_freq(rope, cfg.d_head, cfg.n_ctx)
    gains: list[Tensor | None] = [None, None]
    if cfg.qk_norm is not None and not cfg.qk_norm.affine:
        gains = [torch.full((heads, cfg.d_head), cfg.qk_norm.scale) for heads in (cfg.n_heads, cfg.n_kv_heads)]
    spec = cfg.attention_spec(layer)
    return LayerConstants(gains[0], gains[1], None, None, frequencies, factor, w_o=None, spec=spec)


def _blocks(
    cfg: HookedTransformerConfig, layer: int, steps: tuple[str, ...], constants: LayerConstants
) -> RotationBlocks | None:
    """How the rotation pairs features; None where there is one that is not known."""
    rope = cfg.rope_for(layer)
    if "rope" not in steps:
        return RotationBlocks.still(cfg.d_head)
    if rope is None or constants.inv_freq is None:
        return None
    frequency = constants.inv_freq.detach().cpu().double()
    return RotationBlocks(cfg.d_head, frequency, constants.attention_factor, bool(rope.interleaved))


def _exact(constants: LayerConstants) -> LayerConstants:
    """The same with gains and biases on the CPU in float64."""
    given = {name: getattr(constants, name) for name in ("gain_q", "gain_k", "bias_q", "bias_k")}
    return replace(constants, **{name: None if x is None else x.detach().cpu().double() for name, x in given.items()})
