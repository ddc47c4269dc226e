"""``ropescope hooks`` and ``ropescope stats``: what can be hooked and what is measured, read off the code itself."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from hooks.errors import InputError
from interp.cli.options import MODELS, check_model

if TYPE_CHECKING:
    from hooks.base.registry import HookInfo

HOOKS_EPILOG = "Example: ropescope hooks smollm2-135m --layer 0"
STATS_EPILOG = "Example: ropescope stats"
# A table is cut to the terminal on a terminal only: in a pipe a name must come out whole.
_WIDE = 220


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
        (name, ", ".join(map(_leaf, info.aliases)), info.axes, _shape(info.axes, sizes), info.fires, info.meaning)
        for name, info in _layers_merged(infos, layer)
    ]
    _print_table(f"hook points of {model}", ("name", "aliases", "axes", "shape", "fires", "what it holds"), rows)
    typer.echo(
        "An alias stands in the place of the name's last part. Names, aliases and globs work wherever a hook is named."
    )


def stats() -> None:
    """Print every statistic of one pass: name, group, dimensions, unit, formula, source."""
    from interp.measure.schema import VARIABLES

    rows = [
        (name, v.group, ", ".join(v.dims), v.units, v.formula, v.description, v.source) for name, v in VARIABLES.items()
    ]
    header = ("name", "group", "dimensions", "unit", "formula", "what it is", "source")
    _print_table("statistics of attention_statistics (s: score, p: attention, Δ: distance)", header, rows)


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


def _leaf(name: str) -> str:
    """The last part of a name."""
    return name.rsplit(".", 1)[-1]


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
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDE)
    table = Table(title=title, title_justify="left", show_lines=False, pad_edge=False)
    for column in header:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
