"""A Capture of activations that are already cached: q, k and v of a TransformerBridge or of our own models."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import ActivationCache

from hooks import AttentionSpec, HookedTransformerConfig
from hooks.base.inputs import token_positions
from hooks.checks import shown
from hooks.config.steps import STEP_OUTPUT
from hooks.errors import InputError, StageError
from interp.recording.constants import layer_constants
from interp.recording.provenance import versions
from interp.tensors.capture_data import CaptureData
from interp.tensors.constants import LayerConstants
from interp.tensors.documents import check_counted
from interp.tensors.layers import LayerCapture

SpecChoice = AttentionSpec | Mapping[int, AttentionSpec] | None


def data_of_cache(
    cache: ActivationCache,
    spec: SpecChoice = None,
    tokens: Int[Tensor, "*batch pos"] | None = None,
    positions: Int[Tensor, " pos"] | Sequence[int] | None = None,
) -> CaptureData:
    """q, k and, where they were cached, v of every layer whose queries a cache holds; see `Capture.from_cache`."""
    model = getattr(cache, "model", None)
    if not hasattr(cache, "cache_dict") or model is None:
        raise InputError(
            f"from_cache reads an ActivationCache, not a {type(cache).__name__}: run_with_cache returns one "
            "(return_cache_object=True)"
        )
    own = isinstance(model.cfg, HookedTransformerConfig)
    layers = [layer for layer in range(model.cfg.n_layers) if _holds_queries(cache, layer)]
    if not layers:
        raise StageError(
            "the cache holds q of no layer: cache it, for instance with "
            "names_filter=lambda name: name.endswith(('hook_q', 'hook_k', 'hook_v', 'normed', 'rot_q', 'rot_k'))"
        )
    at = _positions(cache, positions)
    read = (_OwnCache if own else _BridgeCache)(cache, model, None if at is None else int(at.max()) + 1)
    held = {layer: read.layer(layer, _spec_of(spec, layer, model if own else None)) for layer in layers}
    n_tokens = _final(next(iter(held.values())))[0].shape[0]
    ids = torch.empty(0, dtype=torch.long) if tokens is None else _ids(tokens)
    if tokens is not None and len(ids) != n_tokens:
        raise InputError(f"{len(ids)} tokens given for a cache of {n_tokens} positions")
    if at is not None and len(at) != n_tokens:
        raise InputError(f"{len(at)} positions given for a cache of {n_tokens} positions")
    named = tokens is not None and getattr(model, "tokenizer", None) is not None
    return CaptureData(
        cfg=model.cfg if own else _measured_config(model.cfg, held),
        model_id=str(model.cfg.model_name),
        tokens=ids,
        str_tokens=list(model.to_str_tokens(ids)) if named else [str(i) for i in ids.tolist()],
        positions=torch.arange(n_tokens) if at is None else at,
        loss=torch.empty(0),
        provenance={
            "model": {"name": str(model.cfg.model_name), "class": type(model).__name__},
            "text": {"read": "an ActivationCache", "tokens": f"{n_tokens:,}"},
            "versions": versions(),
        },
        _layers=held,
    )


def _positions(cache: ActivationCache, given: Any) -> Int[Tensor, " pos"] | None:
    """Positions as given, or those that the model was run with; None where they count from 0 to the end."""
    given = getattr(cache, "position_ids", None) if given is None else given
    if given is None:
        return None
    try:
        size = given.numel() if isinstance(given, Tensor) else np.size(given)
    except (TypeError, ValueError) as error:
        raise InputError(f"positions={shown(given)}: give one position a token") from error
    found = token_positions(given, torch.empty(1, size), None, name="positions")[0]
    check_counted(found)
    return found


class _OwnCache:
    """Reads a cache of a `HookedTransformer`, native or attached: its registry knows the order of the steps."""

    def __init__(self, cache: ActivationCache, model: Any, rope_length: int | None):
        self.cache, self.model, self.rope_length = cache, model, rope_length

    def layer(self, layer: int, spec: AttentionSpec) -> LayerCapture:
        """The tensors of one layer."""
        steps = self.steps(layer)
        q, k = (self._stages(layer, tensor, steps) for tensor in "qk")
        v_name = self.final_value(layer)
        v = self.tensor(v_name, "v") if v_name in self.cache.cache_dict else None
        n_tokens = q[len(steps)].shape[0]
        return LayerCapture(
            steps=steps, q=q, k=k, v=v, constants=self.constants(layer, spec, self.rope_length or n_tokens)
        )

    def steps(self, layer: int) -> tuple[str, ...]:
        """Clip, norm and rope in the order of this layer."""
        return self.model.attention_steps(layer, "q")

    def final_value(self, layer: int) -> str:
        """Name of the values that the pattern multiplies."""
        return self.model.registry.canonical("hook_v_final", layer)

    def constants(self, layer: int, spec: AttentionSpec, n_tokens: int) -> LayerConstants:
        """Gains, frequencies and W_O of the layer."""
        return replace(layer_constants(self.model, layer, n_tokens), spec=spec)

    def _stages(self, layer: int, tensor: str, steps: tuple[str, ...]) -> dict[int, Tensor]:
        """The cached tensors by the number of steps behind them; the final one must be there."""
        points = [f"hook_{tensor}", *(STEP_OUTPUT[step].format(tensor) for step in steps)]
        names = [f"blocks.{layer}.attn.{point}" for point in points]
        if names[-1] not in self.cache.cache_dict:
            raise StageError(f"{names[-1]}, the {tensor} that enters the score, was not cached{self.instead}")
        return {done: self.tensor(name, tensor) for done, name in enumerate(names) if name in self.cache.cache_dict}

    instead = ": add it to names_filter"

    def tensor(self, name: str, tensor: str) -> Float[Tensor, "pos head d_head"]:
        """One cached tensor of the one sequence."""
        found = self.cache.cache_dict[name].detach()
        if not self.cache.has_batch_dim:
            return found
        if found.shape[0] != 1:
            raise InputError(
                f"the cache holds {found.shape[0]} sequences and a Capture one: pass cache.apply_slice_to_batch_dim(0)"
            )
        return found[0]


class _BridgeCache(_OwnCache):
    """Reads a cache of a TransformerBridge, whose steps show in the order in which its hooks fired."""

    instead = (
        ": add it to names_filter; where the bridge never fires it (phi3, gpt_neox), "
        "use capture(HookedTransformer.attach(bridge), tokens)"
    )

    def __init__(self, cache: ActivationCache, model: Any, rope_length: int | None):
        super().__init__(cache, model, rope_length)
        clip = getattr(getattr(getattr(model, "original_model", None), "config", None), "clip_qkv", None)
        if clip is not None:
            raise InputError(
                f"this model clips q, k and v to ±{clip} past no hook of the bridge; "
                "use capture(HookedTransformer.attach(bridge), tokens)"
            )

    def steps(self, layer: int) -> tuple[str, ...]:
        """The steps whose hooks the layer has, in the order in which the cache was filled."""
        order = {name: place for place, name in enumerate(self.cache.cache_dict)}
        placed = {}
        for step in ("norm", "rope"):
            name = f"blocks.{layer}.attn.{STEP_OUTPUT[step].format('q')}"
            if name in order:
                placed[step] = order[name]
            elif name in self.model.hook_dict:
                raise StageError(f"{name} was not cached, so the q that enters the score is not known{self.instead}")
        return tuple(sorted(placed, key=placed.__getitem__))

    def final_value(self, layer: int) -> str:
        """Name of the values that the pattern multiplies."""
        return f"blocks.{layer}.attn.hook_v"

    def constants(self, layer: int, spec: AttentionSpec, n_tokens: int) -> LayerConstants:
        """The spec alone: a bridge's weights are named by family."""
        return LayerConstants(None, None, None, None, inv_freq=None, attention_factor=1.0, w_o=None, spec=spec)

    def tensor(self, name: str, tensor: str) -> Float[Tensor, "pos head d_head"]:
        """One cached tensor; a bridge holds normed ones flat (OLMo 2) or heads first (Qwen 3)."""
        found = super().tensor(name, tensor)
        cfg = self.model.cfg
        heads = cfg.n_heads if tensor == "q" else cfg.n_key_value_heads or cfg.n_heads
        if found.ndim == 2:
            return found.unflatten(-1, (heads, -1))
        if not name.endswith("_normed") or found.shape[0] != heads:
            return found
        if found.shape[1] == heads:
            raise InputError(f"{name} has as many positions as heads ({heads}), in an order not known: add a token")
        return found.transpose(0, 1)


