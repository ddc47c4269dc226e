"""What each head's projections can do in each frequency pair and at each distance, and do on average."""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hooks import HookedTransformerConfig
from interp.analyses.weights.circuits import (
    Projection,
    pair_bounds,
    pair_lengths,
    pair_products,
    pair_singular_values,
    qk_normed,
    rest_singular_value,
)
from interp.auditing.relative import NO, UNKNOWN
from interp.auditing.source import LayerWeights

Numbers = dict[str, np.ndarray]


def missing_heads(weights: LayerWeights, is_relative: tuple[str, str]) -> str:
    """Why nothing can be said of the heads' pairs in a layer; empty where it can."""
    if weights.missing:
        return weights.missing
    word, why = is_relative
    if word in (NO, UNKNOWN):
        return f"scores are not a function of the distance: {why}"
    return ""


def head_numbers_of(
    cfg: HookedTransformerConfig,
    weights: LayerWeights,
    inputs: Float[Tensor, "token d_model"],
    distances: np.ndarray,
    pairs: int,
) -> Numbers:
    """The numbers of one layer, pairs that it does not have and distances that it does not see left NaN.

    Args:
        cfg: the model's settings.
        weights: what was read of the layer, of a layer whose scores are relative.
        inputs: embeddings of tokens, normalised as the layer's norm does, without its gain.
        distances: where to look.
        pairs: how many pairs there are in the layer that has most.
    """
    assert weights.q is not None and weights.k is not None and weights.blocks is not None
    blocks, heads, scale = weights.blocks, cfg.n_heads, weights.constants.spec.scale
    window = weights.constants.spec.window
    seen = torch.as_tensor(distances if window is None else distances[distances < window], dtype=torch.float64)
    q_weight, k_weight = _linear(cfg, weights)
    singular = scale * pair_singular_values(blocks, q_weight, k_weight, seen)
    mean_q, mean_k = (mean.repeat_interleave(heads // len(mean), 0) for mean in _means(cfg, weights, inputs))
    products = scale * pair_products(blocks, mean_q, mean_k, seen)
    rest = scale * (mean_q[:, blocks.rest] * mean_k[:, blocks.rest]).sum(-1)
    return {
        "singular_value": _padded(singular, pairs, len(distances)),
        "largest_score": _padded(scale * _most(cfg, weights, seen), pairs, len(distances)),
        "mean_score": _padded(products, pairs, len(distances)),
        "rest_singular_value": (scale * rest_singular_value(blocks, q_weight, k_weight)).numpy(),
        "rest_mean_score": rest.numpy(),
    }


def _linear(cfg: HookedTransformerConfig, weights: LayerWeights) -> tuple[Tensor, Tensor]:
    """The projections of each query head, with what a QK-norm makes of random inputs on average."""
    found = []
    for x, gain in ((weights.q, weights.constants.gain_q), (weights.k, weights.constants.gain_k)):
        assert x is not None
        if cfg.qk_norm is not None and "norm" in weights.steps:
            assert gain is not None
            x = Projection(x.normed_on_average(cfg.qk_norm, gain), x.offset, x.radius)
        found.append(x.expanded(cfg.n_heads).weight)
    return found[0], found[1]


def _most(
    cfg: HookedTransformerConfig, weights: LayerWeights, distance: Float[Tensor, " distance"]
) -> Float[Tensor, "head pair distance"]:
    """The most that each pair can add to q·k: with a QK-norm by its gains alone, else from the projections."""
    assert weights.q is not None and weights.k is not None and weights.blocks is not None
    q, k, blocks, constants = weights.q, weights.k, weights.blocks, weights.constants
    if cfg.qk_norm is not None and "norm" in weights.steps:
        assert constants.gain_q is not None and constants.gain_k is not None
        q = Projection.of_norm(cfg.qk_norm, constants.gain_q, constants.bias_q)
        k = Projection.of_norm(cfg.qk_norm, constants.gain_k, constants.bias_k)
    q, k = q.expanded(cfg.n_heads), k.expanded(cfg.n_heads)
    shape = (cfg.n_heads, blocks.frequency.numel(), distance.numel())
    if not (math.isfinite(q.radius) and math.isfinite(k.radius)):
        return torch.full(shape, torch.nan, dtype=torch.float64)
    if "clip" not in weights.steps:
        return pair_bounds(blocks, q, k, distance)
    # Clipping turns a pair, and never makes it longer.
    most_q, most_k = pair_lengths(blocks, q), pair_lengths(blocks, k)
    if cfg.clip_qkv is not None and weights.steps.index("clip") > (
        weights.steps.index("norm") if "norm" in weights.steps else -1
    ):
        most_q, most_k = (each.clamp_max(math.sqrt(2) * cfg.clip_qkv) for each in (most_q, most_k))
    return (blocks.stretch * most_q * most_k)[..., None].expand(shape)


def _means(
    cfg: HookedTransformerConfig, weights: LayerWeights, inputs: Float[Tensor, "token d_model"]
) -> tuple[Float[Tensor, "head d_head"], Float[Tensor, "kv_head d_head"]]:
    """The mean q and k over tokens, before they are turned."""
    found = []
    constants = weights.constants
    for x, gain, bias in (
        (weights.q, constants.gain_q, constants.bias_q),
        (weights.k, constants.gain_k, constants.bias_k),
    ):
        assert x is not None
        heads = x.of(inputs)
        for step in weights.steps:
            if step == "norm":
                assert cfg.qk_norm is not None and gain is not None
                heads = qk_normed(heads, cfg.qk_norm, gain, bias)
            elif step == "clip":
                assert cfg.clip_qkv is not None
                heads = heads.clamp(-cfg.clip_qkv, cfg.clip_qkv)
        found.append(heads.mean(0))
    return found[0], found[1]


def _padded(values: Float[Tensor, "head pair distance"], pairs: int, distances: int) -> np.ndarray:
    """With as many pairs and distances as the widest layer has."""
    out = np.full((len(values), pairs, distances), np.nan)
    out[:, : values.shape[1], : values.shape[2]] = values.numpy()
    return out
