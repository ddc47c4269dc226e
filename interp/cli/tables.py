"""``ropescope hooks`` and ``ropescope stats``: what can be hooked and what is measured, read off the code itself."""

import re
from collections.abc import Iterable
from itertools import compress
from typing import TYPE_CHECKING, Annotated

import typer

from hooks.errors import InputError
from interp.cli.options import MODELS, check_model

if TYPE_CHECKING:
    from rich.console import Console

    from hooks.base.registry import HookInfo
    from interp.common.schema import Table

HOOKS_EPILOG = "Example: ropescope hooks smollm2-135m --layer 0"
STATS_EPILOG = "Example: ropescope stats head_summary"
# A table is cut to the terminal on a terminal only: in a pipe a name must come out whole.
_WIDE = 220
# From this width on the columns of a table of variables fit side by side.
_ROOMY = 140


def hooks(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=f"{MODELS}.")] = "gemma3-270m",
    layer: Annotated[
        int | None, typer.Option(metavar="N", help="Only this layer; by default layers alike are one row.")
    ] = None,
) -> None:
    """Print every hook point of a model: name, aliases, axes, shape, when it fires, what it holds."""
    check_model(model)
    from hooks import HookedTransformer

    loaded = HookedTransformer.from_pretrained(model)
    if layer is not None and not 0 <= layer < loaded.cfg.n_layers:
        raise InputError(f"--layer {layer}: the layers of {model} are 0 to {loaded.cfg.n_layers - 1}")
    sizes = {
        "head": loaded.cfg.n_heads,
        "kv_head": loaded.cfg.n_kv_heads,
        "d_head": loaded.cfg.d_head,
        "d_model": loaded.cfg.d_model,
        "d_mlp": loaded.cfg.d_mlp,
    }
    infos = loaded.registry.infos.values()
    rows = [
        (name, _aliases(info), info.axes, _shape(info.axes, sizes), info.fires, info.meaning)
        for name, info in _layers_merged(infos, layer)
    ]
    _print_table(f"hook points of {model}", ("name", "aliases", "axes", "shape", "fires", "what it holds"), rows)
    typer.echo(
        "An alias of one word stands in the place of the name's last part. Names, aliases and globs work wherever a "
        "hook is named."
    )


def stats(
    analysis: Annotated[
        str | None, typer.Argument(metavar="ANALYSIS", help="Only this one, such as head_summary; by default all.")
    ] = None,
) -> None:
    """Print every variable of every analysis: name, dimensions, unit, formula, what it is, source."""
    from interp.reporting.catalogue import CATALOGUE

    if analysis is not None and analysis not in CATALOGUE:
        raise InputError(f"no analysis {analysis!r}: there are {', '.join(CATALOGUE)}")
    say = console().out  # not typer.echo, which writes UTF-8 to a terminal that asked for ASCII
    say("s: score, p: attention, Δ: distance; <name>: a setting of the call", highlight=False)
    for name in CATALOGUE if analysis is None else [analysis]:
        say()
        _print_variables(name, CATALOGUE[name])


def _print_variables(title: str, variables: "Table") -> None:
    """Print a table of variables: a row of many columns for each, or of two where the terminal is narrow."""
    header = ("name", "group", "dimensions", "unit", "formula", "what it is", "source")
    rows = [
        (name, v.group, ", ".join(v.dims), v.units, v.formula, v.description, v.source) for name, v in variables.items()
    ]
    if console().width >= _ROOMY:
        said = [any(cells) for cells in zip(*rows, strict=True)]
        _print_table(title, tuple(compress(header, said)), [tuple(compress(row, said)) for row in rows])
        return
    below = []
    for name, group, dims, units, formula, what, source in rows:
        rest = " · ".join(text for text in (dims, units, group, source) if text)
        below.append((name, "\n".join(text for text in (what, formula, rest) if text)))
    _print_table(title, ("name", "what it is, formula, dimensions · unit · group · source"), below)


def _layers_merged(infos: "Iterable[HookInfo]", layer: int | None) -> "list[tuple[str, HookInfo]]":
    """Each hook point with its name; points that differ in nothing but the layer share one name with a range."""
    merged: dict[tuple, tuple[HookInfo, list[int]]] = {}
    for info in infos:
        in_block = re.match(r"blocks\.(\d+)\.", info.name)
        number = int(in_block[1]) if in_block else None
        if number is not None and layer is not None and number != layer:
            continue
        key = (_template(info.name), info.axes, info.meaning, tuple(map(_template, info.aliases)))
        merged.setdefault(key, (info, []))[1].extend([] if number is None else [number])
    return [(key[0].replace("{i}", _ranges(numbers)), info) for key, (info, numbers) in merged.items()]


def _template(name: str) -> str:
    """A name with ``{i}`` in place of its layer."""
    return re.sub(r"^blocks\.\d+\.", "blocks.{i}.", name)


def _aliases(info: "HookInfo") -> str:
    """The last part of each alias where it stands in the place of the name's; all of one that lies elsewhere."""
    module = info.name.rpartition(".")[0]
    parts = [alias.rpartition(".") for alias in info.aliases]
    return ", ".join(leaf if where == module else _template(f"{where}.{leaf}") for where, _, leaf in parts)


def _shape(axes: str, sizes: dict[str, int | None]) -> str:
    """Axes as numbers where the model fixes them."""
    return "[" + ", ".join(str(sizes.get(axis) or axis) for axis in axes.split()) + "]"


def _ranges(layers: list[int]) -> str:
    """Layers as text, runs shortened: one number by itself, else {0-4,6-10}."""
    from interp.common.words import number_ranges

    text = number_ranges(layers).replace(" ", "")
    return text if len(layers) < 2 else f"{{{text}}}"


def _print_table(title: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print rows under a header; nothing in a cell is taken for markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", show_lines=False, pad_edge=False)
    for column in header:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console().print(table)


def console() -> "Console":
    """Where tables go: as wide as a terminal, or wide enough for a pipe."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_WIDE)
