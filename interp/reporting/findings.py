"""Every Dataset that a report draws, computed once, and why some could not be had."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import xarray as xr

from hooks.errors import InputError, StageError
from interp.analyses.causes.attributing import attribution
from interp.analyses.heads.summary import head_summary
from interp.analyses.position.distance import positional_bias, typical_distance
from interp.analyses.position.losses import loss_by_position
from interp.analyses.position.received import received_by_position
from interp.analyses.position.sinks import first_token_mass
from interp.analyses.scores.by_stage import stage_ranges
from interp.analyses.scores.by_variant import score_ranges
from interp.common.binning import bin_distances
from interp.reporting.measures import head_metrics
from interp.tensors.capture_data import CaptureData


@dataclass(frozen=True)
class Analyses:
    """Every Dataset that the report draws, restricted to the chosen heads; why some could not be had."""

    binned: xr.Dataset
    r2: xr.DataArray
    typical: xr.DataArray
    ranges: xr.Dataset
    sinks: xr.DataArray
    maps: xr.DataArray
    loss: xr.Dataset
    variants: xr.Dataset | None
    received: xr.Dataset | None
    metrics: list[xr.DataArray]
    causes: xr.Dataset | None
    left_out: dict[str, str]


def analyse(cap: CaptureData, heads: Sequence[int]) -> Analyses:
    """Run every analysis that the report shows."""
    loss = loss_by_position(cap)  # first: it refuses a capture without loss, and the rest takes a while
    bias = positional_bias(cap).sel(head=list(heads))
    typical = typical_distance(bias)
    ranges = stage_ranges(cap).sel(head=list(heads))
    final = ranges.sel(stage="final", drop=True)
    left_out: dict[str, str] = {}
    variants = _where_possible(score_ranges, cap, heads, left_out)
    others = [typical.rename("half_distance"), *(final[name] for name in ("score_min", "score_max", "bound"))]
    if variants is not None:
        others.append(variants["float16_headroom"].sel(variant="as_run", drop=True))
    return Analyses(
        binned=bin_distances(bias).assign_attrs(n_layers=cap.cfg.n_layers),
        r2=bias["positional_r2"],
        typical=typical,
        ranges=ranges,
        sinks=first_token_mass(cap).sel(head=list(heads)),
        maps=cap.statistics()["map_mean"].sel(head=list(heads)),
        loss=loss,
        variants=variants,
        received=_where_possible(received_by_position, cap, heads, left_out),
        metrics=head_metrics(head_summary(cap).sel(head=list(heads)), others),
        causes=None if cap.gradients is None else attribution(cap).sel(head=list(heads)),
        left_out=left_out,
    )


def _where_possible(
    analysis: Callable[[CaptureData], xr.Dataset], cap: CaptureData, heads: Sequence[int], left_out: dict[str, str]
) -> xr.Dataset | None:
    """An analysis of the chosen heads; None, and the reason noted, where the capture lacks a stage or tokens for it."""
    try:
        return analysis(cap).sel(head=list(heads))
    except (StageError, InputError) as error:
        left_out[analysis.__name__] = str(error)
        return None
