"""One self-contained HTML file on a capture: figures, what each of them measures, and where the numbers come from."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from hooks.errors import InputError
from interp.analyses.heads.comparison import check_same_text
from interp.common.files import check_writable, write_text
from interp.common.words import visible_text
from interp.plots import png, theme
from interp.reporting import figures as views
from interp.reporting import page_data as report_data
from interp.reporting import sentences
from interp.reporting.findings import Analyses, analyse
from interp.reporting.glossary import GLOSSARY
from interp.reporting.measures import common
from interp.reporting.second_capture import comparison_section
from interp.reporting.tables import check_folder, head_table, write_tables
from interp.tensors.capture_data import CaptureData, check_capture
from interp.tensors.selection import head_numbers

_LONGEST_NAME = 80
_LONGEST_VALUE = 600


def report(
    cap: CaptureData,
    path: str | Path,
    *,
    heads: int | Iterable[int] | None = None,
    compare_with: CaptureData | None = None,
    csv: str | Path | None = None,
) -> Path:
    """Write the report: one HTML file that needs no network and no other file.

    Args:
        cap: what to report on.
        path: where to put it, in one step, never half written. A report that stands there is replaced; nothing else
            ever is.
        heads: which heads of each layer to show; None shows all.
        compare_with: a second capture of the same tokens, layers and heads, held against the first throughout.
        csv: a folder for the numbers as CSV tables, which replace earlier ones and nothing else; None writes none.

    Returns:
        The path of the file.

    Raises:
        OutputError: a file cannot be written, or one stands there that is no report or table of ours (checked before
            any computation).
        StageError: a head that the model does not have, or a capture that holds no loss.
        InputError: the captures to compare differ in layers or heads, or read different tokens; or documents are
            packed into a row.
    """
    check_capture(cap).check_one_text("report")
    if compare_with is not None:
        check_capture(compare_with, "compare_with")
    check_writable(path)
    if csv is not None:
        check_folder(csv)
    chosen = sorted(head_numbers(heads, cap.cfg.n_heads))
    if compare_with is not None:
        _check_comparable(cap, compare_with)
    found, second = analyse(cap, chosen), None
    if compare_with is not None:
        other = analyse(compare_with, chosen)
        ours, theirs = common(found.metrics, other.metrics)
        found, second = replace(found, metrics=ours), (compare_with, replace(other, metrics=theirs))
    written = write_text(path, render(cap, found, second))
    if csv is not None:
        write_tables(found, csv)
    return written


def render(cap: CaptureData, found: Analyses, second: tuple[CaptureData, Analyses] | None = None) -> str:
    """The report as HTML, on one capture or on two."""
    from plotly.offline import get_plotlyjs

    data = page_data(cap, found, second)
    return page_template("report.html.j2").render(
        model=visible_text(cap.model_id, _LONGEST_NAME),
        cards=sentences.cards(cap, found.ranges, found.sinks, found.typical),
        sentences=sentences.sentences(cap, found.r2, found.ranges, found.sinks, found.typical),
        metrics=found.metrics,
        layers=data["layers"],
        kind_names=list(dict.fromkeys(layer["kind"] for layer in data["layers"])),
        groups=sorted({head // data["group_size"] for head in data["heads"]}),
        glossary=GLOSSARY,
        has_bands=data["first"]["bands"] is not None,
        window_tokens=min(report_data.WINDOW_TOKENS, len(cap.positions)),
        second=None if second is None else comparison_section(cap, found, *second),
        distance=views.distance_views(found.binned, found.typical, found.ranges),
        ranges=views.range_view(found.ranges),
        variants=views.variant_view(found.variants),
        map_rows=views.map_rows(found.maps, found.sinks, found.typical, found.ranges),
        map_shades=theme.SHADES,
        map_shades_dark=[theme.DARK[colour] for colour in theme.SHADES],
        map_decades=png.DECADES,
        sinks=views.sink_views(found.sinks, found.r2),
        received=views.received_view(found.received),
        left_out=found.left_out,
        loss=views.loss_view(found.loss, None if second is None else second[1].loss),
        loss_table=_loss_table(found.loss),
        table=head_table(found.metrics, found.ranges["layer_type"].values.tolist()),
        provenance=_provenance(cap),
        page_data=report_data.as_script(data),
        plotly_js=get_plotlyjs(),
    )


def page_data(cap: CaptureData, found: Analyses, second: tuple[CaptureData, Analyses] | None) -> dict[str, Any]:
    """What the page's own script draws from."""
    heads = [int(head) for head in found.sinks["head"].values]
    metrics = report_data.metric_data(found.metrics)
    if second is not None:
        for one, other in zip(metrics, report_data.metric_data(second[1].metrics), strict=True):
            one["other"] = other["values"]
    start = np.unravel_index(int(np.nanargmax(found.sinks.transpose("layer", "head").values)), found.sinks.shape)
    return {
        "layers": report_data.layer_data(cap),
        "heads": heads,
        "group_size": cap.cfg.n_heads // cap.cfg.n_kv_heads,
        "metrics": metrics,
        "start": [int(index) for index in start],
        "first": _head_data(cap, found, heads),
        "second": None if second is None else _head_data(*second, heads),
        "map_decades": png.DECADES,
        "template": theme.template().to_plotly_json(),
        "colours": page_colours(),
    }


def page_colours() -> dict[str, Any]:
    """The colours that a page's script draws in, and their partners in the dark."""
    return {
        "dark": theme.DARK,
        "content": sorted(theme.CONTENT_KEYS),
        "shades": theme.SHADES,
        "diverging": theme.DIVERGING,
        "series": theme.SERIES,
        "ink": theme.INK,
        "quiet": theme.QUIET,
    }


def _head_data(cap: CaptureData, found: Analyses, heads: Sequence[int]) -> dict[str, Any]:
    """What the panel shows of one capture."""
    return report_data.head_data(cap, heads, found.binned, found.ranges.sel(stage="final"))


@cache
def page_template(name: str) -> Any:
    """The template of a page; everything put into it is escaped unless the template says otherwise."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("interp.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _check_comparable(cap: CaptureData, other: CaptureData) -> None:
    """Raise an InputError unless both captures have the same layers and heads, and read the same tokens."""
    for what, one, two in (
        ("layers", list(cap.layers), list(other.layers)),
        ("heads", cap.cfg.n_heads, other.cfg.n_heads),
    ):
        if one != two:
            raise InputError(f"the captures cannot be compared head by head: {what} {one} against {two}")
    check_same_text(cap, other, ("the capture", "compare_with"))


def _provenance(cap: CaptureData) -> dict[str, dict[str, str]]:
    """Where the numbers come from, with nothing in it that a page would not show."""
    return {
        visible_text(title): {
            visible_text(name): visible_text(value, _LONGEST_VALUE) for name, value in entries.items()
        }
        for title, entries in cap.provenance.items()
    }


def _loss_table(loss: xr.Dataset) -> list[tuple[str, str, str]]:
    """Positions, mean and standard error of each stretch."""
    columns = (loss[name].values for name in ("first_position", "last_position", "loss_mean", "loss_stderr"))
    return [(f"{a:,} – {b:,}", f"{mean:.3f}", f"{error:.3f}") for a, b, mean, error in zip(*columns, strict=True)]
