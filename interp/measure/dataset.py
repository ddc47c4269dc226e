"""Totals of a pass become a labelled Dataset: rows back in place, sums scaled, every variable described."""

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from interp.common.labels import labelled, result_of
from interp.measure.schema import ATTENTION_STATISTICS, SINK_SIZES, VARIABLES
from interp.measure.score_bins import score_edges
from interp.measure.subsampling import GroupErrors, Samples
from interp.measure.totals import Totals, bin_of
from interp.measure.visibility import Visibility


@dataclass(frozen=True)
class Measured:
    """What was measured: the labels of the totals.

    Attributes:
        see: every query and kept key.
        parts: the rows of each pass, in the order of the row totals.
        samples: the rows of q that were asked for.
        errors: spread of the random groups, when queries were subsampled.
        query_positions: positions of all queries.
        key_positions: positions of all keys, padding included.
        value_norm: ‖v_j W_O‖ of each query head, [head kept], or None.
        low: distance of the first entry of the distance totals.
    """

    see: Visibility
    parts: list[Visibility]
    samples: Samples
    errors: GroupErrors
    query_positions: Int[Tensor, " query"]
    key_positions: Int[Tensor, " key"]
    value_norm: Float[Tensor, "head kept"] | None
    low: int


def build_dataset(totals: Totals, measured: Measured, values: str | None) -> xr.Dataset:
    """The Dataset of attention_statistics; `values` says what weighs a value, None without values."""
    variables: dict[str, Tensor] = {}
    coords: dict[str, tuple[str, np.ndarray]] = {}
    for held, build in ((totals.rows, _rows), (totals.keys, _keys), (totals.distances, _distances), (totals.map, _map)):
        if held:
            variables |= build(held, measured, coords)
    if totals.scores:
        variables["score_count"] = _scaled(totals.scores["score_count"], measured)
        edges = score_edges()
        coords |= {"score_bin_left": ("score_bin", edges[:-1]), "score_bin_right": ("score_bin", edges[1:])}
    data = {
        each: (ATTENTION_STATISTICS[each].dims, variables[each].cpu().numpy())
        for name in VARIABLES
        for each in (name, f"{name}_stderr")
        if each in variables
    }
    ds = xr.Dataset(data, coords)
    ds = ds.assign_coords(head=np.arange(ds.sizes["head"]))
    ds = ds.assign_attrs(queries=f"{measured.samples.n_rows} of {measured.see.n_queries} queries measured")
    if values is not None:
        ds.attrs["values"] = f"the size of a value is {values}"
    what = "attention statistics of one pass over q and k"
    return result_of("attention_statistics", labelled(ds, ATTENTION_STATISTICS), what)


def _scaled(total: Tensor, measured: Measured) -> Tensor:
    """A sum over the measured queries as an estimate for all of them."""
    if not measured.samples.estimate:
        return total
    return total.double() * (measured.see.n_queries / measured.samples.n_rows)


def _stderr(name: str, measured: Measured, *, of_sum: bool) -> dict[str, Tensor]:
    """{name_stderr: its standard error}, of the sum over all queries or of the mean; empty for exact results."""
    if not measured.samples.estimate:
        return {}
    error = measured.errors.stderr(name)
    return {f"{name}_stderr": error * measured.see.n_queries if of_sum else error}


def _rows(held: dict[str, Tensor], measured: Measured, coords: dict) -> dict[str, Tensor]:
    """Results per query, in the order of q, NaN where the query sees nothing."""
    rows = torch.cat(measured.samples.rows).unique()
    coords["query"] = ("query", measured.query_positions[rows].cpu().numpy())
    coords["sink_size"] = ("sink_size", np.array(SINK_SIZES))
    at = torch.searchsorted(rows, torch.cat([part.row for part in measured.parts]))
    out = {}
    for name, x in held.items():
        missing = torch.nan if x.is_floating_point() else -1
        out[name] = x.new_full((x.shape[0], rows.numel(), *x.shape[2:]), missing)
        out[name][:, at] = x
    return out


