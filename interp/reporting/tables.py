"""The report's tables: every head with its numbers on the page, and all of them as CSV files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from hooks import checks
from hooks.errors import OutputError
from interp.common.files import Ours, check_writable, write_text
from interp.common.words import KIND_NAME, head_name
from interp.reporting.findings import Analyses
from interp.reporting.measures import ORDER, as_text

# The columns of each table; one of heads leaves out those that a capture cannot give. A file is known by them.
_COLUMNS = {
    "heads": ",".join(("layer", "head", *ORDER, "layer_type")),
    "distances": "layer,head,distance_bin,attention_mean,attention_share,attention_value_mean,attention_value_share,"
    "score_mean,score_min,score_max,count,window,first_distance,last_distance",
    "ranges": "layer,head,stage,score_min,score_max,score_mean,score_std,bound,utilisation,q_norm,k_norm,stage_label,"
    "layer_type",
    "loss": "position_bin,loss_mean,loss_stderr,count,first_position,last_position",
    "variants": "layer,head,variant,min,max,mean,std,kurtosis,bound,utilisation,float16_headroom,sharpness_cap",
}


@dataclass(frozen=True)
class Column:
    """Heading of a column and what its numbers are."""

    name: str
    about: str


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and the number that it is sorted by: empty for a missing one, None for a text."""

    text: str
    value: str | None


@dataclass(frozen=True)
class Row:
    """One head."""

    name: str
    anchor: str
    place: str
    order: int
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    """Every head with every number."""

    columns: list[Column]
    rows: list[Row]


def head_table(metrics: Sequence[xr.DataArray], layer_types: Sequence[str]) -> Table:
    """One row per head, a column for each number."""
    columns = [Column("Head", "layer and head"), Column("Kind", "kind of layer")]
    for values in metrics:
        units = values.attrs["units"]
        unit = f" [{units}]" if units not in ("", "%") else ""
        label = values.attrs["label"]
        columns.append(Column(label[:1].upper() + label[1:] + unit, values.attrs.get("description", "")))
    layers, heads = metrics[0]["layer"].values, metrics[0]["head"].values
    rows = []
    for r, layer in enumerate(layers):
        for c, head in enumerate(heads):
            numbers = [(float(values.values[r, c]), values.attrs["units"]) for values in metrics]
            cells = [Cell(KIND_NAME[str(layer_types[r])], None)]
            cells += [Cell(as_text(x, units), f"{x:.6g}" if np.isfinite(x) else "") for x, units in numbers]
            place = r * len(heads) + c
            rows.append(Row(head_name(layer, head), f"L{layer}H{head}", f"{r},{c}", place, cells))
    return Table(columns, rows)


def check_folder(folder: str | Path) -> Path:
    """The folder, made if it is not there, once it is sure that the tables would replace nothing but earlier tables.

    Raises:
        OutputError: it cannot be made, or holds a file of a table's name that is no such table.
    """
    place = checks.path("csv", folder, error=OutputError)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write tables to {str(folder)!r}: {error.strerror}; choose another folder") from None
    for name in _COLUMNS:
        check_writable(place / f"{name}.csv", _is_table(name))
    return place


def write_tables(found: Analyses, folder: str | Path) -> list[Path]:
    """Write the numbers behind the report as CSV: heads, distances, ranges, and loss where there is one.

    Raises:
        OutputError: the folder cannot be made, or a file in it cannot be written or is not ours to replace.
    """
    place = check_folder(folder)
    heads = xr.Dataset({str(values.name): values for values in found.metrics})
    tables = {
        "heads": heads.assign(layer_type=("layer", found.ranges["layer_type"].values)),
        "distances": found.binned.reset_coords(["first_distance", "last_distance"]),
        "ranges": found.ranges.reset_coords(["layer_type", "stage_label"]),
        "loss": found.loss[["loss_mean", "loss_stderr", "count"]].reset_coords(["first_position", "last_position"]),
    }
    if found.variants is not None:
        per_head = [name for name, v in found.variants.data_vars.items() if v.dims == ("layer", "head", "variant")]
        tables["variants"] = found.variants[per_head]
    written = []
    for name, data in tables.items():
        frame = data.drop_vars([c for c in data.coords if c not in data.dims]).to_dataframe().reset_index()
        written.append(write_text(place / f"{name}.csv", frame.to_csv(index=False), _is_table(name)))
    return written


def _is_table(name: str) -> Ours:
    """Tells whether a file is this table: it has its columns, in their order, those that every one has at both ends."""
    known = _COLUMNS[name].split(",")

    def is_table(path: Path) -> bool:
        try:
            with path.open("rb") as file:
                columns = file.readline(4096).decode().rstrip("\r\n").split(",")
        except (OSError, ValueError):
            return False
        rest = iter(known)
        ends = columns[:3] == known[:3] and columns[-1] == known[-1]
        return ends and all(column in rest for column in columns)

    return is_table
