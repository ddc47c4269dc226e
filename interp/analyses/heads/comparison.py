"""Two captures of the same tokens held against each other: what a schedule, an order, a dtype or a model changes."""

import numpy as np
import torch
import xarray as xr

from hooks import checks
from hooks.errors import InputError, StageError
from interp.analyses.heads.schema import COMPARE, MEASURED, RANKED
from interp.analyses.position.sinks import first_token_mass
from interp.analyses.scores.moments import ScoreMoments
from interp.common.labels import check_one_result, labelled, result_of
from interp.common.progress import track
from interp.common.stacking import stack_layers
from interp.common.words import number_ranges
from interp.tensors.capture_data import CaptureData, check_capture

_HEAD = ("layer", "head")


def compare(cap_a: CaptureData, cap_b: CaptureData, labels: tuple[str, str] = ("a", "b")) -> xr.Dataset:
    """What differs between two captures of the same tokens, by head and by distance; differences are b − a.

    Made for one text under two schedules, two orders of norm and rotation, two dtypes, or two models whose layers
    have as many heads. Layers that only one capture holds are left out, and the attribute ``layers`` says so.

    Args:
        cap_a: what to compare with.
        cap_b: what changed.
        labels: names of the two, along the dimension ``capture``.

    Returns:
        Over (capture, layer, head): first_token_mass, mean_distance, entropy, score_mean, score_std, score_min,
        score_max, positional_r2; over (capture, layer, head, distance): attention_at_distance, score_at_distance; over
        (capture, position), where both captures hold it: loss. Each comes with ``…_difference``, without the
        dimension ``capture``. Over (layer, head): profile_divergence, the share of its attention, from 0 to 1, that a
        head moved to other distances.

    Raises:
        InputError: other tokens, another number of heads, labels that are not two different names, or a capture of
            packed documents.
        StageError: no layer that both hold.
    """
    if not isinstance(labels, tuple | list) or len(checks.words("labels", labels)) != 2:
        raise InputError(f"labels={checks.shown(labels)}: give two different names")
    for name, cap in (("cap_a", cap_a), ("cap_b", cap_b)):
        check_capture(cap, name).check_one_text("compare")
    check_same_text(cap_a, cap_b, labels)
    layers = [layer for layer in cap_a.layers if layer in cap_b.layers]
    _check_layers(cap_a, cap_b, layers, labels)
    a, b = xr.align(_measure(cap_a, layers), _measure(cap_b, layers), join="outer")
    out = xr.Dataset(coords={"capture": list(labels)})
    both = [name for name in MEASURED if name in a and name in b]
    for name in both:
        out[name] = xr.concat([a[name], b[name]], out["capture"], join="exact")
    for name in both:
        out[f"{name}_difference"] = b[name] - a[name]
    out["profile_divergence"] = abs(b["share"].fillna(0) - a["share"].fillna(0)).sum("distance") / 2
    out = out.assign_coords(layer_type=("layer", [cap_b.cfg.layer_type(layer) for layer in layers]))
    out = out.assign_attrs(layers=_layers_in_words(cap_a, cap_b, layers, labels))
    what = f"{labels[1]} compared with {labels[0]} on the same tokens"
    return result_of("compare", labelled(out, COMPARE, a=labels[0], b=labels[1]), what)


def ranked(comparison: xr.Dataset, by: str = "profile_divergence", n: int = 10) -> xr.Dataset:
    """The heads that changed most.

    Args:
        comparison: what `compare` returned.
        by: a variable over (layer, head), such as ``entropy_difference``; its size counts, not its sign.
        n: how many heads.

    Returns:
        layer and head over rank, and every variable over (layer, head) of these heads.

    Raises:
        InputError: there is no such variable, n is below 1, or comparisons of several texts.
    """
    n = checks.whole("n", n, at_least=1)
    checks.instance("comparison", comparison, xr.Dataset, "what interp.compare returned")
    if isinstance(by, str) and by in comparison and set(_HEAD) < set(comparison[by].dims):
        check_one_result("comparison", comparison[by], (*_HEAD, "capture", "distance"))
    per_head = [str(name) for name, v in comparison.data_vars.items() if set(v.dims) == set(_HEAD)]
    if not isinstance(by, str) or by not in per_head:
        raise InputError(f"by={checks.shown(by)}: rank by one of {', '.join(per_head) or 'none'}")
    rows = comparison[per_head].stack(rank=_HEAD, create_index=False)
    size = np.nan_to_num(np.abs(rows[by].values), nan=-np.inf)
    rows = rows.isel(rank=np.argsort(-size, kind="stable")[:n]).reset_coords(_HEAD)
    rows = rows.assign_coords(rank=np.arange(rows.sizes["rank"]))
    rows, (a, b) = rows.assign_attrs(comparison.attrs, by=by), comparison["capture"].values
    return result_of("ranked", labelled(rows, RANKED, a=a, b=b), f"heads that changed most, by {by}")


