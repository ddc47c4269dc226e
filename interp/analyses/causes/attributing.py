"""Which heads moved a metric, and through which tokens, distances, frequency pairs and steps, to first order."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from hooks import checks
from hooks.errors import InputError, StageError
from interp.analyses.causes.schema import ATTRIBUTION, TOP_EDGES, TOP_TOKENS
from interp.analyses.position.frequencies import pairs_of
from interp.common.labels import labelled, result_of
from interp.common.progress import track
from interp.common.stacking import named_layer, stack_layers
from interp.measure.effects import SIGNS, Layer, attention_effects, effect_blocks
from interp.tensors.capture_data import CaptureData, check_capture
from interp.tensors.gradients import Gradients
from interp.tensors.selection import asked_layers, head_numbers
from interp.tensors.stages import STAGES

By = Literal["key", "query"]


@torch.no_grad()
def attribution(cap: CaptureData, layers: int | Sequence[int] | None = None, *, map_size: int = 128) -> xr.Dataset:
    """Where the metric came from: ``a_ij = p_ij (g_i · v_j)`` with g = ∂m/∂z, summed in every way in one pass.

    To first order a_ij is what the metric would lose if query i got nothing from key j. The sums over keys, over
    distances and over the map are one and the same, ``effect = Σ_i z_i · g_i``; positive and negative cells are kept
    apart as well, since a head may speak for and against at once. Memory is O(n · block): any length. If hooks edited
    scores, pattern or z while the capture was made, the pattern here is that of q and k and not the edited one.

    Args:
        cap: a capture made with ``gradient_of=``.
        layers: which of its layers; None is all of them.
        map_size: side of the pooled map in cells.

    Returns:
        Dataset over (layer, head): effect, score_effect, effect_of_rest; effect_by_key, effect_by_query,
        effect_by_distance, effect_map, effect_by_pair along one more dimension; each of the summed effects also as
        ``…_positive`` and ``…_negative``; query_effect (layer, head, stage), key_effect (layer, kv_head, stage),
        value_effect (layer, kv_head). NaN where a layer has no such distance, pair or stage. The coordinate key_token
        holds the tokens.

    Raises:
        StageError: no gradient was captured, or a layer that was not.
        InputError: tensors that are not finite.

    Source:
        Nanda 2023, Attribution Patching; arXiv 2310.10348, 2403.00745.
    """
    gradients = gradients_of(cap)
    chosen = asked_layers(cap.layers, layers)
    map_size = checks.whole("map_size", map_size, at_least=1)
    stages = [stage for stage in STAGES if any(stage in cap.stages(layer) for layer in chosen)]
    found = {}
    for layer in track(chosen, "attributing"):
        with named_layer(layer):
            found[layer] = _layer_effects(cap, layer, map_size, stages)
    out = stack_layers(found)
    out = out.assign_coords(key_token=("key", cap.str_tokens or [""] * len(cap.positions)))
    out = labelled(out, ATTRIBUTION).assign_attrs(metric=gradients.metric, metric_value=gradients.value)
    return result_of("attribution", out, f"effects on {gradients.metric}, to first order")


@torch.no_grad()
def top_edges(
    cap: CaptureData,
    n: int = 20,
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
) -> xr.Dataset:
    """The single readings, one query of one key in one head, with the largest effects of either sign.

    Args:
        cap: a capture made with ``gradient_of=``.
        n: how many; there are no more than pairs with an effect.
        layers: which of its layers; None is all of them.
        heads: which heads; None is all of them.

    Returns:
        Dataset over rank, the largest |effect| first: layer, head, effect, query, key, distance, and both tokens.

    Raises:
        StageError: no gradient was captured, no such layer or head.
    """
    gradients = gradients_of(cap)
    n = checks.whole("n", n, at_least=1)
    chosen = asked_layers(cap.layers, layers)
    wanted = torch.tensor(head_numbers(heads, cap.cfg.n_heads))
    best = torch.empty(0, 5, dtype=torch.float64)
    for layer in track(chosen, "looking for edges"):
        with named_layer(layer):
            for each in effect_blocks(_layer(cap, layer)):
                best = torch.cat((best, _largest(each.cells, each.block, each.keys.start, wanted, layer, n)))
                best = best[best[:, 0].abs().argsort(descending=True, stable=True)[:n]]
    effect, (layer, head, query, key) = best[:, 0].numpy(), best[:, 1:].long().T.numpy()
    positions = cap.positions.cpu().numpy()
    tokens = np.array(cap.str_tokens or [""] * len(positions), dtype=str)
    values = {
        **{"layer": layer, "head": head, "effect": effect, "query": query, "key": key},
        **{"distance": positions[query] - positions[key], "query_token": tokens[query], "key_token": tokens[key]},
    }
    out = xr.Dataset({name: (TOP_EDGES[name].dims, x) for name, x in values.items()}, {"rank": np.arange(len(effect))})
    out = labelled(out, TOP_EDGES).assign_attrs(metric=gradients.metric, metric_value=gradients.value)
    return result_of("top_edges", out, f"single readings with the largest effects on {gradients.metric}")


def top_tokens(
    effects: xr.Dataset,
    n: int = 10,
    by: By = "key",
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
) -> xr.Dataset:
    """The tokens with the largest effects of either sign, over some heads or all.

    Args:
        effects: what `attribution` gave.
        n: how many.
        by: "key" for what was read at a token, "query" for what was given to it.
        layers: which of the layers; None is all of them.
        heads: which heads; None is all of them.

    Returns:
        Dataset over rank, the largest |effect| first: token, position, effect, its positive and negative part.

    Raises:
        InputError: another Dataset.
        StageError: no such layer or head.
    """
    by = checks.choice("by", by, ("key", "query"))
    n = checks.whole("n", n, at_least=1)
    if not isinstance(effects, xr.Dataset) or effects.attrs.get("analysis") != "attribution":
        raise InputError(f"effects={checks.shown(effects)}: give what attribution(cap) returned")
    there = effects["layer"].values.tolist()
    chosen = asked_layers(there, layers)
    if not {*chosen} <= {*there}:
        raise StageError(f"layers {list(chosen)} are not all in these effects, which hold {there}")
    part = effects.sel(layer=list(chosen)).isel(head=list(head_numbers(heads, effects.sizes["head"])))
    sums = {name: part[f"{name.replace('effect', f'effect_by_{by}')}"].sum(("layer", "head")).values for name in _PARTS}
    order = np.argsort(-np.abs(sums["effect"]), kind="stable")[:n]
    values = {"token": effects["key_token"].values[order], "position": effects[by].values[order]}
    values |= {name: x[order] for name, x in sums.items()}
    out = xr.Dataset({name: (("rank",), x) for name, x in values.items()}, {"rank": np.arange(len(order))})
    said = {name: effects.attrs[name] for name in ("metric", "metric_value")}
    out = labelled(out, TOP_TOKENS).assign_attrs(said)
    return result_of("top_tokens", out, f"tokens with the largest effects on {said['metric']}")


_STAGED: tuple[tuple[str, Literal["q", "k"], str], ...] = (
    ("query_effect", "q", "head"),
    ("key_effect", "k", "kv_head"),
)
_PARTS = ("effect", *(f"effect_{sign}" for sign in SIGNS))


def gradients_of(cap: CaptureData) -> Gradients:
    """The gradients of a capture.

    Raises:
        InputError: no capture.
        StageError: a capture without.
    """
    found = check_capture(cap).gradients
    if found is None:
        raise StageError(
            "this capture has no gradients: capture(model, tokens, gradient_of=metrics.logit(…)) takes them"
        )
    return found


def _layer(cap: CaptureData, layer: int) -> Layer:
    """What the effects of a layer are made of."""
    q, k, v, g = cap.q(layer), cap.k(layer), cap.v(layer), cap.gradient(layer, "z")
    index = torch.arange(len(cap.positions))
    return Layer(q=q, k=k, v=v, g=g, spec=cap.spec(layer), positions=index, documents=cap.documents)


def _layer_effects(cap: CaptureData, layer: int, map_size: int, stages: list[str]) -> xr.Dataset:
    """The effects of one layer."""
    tensors = _layer(cap, layer)
    found = attention_effects(tensors, map_size)
    axes: dict[str, tuple[tuple[str, ...], Tensor]] = {
        "effect": ((), found.query.sum(-1)),
        "effect_by_key": (("key",), found.key),
        "effect_by_query": (("query",), found.query),
        "effect_by_distance": (("distance",), found.distance),
        "effect_map": (("map_query", "map_key"), found.map),
    }
    pairs, rest = _pair_effects(cap, layer)
    axes["effect_by_pair"] = ("pair",), pairs
    kind: Any = np.float64 if tensors.dtype == torch.float64 else np.float32
    values: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    for name, (dims, signed) in axes.items():
        parts = {name: signed.sum(1), **{f"{name}_{sign}": signed[:, i] for i, sign in enumerate(SIGNS)}}
        values |= {each: (("head", *dims), x.cpu().numpy().astype(kind)) for each, x in parts.items()}
    values["score_effect"] = ("head",), found.score.cpu().numpy().astype(kind)
    values["effect_of_rest"] = ("head",), rest.cpu().numpy().astype(kind)
    for name, tensor, axis in _STAGED:
        by_stage = [_of_stage(cap, layer, tensor, stage) for stage in stages]
        values[name] = (axis, "stage"), torch.stack(by_stage, -1).cpu().numpy().astype(kind)
    values["value_effect"] = ("kv_head",), _product(cap.v(layer), cap.gradient(layer, "v")).cpu().numpy().astype(kind)
    n, side = len(cap.positions), found.map.shape[-1]
    middles = (np.arange(side) + 0.5) * n / side - 0.5
    labels = cap.labels.cpu().numpy()
    coords: dict[str, Any] = {"key": labels, "query": labels, "stage": stages, "map_query": middles, "map_key": middles}
    coords |= {"head": np.arange(cap.cfg.n_heads), "kv_head": np.arange(cap.cfg.n_kv_heads)}
    coords |= {"distance": found.low + np.arange(found.distance.shape[-1]), "pair": np.arange(pairs.shape[-1])}
    return xr.Dataset(values, coords)


def _product(x: Tensor, gradient: Tensor) -> Float[Tensor, " head"]:
    """Σ x · ∂m/∂x over positions and features, in float64."""
    return (x.double() * gradient.to(x.device).double()).sum((0, 2))


def _of_stage(cap: CaptureData, layer: int, tensor: Literal["q", "k"], stage: str) -> Float[Tensor, " head"]:
    """The effect of q or k at a stage; NaN where the layer has none."""
    held = cap.q if tensor == "q" else cap.k
    if stage not in cap.stages(layer):
        return torch.full((cap.cfg.n_heads if tensor == "q" else cap.cfg.n_kv_heads,), torch.nan, dtype=torch.float64)
    return _product(held(layer, stage), cap.gradient(layer, tensor, stage))


def _pair_effects(cap: CaptureData, layer: int) -> tuple[Float[Tensor, "head sign pair"], Float[Tensor, " head"]]:
    """Effects of the frequency pairs of q as it enters the score, and of the features that do not turn."""
    x, gradient = cap.q(layer).double(), cap.gradient(layer, "q").double()
    cells = x * gradient.to(x.device)  # [pos head d_head]
    try:
        features = pairs_of(cap, layer).features.to(x.device)
    except StageError:  # it does not rotate, or nobody knows how
        features = torch.empty(0, 2, dtype=torch.long, device=x.device)
    still = torch.ones(x.shape[-1], dtype=torch.bool, device=x.device)
    still[features.flatten()] = False
    turning = cells[..., features].sum(-1)
    signed = torch.stack((turning.clamp_min(0).sum(0), turning.clamp_max(0).sum(0)), 1)
    return signed, cells[..., still].sum((0, 2))


def _largest(cells: Tensor, block: Any, first_key: int, wanted: Tensor, layer: int, n: int) -> Float[Tensor, "edge 5"]:
    """The n largest cells of a block: effect, layer, head, query, key."""
    heads = torch.arange(block.heads.start, block.heads.stop)
    cells = cells[torch.isin(heads, wanted).to(cells.device)]
    heads = heads[torch.isin(heads, wanted)]
    flat = cells.flatten()
    if not flat.numel():
        return torch.empty(0, 5, dtype=torch.float64)
    at = flat.abs().topk(min(n, flat.numel())).indices
    at = at[flat[at] != 0]
    head, row, key = torch.unravel_index(at.cpu(), cells.shape)
    query = block.work.visibility.row[block.rows].cpu()[row]
    columns = (flat[at].cpu(), torch.full_like(head, layer), heads[head], query, key + first_key)
    return torch.stack([x.double() for x in columns], 1)
