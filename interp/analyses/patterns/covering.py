"""coverage: how many keys hold a query's attention, and how many score near its best."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from hooks import checks
from hooks.errors import InputError
from interp.analyses.patterns.schema import COVERAGE
from interp.common.labels import labelled, result_of
from interp.common.progress import track
from interp.common.stacking import named_layer
from interp.measure.needed_keys import needed_keys
from interp.tensors.capture_data import CaptureData, check_capture
from interp.tensors.selection import asked_layers

LEVELS = (0.5, 0.9, 0.95, 0.99)
GAPS = (1.0, 2.0, 4.0, 8.0)


def coverage(
    cap: CaptureData,
    levels: float | Sequence[float] = LEVELS,
    *,
    gaps: float | Sequence[float] = GAPS,
    layers: int | Sequence[int] | None = None,
) -> xr.Dataset:
    """The fewest keys that hold a share of each query's attention, and how many score near its largest score.

    ``n_p(i)`` is the smallest n for which some n keys hold ``Σ p_ij ≥ p``: what an oracle of sparse attention would
    have to read. ``N_g(i) = #{j: max_j s_ij − s_ij ≤ g}`` are the keys within g of the best. Both for every query, in
    O(n) memory; the counts lie between those of the sorted float64 pattern at p − 10⁻⁶ and p + 10⁻⁶. Where a learned
    sink leaves the keys less than p, no number of keys holds it, and the count is NaN.

    Args:
        cap: the capture.
        levels: shares of the attention, above 0 and below 1.
        gaps: distances below the largest score, from 0.
        layers: which of its layers; None is all of them.

    Returns:
        Dataset: coverage (layer, head, level, query) and gap_count (layer, head, gap, query); coverage_mean and
        gap_count_mean over the queries, coverage_max, and coverage_queries, how many reach the level; seen (layer,
        query), the keys that a query sees at all.

    Raises:
        InputError: a level or gap that is none, or q or k that are not finite.
        StageError: no layer, or one that the capture does not hold.

    Source:
        Levels: arXiv 2502.20766 (FlexPrefill). Gap counts: arXiv 2605.12697.
    """
    chosen = asked_layers(check_capture(cap).layers, layers)
    shares, near = (
        sorted(set(checks.numbers("levels", levels, above=0, below=1))),
        sorted(set(checks.numbers("gaps", gaps, at_least=0))),
    )
    if not shares:
        raise InputError(f"levels={checks.shown(levels)}: name at least one share of the attention")
    found = []
    for layer in track(chosen, "counting keys"):
        with named_layer(layer):
            found.append(needed_keys(cap.q(layer), cap.k(layer), cap.spec(layer), shares, near, **cap.standing))
    needed, within, seen = (np.stack(parts) for parts in zip(*found, strict=True))
    reached = np.isfinite(needed).sum(-1)
    total = np.nansum(needed, axis=-1, dtype=np.float64)
    values = {
        "coverage": needed,
        "coverage_mean": np.divide(total, reached, out=np.full(total.shape, np.nan), where=reached > 0),
        "coverage_max": np.where(reached > 0, np.nanmax(needed, axis=-1, initial=0), np.nan),
        "coverage_queries": reached,
        "gap_count": within,
        "gap_count_mean": within.mean(-1, dtype=np.float64),
        "seen": seen,
    }
    out = xr.Dataset(
        {name: (COVERAGE[name].dims, numbers) for name, numbers in values.items()},
        {
            "layer": list(chosen),
            "head": np.arange(needed.shape[1]),
            "level": shares,
            "gap": near,
            "query": cap.labels.numpy(),
        },
    )
    return result_of("coverage", labelled(out, COVERAGE), "fewest keys that hold a share of each query's attention")