def _holds_queries(cache: ActivationCache, layer: int) -> bool:
    """Whether the cache has q of a layer at any stage."""
    points = ("hook_q", *(output.format("q") for output in STEP_OUTPUT.values()))
    return any(f"blocks.{layer}.attn.{point}" in cache.cache_dict for point in points)


def _spec_of(spec: SpecChoice, layer: int, own: Any) -> AttentionSpec:
    """The layer's spec: as given, or our own model's."""
    if isinstance(spec, AttentionSpec):
        return spec
    if spec is None and own is not None:
        return own.attention_spec(layer)
    if not isinstance(spec, Mapping | None) or (spec and not isinstance(spec.get(layer), AttentionSpec | None)):
        raise InputError(f"spec={shown(spec)}: give an AttentionSpec, or a mapping from layer to AttentionSpec")
    if spec is None or spec.get(layer) is None:
        raise InputError(
            f"no AttentionSpec for layer {layer}: a cache does not say scale, window and soft-cap; give "
            "spec=AttentionSpec(scale=…) for all layers, or a mapping from layer to spec"
        )
    return spec[layer]


def _final(held: LayerCapture) -> tuple[Tensor, Tensor]:
    """Queries and keys as they enter the score."""
    return held.q[len(held.steps)], held.k[len(held.steps)]


