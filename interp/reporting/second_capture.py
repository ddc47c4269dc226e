"""The section of the report that holds a second capture against the first."""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from interp import plots
from interp.common.words import head_name, visible_text
from interp.reporting import figures as views
from interp.reporting.findings import Analyses
from interp.reporting.measures import as_text
from interp.tensors.capture_data import CaptureData


@dataclass(frozen=True)
class Comparison:
    """What the template shows of a second capture."""

    model: str
    lines: list[list[str]]
    figures: list[views.FigureView]
    map_rows: list[views.MapRow]


def comparison_section(cap: CaptureData, found: Analyses, other: CaptureData, second: Analyses) -> Comparison:
    """Medians and largest changes in words, and figures of what changed where."""
    difference = xr.Dataset(
        {
            str(one.name): (two - one).assign_attrs(one.attrs)
            for one, two in zip(found.metrics, second.metrics, strict=True)
        }
    )
    name = visible_text(other.model_id, 80)
    if name == visible_text(cap.model_id, 80):
        name += " (second)"
    figures = [
        views.view(
            "changes",
            plots.comparison(difference, title="Second minus first"),
            "Change of every number from the first capture to the second, by layer and head.",
            width=720,
        )
    ]
    if np.array_equal(found.binned["first_distance"], second.binned["first_distance"]):
        change = (second.binned["attention_share"] - found.binned["attention_share"]).assign_attrs(
            description="Change of attention share"
        )
        alt = "Change of the share of attention that each head spends at each distance."
        figures.append(views.view("changes-distance", plots.comparison_by_distance(change), alt))
    maps = views.map_rows(second.maps, second.sinks, second.typical, second.ranges)
    return Comparison(name, [_line(*pair) for pair in zip(found.metrics, second.metrics, strict=True)], figures, maps)


def _line(one: xr.DataArray, two: xr.DataArray) -> list[str]:
    """A number of both captures: its median heads, and the head that changed most."""
    units, label = one.attrs["units"], one.attrs["label"]
    change = (two - one).values
    cells = [
        as_text(float(np.nanmedian(values.values)), units) if np.isfinite(values).any() else "–"
        for values in (one, two)
    ]
    if not np.isfinite(change).any():
        return [label, *cells, "–"]
    r, c = np.unravel_index(int(np.nanargmax(np.abs(change))), change.shape)
    head = head_name(one["layer"].values[r], one["head"].values[c])
    ends = f"{as_text(float(one.values[r, c]), units)} → {as_text(float(two.values[r, c]), units)}"
    unit = f" [{units}]" if units not in ("", "%") else ""
    return [label + unit, *cells, f"{head}: {ends}"]
