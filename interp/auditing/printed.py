"""An audit on one screen of a terminal."""

import io
from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from interp.analyses.weights.audit_data import AuditData
from interp.common.words import visible_text
from interp.reporting.audit_summary import Words, headline, layer_words, leaning_heads, schedule_words


def screen(data: AuditData) -> Iterator[RenderableType]:
    """What a console prints of an audit, part by part."""
    yield Text(visible_text(data.name, 80), style="bold")
    yield Text(headline(data))
    yield Text("")
    yield _table("", layer_words(data))
    if data.schedules.sizes["rotation"]:
        yield Text("")
        factor = data.schedules.attrs["factor"]
        yield Text(
            f"stretched {factor:g} ×: pairs that turn slower · Σ cos(θΔ) < 0 · what scores grow by", style="bold"
        )
        yield _table("", schedule_words(data))
    if heads := leaning_heads(data):
        yield Text("")
        n_tokens = data.heads.attrs["n_tokens"]
        yield Text(f"mean score by distance, over {n_tokens:,} token embeddings: it moves most in", style="bold")
        for sentence in heads:
            yield Text(f"  {sentence}")


def as_text(data: AuditData, width: int) -> str:
    """The same as plain text of a width."""
    console = Console(width=width, file=io.StringIO(), force_terminal=False, no_color=True, legacy_windows=False)
    for part in screen(data):
        console.print(part)
    with_spaces = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    return "\n".join(line.rstrip() for line in with_spaces.splitlines())


def _table(title: str, words: Words) -> Table:
    """Words in columns, nothing of them taken for markup."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column(Text(title, style="bold"), no_wrap=True)
    for column in words.columns:
        table.add_column(Text(column, style="bold"), overflow="fold")
    for row in words.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
