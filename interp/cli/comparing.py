"""``ropescope compare``: two captures of the same tokens, head by head."""

from pathlib import Path
from typing import Annotated

import typer

from interp.cli import options

COMPARE_EPILOG = "Example: ropescope compare as-trained.capture stretched.capture --out compare.html"


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A capture.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one of the same tokens.")],
    by: Annotated[
        str, typer.Option(metavar="NAME", help="What to rank heads by, such as entropy_difference.")
    ] = "profile_divergence",
    heads: Annotated[int, typer.Option(metavar="N", help="How many heads to print.")] = 10,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Also write a report that holds one against the other.")
    ] = None,
) -> None:
    """Print the heads that differ most between two captures of the same tokens."""
    for capture in (first, second):
        options.check_capture(capture)
    if out is not None:
        from interp.common.files import check_writable

        check_writable(out)
    with options.status("loading libraries"):
        from interp.analyses.heads.comparison import compare as compare_captures
        from interp.analyses.heads.comparison import ranked
        from interp.captures import open_capture
    a, b = open_capture(first), open_capture(second)
    # One capture held against itself: they need two names all the same.
    names = (first, second) if first != second else (f"{first} (first)", f"{second} (second)")
    comparison = compare_captures(a, b, labels=names)
    table = ranked(comparison, by, heads).to_dataframe()
    # The same units as in the Dataset; three digits are enough to choose a head by.
    typer.echo(f"heads by {by}, {names[1]} − {names[0]}:")
    typer.echo(table.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    if out is not None:
        from interp.reporting.page import report

        written = report(a, Path(out), compare_with=b)
        typer.echo(f"wrote {out} ({written.stat().st_size / 1e6:.1f} MB)")