def _measured_config(cfg: Any, held: Mapping[int, LayerCapture]) -> HookedTransformerConfig:
    """What sizes and specs say of a foreign model; its rope stays None, because the cache does not prove one."""
    first = next(iter(held.values()))
    (_, n_heads, d_head), (_, n_kv_heads, _) = (tensor.shape for tensor in _final(first))
    specs = {layer: found.constants.spec for layer, found in held.items()}
    windows = [spec.window for spec in specs.values() if spec.window is not None]
    sliding = {layer for layer, spec in specs.items() if spec.window is not None}
    spec = first.constants.spec
    return HookedTransformerConfig(
        d_model=cfg.d_model,
        d_head=d_head,
        n_layers=cfg.n_layers,
        n_ctx=cfg.n_ctx,
        n_heads=n_heads,
        n_key_value_heads=n_kv_heads,
        d_vocab=cfg.d_vocab,
        d_mlp=cfg.d_mlp,
        act_fn="silu",
        normalization_type="RMS",
        layer_types=["sliding_attention" if i in sliding else "full_attention" for i in range(cfg.n_layers)],
        window_size=max(windows, default=None),
        attn_scale=1 / spec.scale,
        attn_scores_soft_cap=spec.softcap or -1.0,
        alibi_slopes=spec.alibi_slopes,
        learned_sinks=spec.sinks is not None,
        model_name=str(cfg.model_name),
        provenance={"rope": "not read from the cache; q and k are the model's own"},
    )


def _ids(tokens: object) -> Int[Tensor, " pos"]:
    """Token ids in one row."""
    try:
        ids = torch.as_tensor(tokens)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        ids = torch.empty(0)
    if ids.dtype not in (torch.int64, torch.int32) or ids.is_meta or ids.is_sparse:
        raise InputError(f"tokens={shown(tokens)}: give the token ids of the cache, int64 or int32")
    return ids.flatten().cpu()