def _measure(cap: CaptureData, layers: list[int]) -> xr.Dataset:
    """Everything that is compared, of one capture; with the share of attention by distance."""
    out = stack_layers({layer: _layer(cap, layer) for layer in track(layers, "comparing layers")})
    if len(cap.loss):
        out["loss"] = xr.DataArray(cap.loss.numpy(), {"position": cap.positions.numpy()[1:]}, ("position",))
    return out


def _layer(cap: CaptureData, layer: int) -> xr.Dataset:
    """What is compared of one layer; the statistics are read a layer at a time because all of them are large."""
    stats = cap.statistics([layer]).sel(layer=layer, drop=True)
    moments = ScoreMoments.of(stats)
    by_head = {
        "first_token_mass": first_token_mass(cap, [layer]).values[0],
        "mean_distance": stats["mean_distance"].mean("query", dtype=np.float64).values,
        "entropy": stats["entropy"].mean("query", dtype=np.float64).values,
        "score_mean": moments.mean,
        "score_std": moments.std,
        "score_min": moments.low,
        "score_max": moments.high,
        "positional_r2": stats["positional_r2"].values,
    }
    by_distance = {
        "attention_at_distance": stats["attention"] / stats["count"].where(stats["count"] > 0),
        "score_at_distance": stats["score_mean"],
        "share": stats["attention"] / stats["attention"].sum("distance"),
    }
    # float32: at 32k tokens these are the larger part of the result.
    return xr.Dataset(
        {name: ("head", values.astype(np.float64)) for name, values in by_head.items()}
        | {
            name: (("head", "distance"), values.transpose("head", "distance").values.astype(np.float32))
            for name, values in by_distance.items()
        },
        {"head": stats["head"].values, "distance": stats["distance"].values},
    )


def check_same_text(cap_a: CaptureData, cap_b: CaptureData, labels: tuple[str, str]) -> None:
    """Raise an InputError that names the first token in which the two differ."""
    a, b = cap_a.tokens, cap_b.tokens
    for cap, label in zip((cap_a, cap_b), labels, strict=True):
        if len(cap.tokens) < 2:
            raise InputError(
                f"{label} has {len(cap.tokens)} tokens, so nothing says that both read the same text: "
                "capture at least 2, and give Capture.from_cache its tokens"
            )
    n = min(len(a), len(b))
    other = torch.nonzero(a[:n] != b[:n])
    if len(other):
        at = int(other[0])
        shown = [f"{label} {cap.str_tokens[at]!r}" for label, cap in zip(labels, (cap_a, cap_b), strict=True)]
        raise InputError(
            f"the captures read different tokens, first at {at}: {shown[0]}, {shown[1]}. Capture both on the same "
            "token ids, for instance capture(other_model, cap.tokens)"
        )
    if len(a) != len(b):
        raise InputError(
            f"{labels[0]} read {len(a):,} tokens and {labels[1]} {len(b):,}, the first {n:,} of them the same: capture "
            f"both with n_tokens={n}"
        )


def _check_layers(cap_a: CaptureData, cap_b: CaptureData, layers: list[int], labels: tuple[str, str]) -> None:
    """Raise unless the captures share a layer and have as many heads."""
    if not layers:
        held = [f"{label} {number_ranges(cap.layers)}" for label, cap in zip(labels, (cap_a, cap_b), strict=True)]
        raise StageError(f"no layer is in both captures: {held[0]}; {held[1]}. Capture with the same layers=")
    heads = [cap.q(layers[0]).shape[1] for cap in (cap_a, cap_b)]
    if heads[0] != heads[1]:
        raise InputError(
            f"{labels[0]} has {heads[0]} heads and {labels[1]} {heads[1]}: heads of two such models do not correspond. "
            "Compare models of one shape, or put head_summary of each side by side"
        )


def _layers_in_words(cap_a: CaptureData, cap_b: CaptureData, layers: list[int], labels: tuple[str, str]) -> str:
    """Which layers are compared, and which only one capture holds."""
    words = number_ranges(layers)
    for label, cap in zip(labels, (cap_a, cap_b), strict=True):
        left_out = [layer for layer in cap.layers if layer not in layers]
        if left_out:
            words += f"; only in {label}: {number_ranges(left_out)}"
    return words
