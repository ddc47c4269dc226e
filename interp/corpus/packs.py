"""Short texts that run through a model in one row, where none sees another, and are told apart again."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from hooks import HookedTransformerConfig
from hooks.generation.key_values import same_rotation
from interp.tensors.capture_data import CaptureData
from interp.tensors.documents import document_slices
from interp.tensors.layers import HeldLayer, LayerCapture


def rows_of(lengths: Sequence[int], most: int, cfg: HookedTransformerConfig) -> list[list[int]]:
    """Which texts share a row, in their order: as many as have so many tokens together.

    A schedule that adapts to the length of what is read (dynamic, longrope) adapts to the longest text of a row, so a
    text never shares one with a text under whose length it would be rotated otherwise.

    Args:
        lengths: tokens of each text.
        most: tokens of a row; a text that has more has a row of its own.
        cfg: of the model.
    """
    rows: list[list[int]] = []
    used = 0
    for at, length in enumerate(lengths):
        if rows and used + length <= most and same_rotation(cfg, lengths[rows[-1][0]], length):
            rows[-1].append(at)
            used += length
        else:
            rows.append([at])
            used = length
    return rows


def counted(lengths: Iterable[int]) -> Int[Tensor, " pos"]:
    """Position of each token of a row, counted from 0 in each text."""
    return torch.cat([torch.arange(length) for length in lengths])


def apart(cap: CaptureData) -> list[CaptureData]:
    """Each text of a row as the capture of that text alone; without statistics, and nothing is copied."""
    return [_part(cap, tokens) for tokens in document_slices(cap.documents, len(cap.tokens))]


def _part(cap: CaptureData, tokens: slice) -> CaptureData:
    """The capture of one text of a row."""
    return CaptureData(
        cfg=cap.cfg,
        model_id=cap.model_id,
        tokens=cap.tokens[tokens],
        str_tokens=cap.str_tokens[tokens],
        positions=cap.positions[tokens],
        loss=cap.loss[tokens.start : max(tokens.stop - 1, 0)],
        provenance=cap.provenance,
        _layers={number: _layer_part(layer, tokens) for number, layer in cap._layers.items()},
    )


def _layer_part(layer: HeldLayer, tokens: slice) -> LayerCapture:
    """What a layer holds of these tokens."""
    q, k = ({done: x[tokens] for done, x in side.items()} for side in (layer.q, layer.k))
    return LayerCapture(layer.steps, q, k, None if layer.v is None else layer.v[tokens], layer.constants)
