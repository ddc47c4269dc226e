"""What the Datasets say, in words and numbers."""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from interp.analyses.position.sinks import SINK_THRESHOLD
from interp.common.words import KIND_NAME, head_name, visible_text
from interp.tensors.capture_data import CaptureData


@dataclass(frozen=True)
class Card:
    """One number that stands at the top of the report."""

    value: str
    label: str
    note: str = ""


def number(value: float) -> str:
    """A number as a reader wants it: three significant digits, a true minus, no exponent where it can be helped."""
    value = float(value)
    if not np.isfinite(value):
        return "–"
    rounded = float(f"{value:.3g}")
    text = f"{rounded:,.0f}" if 1000 <= abs(rounded) < 1e7 else f"{rounded:.3g}"
    return text.replace("-", "−")


def kinds(ranges: xr.Dataset) -> dict[str, np.ndarray]:
    """The layers of each kind, sliding first, only kinds that there are."""
    layer_type = ranges["layer_type"].values
    found = {kind: ranges["layer"].values[layer_type == kind] for kind in KIND_NAME}
    return {kind: layers for kind, layers in found.items() if len(layers)}


def cards(cap: CaptureData, ranges: xr.Dataset, sinks: xr.DataArray, typical: xr.DataArray) -> list[Card]:
    """The numbers at the top."""
    mean_loss = float(cap.loss.double().mean())
    resting = int((sinks > SINK_THRESHOLD).sum())
    shown = [
        Card(f"{len(cap.tokens):,}", "tokens read", f"positions 0 – {len(cap.tokens) - 1:,}"),
        Card(f"{mean_loss:.3f}", "nats per token", f"perplexity {number(np.exp(mean_loss))}"),
        Card(f"{resting} of {sinks.size}", "sink heads", f"over {SINK_THRESHOLD:.0%} on token 0"),
    ]
    for kind, layers in kinds(ranges).items():
        middle = float(np.median(typical.sel(layer=layers)))
        shown.append(Card(number(middle), "tokens back", f"half the attention, median {KIND_NAME[kind]} head"))
    nearest = _nearest_to_bound(ranges)
    if nearest is not None:
        layer, head, share = nearest
        shown.append(Card(f"{share:.0%}", "of the score bound", f"the nearest head, {head_name(layer, head)}"))
    return shown


def sentences(
    cap: CaptureData, r2: xr.DataArray, ranges: xr.Dataset, sinks: xr.DataArray, typical: xr.DataArray
) -> list[str]:
    """The findings, one sentence each."""
    return [
        _distance_sentence(r2, ranges, typical),
        _sink_sentence(cap, sinks),
        _range_sentence(ranges),
        *_bound_sentences(ranges),
        _loss_sentence(cap),
    ]


def _distance_sentence(r2: xr.DataArray, ranges: xr.Dataset, typical: xr.DataArray) -> str:
    """How far heads look, by kind of layer, and the most positional head."""
    parts = [
        f"{number(float(np.median(typical.sel(layer=layers))))} tokens in {KIND_NAME[kind]} layers"
        for kind, layers in kinds(ranges).items()
    ]
    layer, head, most = _largest(r2)
    return (
        f"The median head spends half of its attention within {' and '.join(parts)}. Distance alone explains the "
        f"scores best in {head_name(layer, head)}: {most:.0%} of their variance."
    )


def _sink_sentence(cap: CaptureData, sinks: xr.DataArray) -> str:
    """How many heads leave their attention on the first token."""
    layer, head, most = _largest(sinks)
    many = int((sinks > SINK_THRESHOLD).sum())
    token = cap.str_tokens[0]
    shown = f"“{visible_text(token)}”"
    return (
        f"{many} of {sinks.size} heads leave more than {SINK_THRESHOLD:.0%} of their attention on the first token, "
        f"{shown}; {head_name(layer, head)} leaves {most:.0%}."
    )


def _range_sentence(ranges: xr.Dataset) -> str:
    """The widest range at each stage."""
    parts = []
    for stage, label in zip(ranges["stage"].values, ranges["stage_label"].values, strict=True):
        part = ranges.sel(stage=stage)
        low, high = float(part["score_min"].min()), float(part["score_max"].max())
        words = str(label)[0].lower() + str(label)[1:]
        parts.append(f"{number(low)} to {number(high)} {words.replace('as it enters', 'as they enter')}")
    return f"Scores range from {'; from '.join(parts)}."


def _bound_sentences(ranges: xr.Dataset) -> list[str]:
    """How the scores that enter softmax stand to their bound."""
    nearest = _nearest_to_bound(ranges)
    if nearest is None:
        return ["This model proves no bound on its scores: no QK-norm, no clipping and no soft-cap was found in it."]
    layer, head, share = nearest
    bound = ranges["bound"].sel(stage="final")
    low, high = number(float(bound.min())), number(float(bound.max()))
    limit = f"±{high}" if low == high else f"±{low} to ±{high}, depending on the head"
    return [
        f"The weights prove that no text of this length can push a score beyond {limit}. "
        f"{head_name(layer, head)} comes nearest, at {share:.1%} of its bound."
    ]


def _loss_sentence(cap: CaptureData) -> str:
    """The loss at the start and at the end of the text."""
    loss = cap.loss.double()
    quarter = max(1, len(loss) // 4)
    first, last = float(loss[:quarter].mean()), float(loss[-quarter:].mean())
    return f"The mean loss is {first:.2f} nats over the first quarter of the text and {last:.2f} over the last."


def _nearest_to_bound(ranges: xr.Dataset) -> tuple[int, int, float] | None:
    """The head whose scores come nearest to their bound as they enter softmax."""
    share = ranges["utilisation"].sel(stage="final")
    return _largest(share) if bool(np.isfinite(share).any()) else None


def _largest(values: xr.DataArray) -> tuple[int, int, float]:
    """Layer, head and value of the largest entry."""
    array = values.transpose("layer", "head").fillna(-np.inf).values
    row, column = np.unravel_index(int(array.argmax()), array.shape)
    return int(values["layer"][row]), int(values["head"][column]), float(array[row, column])
