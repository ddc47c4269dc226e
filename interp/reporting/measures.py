"""The numbers per head that the report can colour, list and sort by, each with its label, unit and meaning."""

from collections.abc import Iterable

import numpy as np
import xarray as xr

from interp.analyses.heads.schema import SCORES
from interp.analyses.position.schema import TYPICAL_DISTANCE
from interp.analyses.scores.schema import SCORE_RANGES, STAGE_RANGES
from interp.common.schema import Table
from interp.reporting import sentences

_VARIABLES: Table = {
    **SCORES,
    "half_distance": TYPICAL_DISTANCE["typical_distance"],
    **{name: STAGE_RANGES[name] for name in ("score_min", "score_max", "bound")},
    "float16_headroom": SCORE_RANGES["float16_headroom"],
}
# In the order in which the report offers them; numbers that are not named here follow.
ORDER = (
    "first_token_mass",
    "half_distance",
    "mean_distance",
    "positional_r2",
    "previous_token",
    "local_mass",
    "induction",
    "duplicate_token",
    "retrieval",
    "needle_mass",
    "entropy",
    "normalised_entropy",
    "score_min",
    "score_max",
    "bound",
    "utilisation",
    "float16_headroom",
)
_UNITS = {"1": "", "token": "tokens", "nat": "nats"}
_RATIOS = ("float16_headroom",)


def head_metrics(summary: xr.Dataset, others: Iterable[xr.DataArray]) -> list[xr.DataArray]:
    """Every (layer, head) number, labelled, in the order in which the report lists them.

    Args:
        summary: a `head_summary` Dataset.
        others: further named (layer, head) arrays; one that the summary has too counts once.
    """
    found = {str(name): values for name, values in summary.data_vars.items()}
    found |= {str(values.name): values for values in others}
    order = [*(name for name in ORDER if name in found), *(name for name in found if name not in ORDER)]
    return [_labelled(found[name], name) for name in order if np.isfinite(found[name]).any()]


def common(one: list[xr.DataArray], two: list[xr.DataArray]) -> tuple[list[xr.DataArray], list[xr.DataArray]]:
    """The numbers that two captures both have."""
    shared = {str(values.name) for values in one} & {str(values.name) for values in two}
    return tuple([values for values in side if str(values.name) in shared] for side in (one, two))  # type: ignore[return-value]


def _labelled(values: xr.DataArray, name: str) -> xr.DataArray:
    """The array as the report takes it: a name, a label, a unit; shares of one are shown in per cent."""
    units = values.attrs.get("units", "")
    largest = float(np.abs(values.values[np.isfinite(values.values)]).max(initial=0.0))
    is_share = units == "1" and largest <= 1 + 1e-6 and name not in _RATIOS
    values = values.reset_coords([c for c in values.coords if c not in ("layer", "head")], drop=True)
    label = _VARIABLES[name].label if name in _VARIABLES else ""
    said = {"units": "%" if is_share else _UNITS.get(units, units), "label": label or name.replace("_", " ")}
    return values.transpose("layer", "head").rename(name).assign_attrs({**values.attrs, **said})


def as_text(value: float, units: str) -> str:
    """A number as the report's tables show it."""
    if not np.isfinite(value):
        return "–"
    return f"{value:.1%}".replace("-", "−") if units == "%" else sentences.number(value)