def _keys(held: dict[str, Tensor], measured: Measured, coords: dict) -> dict[str, Tensor]:
    """Results per key; padding receives nothing."""
    coords["key"] = ("key", measured.key_positions.cpu().numpy())

    def spread(kept: Tensor) -> Tensor:
        full = kept.new_zeros(kept.shape[0], measured.see.n_keys)
        full[:, measured.see.key] = kept
        return full

    out = {"received": _scaled(held["received"], measured)} | _stderr("received", measured, of_sum=True)
    if measured.value_norm is not None:
        out |= {name.replace("received", "received_value"): x * measured.value_norm for name, x in out.items()}
    out["received_max"] = held["received_max"]
    return {name: spread(x) for name, x in out.items()}


def _distances(held: dict[str, Tensor], measured: Measured, coords: dict) -> dict[str, Tensor]:
    """Results per distance, up to the largest that occurs; NaN means where none was measured."""
    count = held["count"]
    zero = -measured.low
    occurs = count.nonzero()[:, 0]
    first, last = (int(occurs[0]), int(occurs[-1])) if occurs.numel() else (zero, zero)
    kept = slice(min(first, zero), max(last, zero) + 1)
    coords["distance"] = ("distance", np.arange(kept.start, kept.stop) + measured.low)
    sums = [name for name in ("attention", "attention_value") if name in held]
    out = {name: _scaled(held[name], measured) for name in ("count", "score_m2", *sums)}
    estimate = measured.samples.estimate
    if estimate:  # around the mean of c sampled scores the squares are too small by (c − 1) / c
        scored = held["scored"]
        out["score_m2"] = torch.where(scored > 1, out["score_m2"] * scored / (scored - 1).clamp_min(1), torch.nan)
    for name in ("score_mean", "score_min", "score_max"):
        out[name] = torch.where(count > 0, held[name], torch.nan)
    for name in sums:
        out |= _stderr(name, measured, of_sum=True)
    out |= _stderr("score_mean", measured, of_sum=False)
    out = {name: x[..., kept] for name, x in out.items()}
    return out | {"positional_r2": _positional_r2(count, held["score_mean"], held["score_m2"], adjusted=estimate)}


def _positional_r2(count: Tensor, mean: Tensor, m2: Tensor, *, adjusted: bool) -> Tensor:
    """Share of the variance between distances; NaN where the scores do not vary.

    Means of a few sampled scores differ by chance. Adjusted, 1 − (within / (N − k)) / (total / (N − 1)) for N scores at
    k distances takes that out (ε² of Kelley 1935), down to 0; NaN where every distance was sampled once.
    """
    weight = count.double()
    centre = (weight * mean).sum(-1, keepdim=True) / weight.sum().clamp_min(1)
    between = (weight * (mean - centre).square()).sum(-1)
    total = between + m2.sum(-1)
    if adjusted:
        n, k = weight.sum(), (weight > 0).sum()
        share = 1 - (m2.sum(-1) / (n - k)) / (total / (n - 1))
        return torch.where((total > 0) & (n > k), share.clamp_min(0), torch.nan)
    return torch.where(total > 0, between / total, torch.nan)


def _map(held: dict[str, Tensor], measured: Measured, coords: dict) -> dict[str, Tensor]:
    """Mean and largest attention of each bin that holds a visible pair."""
    cells = held["map_count"]
    for name, position, bins in (
        ("map_query", measured.query_positions, cells.shape[0]),
        ("map_key", measured.key_positions, cells.shape[1]),
    ):
        label = bin_of(torch.arange(position.numel(), device=position.device), position.numel(), bins)
        edges = torch.searchsorted(label, torch.arange(bins + 1, device=position.device))
        middle = (position[edges[:-1]] + position[edges[1:] - 1]).double() / 2
        coords[name] = (name, middle.cpu().numpy())
    out = {
        "map_mean": held["map_sum"] / cells,
        "map_max": torch.where(cells > 0, held["map_max"], torch.nan),
    }
    return out | _stderr("map_mean", measured, of_sum=False)
