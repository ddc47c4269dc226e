"""pair_attainment: how near the frequency pairs of a head come to the most that their norms allow."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from interp.analyses.position.frequencies import pairs_of
from interp.analyses.scores.schema import PAIR_ATTAINMENT
from interp.common.finite import check_finite
from interp.common.labels import labelled, result_of
from interp.common.progress import track
from interp.common.stacking import named_layer
from interp.measure.pair_products import largest_pair_products
from interp.measure.visibility import Visibility
from interp.tensors.capture_data import CaptureData, check_capture
from interp.tensors.rotation import rotating_layers
from interp.tensors.selection import head_numbers


def pair_attainment(
    cap: CaptureData,
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
) -> xr.Dataset:
    """How much of the Cauchy–Schwarz bound each RoPE frequency pair reaches on this text.

    A pair adds ``scale · (q_ia k_ja + q_ib k_jb)`` to a score, at most ``scale · max_i ‖q_i‖ · max_j ‖k_j‖`` over its
    two features. A pair comes near where queries and keys point the same way: a slow pair then holds what the head
    looks for, and a fast one at which distance.

    Args:
        cap: a capture of a model that rotates.
        layers: which of its layers that rotate; None is all of them.
        heads: which query heads; None is all of them.

    Returns:
        Dataset over (layer, head, pair): largest, the most that the pair adds to a score over all visible query-key
        pairs; pair_bound; attainment, largest / pair_bound, NaN where the bound is 0; wavelength (layer, pair). NaN
        where a layer has no such pair.

    Raises:
        InputError: NaN or infinity in q or k.
        StageError: no such layer or head, or a layer whose frequencies are not known.

    Source:
        arXiv 2410.06205, section 4 (383.00 of 483.97 in a positional head of Gemma 7B).
    """
    chosen = rotating_layers(check_capture(cap), layers)
    pairs = [pairs_of(cap, layer) for layer in chosen]
    index = np.array(head_numbers(heads, cap.cfg.n_heads))
    shape = len(chosen), len(index), max(each.inv_freq.numel() for each in pairs)
    largest, bound, wavelength = np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape[::2], np.nan)
    for at, layer in enumerate(track(chosen, "measuring frequency pairs")):
        q, k, spec, own = cap.q(layer), cap.k(layer), cap.spec(layer), pairs[at]
        with named_layer(layer):
            check_finite(rows="position", q=q, k=k)
        see = Visibility.of(spec, cap.positions, cap.positions, documents=cap.documents)
        there, group = slice(0, own.inv_freq.numel()), q.shape[1] // k.shape[1]
        for row, head in enumerate(index.tolist()):
            queries, keys = q[:, head].cpu(), k[:, head // group].cpu()
            largest[at, row, there] = largest_pair_products(queries, keys, spec, see, own.features)
            norms = (torch.linalg.vector_norm(x[:, own.features].double(), dim=-1).amax(0) for x in (queries, keys))
            bound[at, row, there] = abs(spec.scale) * torch.stack([*norms]).prod(0).numpy()
        with np.errstate(divide="ignore"):
            wavelength[at, there] = 2 * np.pi / own.inv_freq.numpy()
    values = {
        "largest": largest,
        "pair_bound": bound,
        "attainment": np.divide(largest, bound, out=np.full(shape, np.nan), where=bound > 0),
        "wavelength": wavelength,
    }
    out = xr.Dataset(
        {name: (PAIR_ATTAINMENT[name].dims, numbers) for name, numbers in values.items()},
        {"layer": list(chosen), "head": index, "pair": np.arange(shape[2])},
    )
    return result_of(
        "pair_attainment", labelled(out, PAIR_ATTAINMENT), "how near each frequency pair comes to its bound"
    )
