"""audit: what a model's settings and weights say about its attention to positions, before any text is read."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
import xarray as xr

from hooks import HookedTransformerConfig, checks
from hooks.attached.transformer import AttachedTransformer
from hooks.errors import InputError, StageError
from hooks.model import HookedTransformer
from hooks.modules.rotary import Rotary
from interp.analyses.weights.schema import AUDIT_HEADS, AUDIT_LAYERS
from interp.analyses.weights.wavelengths import Rotation, rotation_dataset, rotations_of, schedule_dataset
from interp.auditing.front import Audit
from interp.auditing.heads import head_numbers_of, missing_heads
from interp.auditing.proof import FORMATS, Proof, prove
from interp.auditing.relative import relative
from interp.auditing.source import (
    LayerWeights,
    Source,
    block_inputs,
    config_of,
    layers_of,
    read_layer,
    token_embeddings,
)
from interp.common.labels import labelled, result_of
from interp.common.progress import track
from interp.common.stacking import named_layer
from interp.tensors.selection import asked_layers

_TOKENS = 1024
_KIND = {"rms": "RMSNorm", "layer": "LayerNorm", "l2": "L2 norm"}
_SCOPE = {"head": "of each head", "per_head": "of each head, gains of its own", "full": "of all heads together"}


@torch.no_grad()
def audit(
    model: HookedTransformer | AttachedTransformer | HookedTransformerConfig,
    layers: int | Sequence[int] | None = None,
    *,
    factor: float = 4.0,
) -> Audit:
    """Everything that settings and weights prove or say of a model's attention by position; no text is read.

    The wavelength of every frequency pair against the length it was trained on, and what other schedules would change;
    for each layer the order of its steps, its gains, whether scores are relative, and the largest score that any input
    can make, with a proof for float16 and float8; for each head, pair and distance what ``W_Qᵀ R(Δ) W_K`` can add to a
    score, and adds on average over the model's token embeddings. What does not apply is NaN, and a reason stands
    beside it. Weights are read one layer at a time, of a streamed model from the file.

    Args:
        model: a model; or a config, of which everything is said that needs no weight.
        layers: which layers; None is all that attend.
        factor: how far the schedules compared stretch the trained length.

    Returns:
        An `Audit`: ``rotations``, ``schedules``, ``layers`` and ``heads`` are Datasets, ``print`` shows it on one
        screen, ``show(name)`` draws it, ``report(path)`` writes it as a page.

    Raises:
        InputError: no model, a factor below 1, or a weight that is not finite.
        StageError: a layer that is not there, or does not attend.

    Source:
        Bound of the base: arXiv 2405.14591. Critical dimension: arXiv 2310.05209. Bounds: `interp.score_bound`.
    """
    kinds = (HookedTransformer, AttachedTransformer, HookedTransformerConfig)
    if not isinstance(model, kinds):
        raise InputError(
            f"model={checks.shown(model)}: give a HookedTransformer, HookedTransformer.attach(model) of a transformers "
            "model, or a HookedTransformerConfig"
        )
    factor = checks.number("factor", factor, at_least=1, at_most=1e6)
    cfg, there = config_of(model), layers_of(model)
    chosen = asked_layers(there, layers)
    for layer in chosen:
        if layer not in there:
            raise StageError(f"layer {layer} is none of those that attend: {', '.join(map(str, there))}")
    rotations = rotations_of(cfg, _learned(model))
    distances = _distances(cfg, chosen)
    read = _Reader(model, cfg, distances, max((len(each.frequencies) for each in rotations), default=0))
    rows = [read.layer(layer) for layer in track(chosen, "auditing weights")]
    return Audit(
        name=cfg.model_name or type(model).__name__,
        cfg=cfg,
        rotations=rotation_dataset(rotations),
        schedules=schedule_dataset(rotations, factor),
        layers=_layer_dataset(cfg, chosen, distances, rows),
        heads=_head_dataset(chosen, distances, rows, rotations, cfg, read.n_tokens),
    )


class _Row(dict[str, object]):
    """The numbers and words of one layer, by the names of their variables."""


class _Reader:
    """Goes through layers with what they share: distances, and the tokens whose embeddings they are shown."""

    def __init__(self, source: Source, cfg: HookedTransformerConfig, distances: np.ndarray, pairs: int) -> None:
        self._source, self._cfg, self._distances, self._pairs = source, cfg, distances, pairs
        self._inputs = None
        if isinstance(source, HookedTransformer):
            self._inputs = block_inputs(source, token_embeddings(source, _TOKENS))
        self.n_tokens = 0 if self._inputs is None else len(self._inputs)

    def layer(self, layer: int) -> _Row:
        """Everything about one layer."""
        cfg = self._cfg
        with named_layer(layer):
            weights = read_layer(self._source, layer)
            word, why = relative(cfg, layer, weights.steps, weights.blocks, weights.constants, foreign=weights.foreign)
            proof = prove(cfg, weights, self._distances)
            missing = missing_heads(weights, (word, why))
            row = _Row(_facts(cfg, weights), relative=word, relative_reason=why, reason=missing)
            row |= _proven(cfg, weights, proof)
            if not missing and self._inputs is not None:
                row |= head_numbers_of(cfg, weights, self._inputs, self._distances, self._pairs)
        return row


def _distances(cfg: HookedTransformerConfig, layers: Sequence[int]) -> np.ndarray:
    """0 and the powers of two that some layer sees."""
    windows = [cfg.window(layer) for layer in layers]
    span = cfg.n_ctx if None in windows else min(cfg.n_ctx, max(w for w in windows if w is not None))
    return np.asarray([0, *(1 << power for power in range(64) if 1 << power < span)], dtype=np.int64)


def _learned(source: Source) -> dict[str, np.ndarray]:
    """Frequencies that are parameters, by layer type."""
    if not isinstance(source, HookedTransformer):
        return {}
    found = {}
    for name, rotary in source.rotary.items():
        frequencies = cast(Rotary, rotary).inv_freq
        if frequencies is not None:
            found[name] = frequencies.detach().cpu().double().numpy()
    return found


def _facts(cfg: HookedTransformerConfig, weights: LayerWeights) -> dict[str, object]:
    """What settings say of a layer."""
    norm = cfg.qk_norm if "norm" in weights.steps else None
    gains = {}
    for tensor, gain in (("q", weights.constants.gain_q), ("k", weights.constants.gain_k)):
        known = None if gain is None else gain.detach().cpu().double().numpy()
        rows = np.full((cfg.n_heads, 1), np.nan) if known is None else known
        rows = np.repeat(rows, cfg.n_heads // len(rows), 0)
        gains[f"gain_{tensor}"] = np.abs(rows).max(1)
        gains[f"gain_{tensor}_rms"] = np.sqrt((rows**2).mean(1))
    return {
        "layer_type": cfg.layer_type(weights.layer),
        "window": weights.constants.spec.window or 0,
        "steps": " → ".join(weights.steps) or "none",
        "norm": "" if norm is None else f"{_KIND[norm.kind]} {_SCOPE[norm.scope]}",
        **gains,
    }


def _proven(cfg: HookedTransformerConfig, weights: LayerWeights, proof: Proof) -> dict[str, object]:
    """What is proven of a layer."""
    window = weights.constants.spec.window
    keys = cfg.n_ctx if window is None else min(cfg.n_ctx, window)
    with np.errstate(over="ignore"):
        cap = 1 / (1 + (keys - 1) * np.exp(-2 * proof.largest))
    if cfg.alibi_slopes is not None:  # nothing bounds its scores from below
        cap = np.ones_like(cap)
    verdicts = np.where(np.isnan(proof.headroom), "no bound", np.where(proof.headroom > 1, "proven safe", "not proven"))
    return {
        "bound": proof.bound,
        "largest_bound": proof.largest,
        "bound_source": proof.source,
        "bound_reason": proof.reason,
        "sharpness_cap": np.where(np.isfinite(proof.largest), cap, 1.0),
        "headroom": proof.headroom,
        "verdict": verdicts,
    }


def _layer_dataset(
    cfg: HookedTransformerConfig, layers: Sequence[int], distances: np.ndarray, rows: Sequence[_Row]
) -> xr.Dataset:
    """Layers side by side."""
    found = {
        name: (each.dims, np.stack([np.asarray(row[name]) for row in rows])) for name, each in AUDIT_LAYERS.items()
    }
    coordinates = {
        "layer": list(layers),
        "head": np.arange(cfg.n_heads),
        "distance": distances,
        "dtype": list(FORMATS),
    }
    out = xr.Dataset(found, coordinates, {"n_layers": cfg.n_layers})
    out["dtype"].attrs = {"units": "", "description": "number format of q and k"}
    out["bound"].attrs["side"] = "both" if cfg.alibi_slopes is None else "above"
    return result_of("audit_layers", labelled(out, AUDIT_LAYERS), "what the weights prove of each head's scores")


def _head_dataset(
    layers: Sequence[int],
    distances: np.ndarray,
    rows: Sequence[_Row],
    rotations: Sequence[Rotation],
    cfg: HookedTransformerConfig,
    n_tokens: int,
) -> xr.Dataset:
    """Heads side by side, NaN where a layer has no such numbers."""
    pairs = max((len(each.frequencies) for each in rotations), default=0)
    sizes = {"layer": len(layers), "head": cfg.n_heads, "pair": pairs, "distance": len(distances)}
    found: dict[str, object] = {}
    for name, each in AUDIT_HEADS.items():
        if name in ("wavelength", "reason"):
            continue
        empty = np.full([sizes[dim] for dim in each.dims[1:]], np.nan)
        found[name] = (each.dims, np.stack([np.asarray(row.get(name, empty), dtype=np.float64) for row in rows]))
    wavelength = np.full((len(layers), pairs), np.nan)
    for rotation in rotations:
        with np.errstate(divide="ignore"):
            one = 2 * np.pi / rotation.frequencies
        for layer in set(rotation.layers) & set(layers):
            wavelength[list(layers).index(layer), : len(one)] = one
    found["wavelength"] = (("layer", "pair"), wavelength)
    found["reason"] = ("layer", [str(row["reason"]) for row in rows])
    coordinates = {
        "layer": list(layers),
        "head": np.arange(cfg.n_heads),
        "pair": np.arange(pairs),
        "distance": distances,
    }
    out = xr.Dataset(found, coordinates, {"n_layers": cfg.n_layers, "n_tokens": n_tokens})
    said = labelled(out, AUDIT_HEADS, n_tokens=f"{n_tokens:,}")
    return result_of("audit_heads", said, "what each head can add to a score in each frequency pair")
