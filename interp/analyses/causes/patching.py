"""Patching and knocking out: what the metric becomes when a part of the model computes something else, or nothing."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from hooks import checks, recipes
from hooks.errors import InputError, StageError
from interp.analyses.causes.attributing import gradients_of
from interp.analyses.causes.running import Model, Run, attending, one_text
from interp.analyses.causes.schema import ACTIVATION_PATCHING, ATTRIBUTION_PATCHING, KNOCK_OUT_SWEEP
from interp.common.labels import labelled, result_of
from interp.common.progress import track
from interp.metrics import Metric
from interp.tensors.capture_data import CaptureData, check_capture
from interp.tensors.selection import Choice, asked_layers, part_of

At = Literal["z", "q", "k", "v", "residual"]
Heads = Literal["z", "q", "k", "v"]
By = Literal["head", "position", "block"]
_POINTS = {"z": "hook_z", "q": "hook_q_final", "k": "hook_k_final", "v": "hook_v_final"}


def activation_patching(
    model: Model,
    clean: Any,
    corrupted: Any,
    m: Metric,
    at: At = "z",
    by: By = "head",
    *,
    layers: int | Sequence[int] | None = None,
    positions: int | Sequence[int] | None = None,
) -> xr.Dataset:
    """Put what the model computed on a clean text in the place of what it computes on a corrupted one, part by part.

    ``restored = (m(patched) − m(corrupted)) / (m(clean) − m(corrupted))``: 1 where a part alone brings the metric back,
    0 where it changes nothing. Only what lies after the patch runs, in O(n) memory.

    Args:
        model: native or attached.
        clean: a text or token ids.
        corrupted: another of as many tokens.
        m: what is measured, on either.
        at: what is patched: "z" (what heads give), "q", "k", "v" as they enter attention, or "residual", the stream
            before a block.
        by: "head": each head by itself (kv heads for k and v) at all positions. "position": each position, all heads.
            "block": all of it in a layer.
        layers: which layers; None is all that attend (for the residual stream, all).
        positions: with by="position", which; None is all.

    Returns:
        Dataset over (layer), (layer, head), (layer, kv_head) or (layer, position): metric, restored (NaN where clean
        and corrupted do not differ in the metric).

    Raises:
        InputError: texts of different lengths, at and by that do not go together.
        StageError: no such layer.
        PositionError: no such position.

    Source:
        Vig et al. 2020 (arXiv:2004.12265); Meng et al. 2022 (arXiv:2202.05262).
    """
    at, by = checks.choice("at", at, get_args(At)), checks.choice("by", by, get_args(By))
    ids, others = one_text("clean", clean, model), one_text("corrupted", corrupted, model)
    m = _metric(m)
    if ids.shape != others.shape:
        raise InputError(
            f"clean has {ids.shape[1]:,} tokens and corrupted {others.shape[1]:,}: places are matched one by one, so "
            "give texts of as many tokens"
        )
    if at == "residual" and by == "head":
        raise InputError('at="residual" has no heads: patch it by="position" or by="block"')
    if positions is not None and by != "position":
        raise InputError(f'positions={checks.shown(positions)} goes with by="position"')
    chosen = _layers(model, layers, every=at == "residual")
    source, run = Run(model, ids, m, "running the clean text"), Run(model, others, m, "running the corrupted text")
    n_heads = model.cfg.n_kv_heads if at in "kv" else model.cfg.n_heads
    index, axis = _index(by, n_heads, ids.shape[1], positions, "kv_head" if at in "kv" else "head")
    found = np.empty((len(chosen), len(index)))
    for row, layer in enumerate(track(chosen, "patching")):
        patched = _patcher(at, by, layer, source, run)
        found[row] = [patched(i) for i in index]
    gap = source.value - run.value
    restored = (found - run.value) / gap if gap else np.full_like(found, np.nan)
    dims, coords = ("layer",), {"layer": list(chosen)}
    values = {"metric": found, "restored": restored}
    if axis is None:
        values = {name: x[:, 0] for name, x in values.items()}
    else:
        dims, coords = ("layer", axis), coords | {axis: index}
    out = xr.Dataset({name: (dims, x) for name, x in values.items()}, coords)
    out = labelled(out, ACTIVATION_PATCHING).assign_attrs(
        metric=run.metric.name, clean_metric=source.value, corrupted_metric=run.value, at=at, by=by
    )
    return result_of("activation_patching", out, f"{run.metric.name} with {at} of another text put in its place")


@torch.no_grad()
def attribution_patching(cap: CaptureData, clean: CaptureData, at: Heads = "z", *, by: By = "head") -> xr.Dataset:
    """To first order, what `activation_patching` would change: ``Σ (x_clean − x) · ∂m/∂x``, all from one gradient.

    Args:
        cap: a capture of the corrupted text made with ``gradient_of=``.
        clean: a capture of the clean text, of the same model and as many tokens.
        at: what is patched, as it enters attention or leaves it.
        by: as in `activation_patching`.

    Returns:
        Dataset over (layer), (layer, head), (layer, kv_head) or (layer, position): change, an estimate of m(patched) −
        m(corrupted).

    Raises:
        StageError: no gradient was captured, or clean lacks a layer.
        InputError: captures of texts of different lengths, or of different models.

    Source:
        Nanda 2023, Attribution Patching; arXiv 2310.10348.
    """
    gradients = gradients_of(cap)
    check_capture(clean, "clean")
    at, by = checks.choice("at", at, get_args(Heads)), checks.choice("by", by, get_args(By))
    if len(cap.positions) != len(clean.positions) or not cap.cfg.computes_like(clean.cfg):
        raise InputError(
            f"cap ({cap.model_id}, {len(cap.positions):,} tokens) and clean ({clean.model_id}, "
            f"{len(clean.positions):,} tokens) are not of one model and texts of as many tokens"
        )
    sums = []
    for layer in cap.layers:
        x, other = (_held(each, layer, at) for each in (cap, clean))
        moved = (other.double() - x.double()) * cap.gradient(layer, at).to(x.device).double()
        sums.append(moved.sum({"head": (0, 2), "position": (1, 2), "block": (0, 1, 2)}[by]).cpu().numpy())
    axis = {"head": "kv_head" if at in "kv" else "head", "position": "position"}.get(by)
    dims = ("layer",) if axis is None else ("layer", axis)
    coords = {"layer": list(cap.layers)} | ({} if axis is None else {axis: np.arange(len(sums[0]))})
    out = labelled(xr.Dataset({"change": (dims, np.array(sums))}, coords), ATTRIBUTION_PATCHING)
    out = out.assign_attrs(metric=gradients.metric, corrupted_metric=gradients.value, at=at, by=by)
    return result_of("attribution_patching", out, f"estimated change of {gradients.metric} by a patch, to first order")


def knock_out_sweep(
    model: Model,
    tokens: Any,
    m: Metric,
    segments: Mapping[str, int | slice | Sequence[int]] | None = None,
    *,
    layers: int | Sequence[int] | None = None,
) -> xr.Dataset:
    """What the metric becomes without each head, or when a head cannot see a part of the text.

    Without segments a head's z becomes 0. With segments, no query of the head sees the segment's keys, and the rest of
    its pattern renormalises; a query left without a key attends to nothing. Only what lies after runs.

    Args:
        model: native or attached.
        tokens: a text or token ids.
        m: what is measured.
        segments: the tokens of each part by its name: an index, a slice, or several indices.
        layers: which layers; None is all that attend.

    Returns:
        Dataset over (layer, head), or (layer, head, segment): metric, and change = metric − that of the whole model.

    Raises:
        InputError: no segments, or an empty one.
        StageError: no such layer.
        PositionError: no such position.

    Source:
        Michel et al. 2019 (arXiv:1905.10650); Geva et al. 2023 (arXiv:2304.14767), section 5.
    """
    ids = one_text("tokens", tokens, model)
    m = _metric(m)
    parts = None if segments is None else _segments(segments, ids.shape[1])
    chosen = _layers(model, layers, every=False)
    run = Run(model, ids, m)
    heads, names = range(model.cfg.n_heads), [""] if parts is None else list(parts)
    found = np.empty((len(chosen), len(heads), len(names)))
    for row, layer in enumerate(track(chosen, "knocking out")):
        for head in heads:
            for column, name in enumerate(names):
                if parts is None:
                    hook = "hook_z", recipes.ablate_heads([(layer, head)])
                else:
                    hidden = recipes.knock_out(range(ids.shape[1]), parts[name], heads=[head])
                    hook = "hook_attn_scores_rows", hidden
                found[row, head, column] = run.changed(layer, [(f"blocks.{layer}.attn.{hook[0]}", hook[1])])
    dims, coords = ("layer", "head"), {"layer": list(chosen), "head": list(heads)}
    if parts is None:
        found = found[..., 0]
    else:
        dims, coords = (*dims, "segment"), coords | {"segment": names}
    out = xr.Dataset({"metric": (dims, found), "change": (dims, found - run.value)}, coords)
    out = labelled(out, KNOCK_OUT_SWEEP).assign_attrs(metric=run.metric.name, metric_value=run.value)
    what = "each head" if parts is None else "each head's sight of a segment"
    return result_of("knock_out_sweep", out, f"{run.metric.name} without {what}")


def _metric(m: object) -> Metric:
    """The metric, if it is one."""
    return checks.instance("m", m, Metric, "a metric, such as metrics.logit(' Paris', position=-1)")


def _layers(model: Model, layers: int | Sequence[int] | None, *, every: bool) -> tuple[int, ...]:
    """The layers asked for, of those that can be patched."""
    there = tuple(range(model.cfg.n_layers)) if every else attending(model)
    chosen = asked_layers(there, layers)
    if missing := [layer for layer in chosen if layer not in there]:
        raise StageError(f"no attention in layer {missing[0]}: this model attends in layers {list(there)}")
    return chosen


def _index(by: By, n_heads: int, n: int, positions: Any, axis: str) -> tuple[list[int], str | None]:
    """What is patched one after another, and the dimension that it makes."""
    if by == "block":
        return [0], None
    if by == "head":
        return list(range(n_heads)), axis
    every = torch.arange(n)[:, None, None].expand(n, 1, 1)
    return part_of(every, positions, None)[:, 0, 0].tolist(), "position"


def _patcher(at: At, by: By, layer: int, source: Run, run: Run) -> Callable[[int], float]:
    """The metric of a run in which one part of a layer, by its index, is that of the source."""

    def place(i: int) -> tuple[slice | int, ...]:
        """Where part i is in [batch pos head …]."""
        every = slice(None)
        return {"head": (every, every, i), "position": (every, i), "block": (every,)}[by]

    if at == "residual":

        def on_stream(i: int) -> float:
            stream = run.stream(layer).clone()
            stream[place(i)] = source.stream(layer)[place(i)]
            return run.changed(layer, stream=stream)

        return on_stream
    point = f"blocks.{layer}.attn.{_POINTS[at]}"
    clean: Float[Tensor, "1 pos head d_head"] = source.tensor(layer, point)

    def on_heads(i: int) -> float:
        def put(x: Tensor, hook: object) -> Tensor:
            x = x.clone()
            x[place(i)] = clean[place(i)]
            return x

        return run.changed(layer, [(point, put)])

    return on_heads


def _segments(segments: Any, n: int) -> dict[str, Int[Tensor, " token"]]:
    """The tokens of each segment."""
    if not isinstance(segments, Mapping) or not segments or not all(isinstance(name, str) for name in segments):
        raise InputError(
            f"segments={checks.shown(segments)}: give each part's name and tokens, such as {{'needle': slice(9, 20)}}"
        )
    every, found = torch.arange(n)[:, None, None], {}
    for name, which in segments.items():
        choice: Choice = which
        tokens = part_of(every, choice, None).flatten().unique()
        if which is None or not len(tokens):
            raise InputError(f"segments[{name!r}]={checks.shown(which)}: give at least one token")
        found[name] = tokens
    return found


def _held(cap: CaptureData, layer: int, at: str) -> Float[Tensor, "pos head d_head"]:
    """z, q, k or v of a capture."""
    return {"z": cap.z, "q": cap.q, "k": cap.k, "v": cap.v}[at](layer)
