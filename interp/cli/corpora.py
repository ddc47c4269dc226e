"""``ropescope corpus``: a model measured on many texts, here or on workers; and what such a directory holds."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hooks.errors import InputError
from interp.cli import options
from interp.cli.options import MODELS, InterruptedRunError
from interp.common.words import duration

if TYPE_CHECKING:
    from interp.corpus.measuring import Progress

CORPUS_EPILOG = "Example: ropescope corpus essays/ --model smollm2-135m --tokens 1024 --workers 4 --out essays.corpus"
_MODEL, _TOKENS, _OUT = "gemma3-270m", 1024, "ropescope.corpus"
_SECONDS_BETWEEN_LINES = 10


def corpus(
    texts: Annotated[
        str,
        typer.Argument(
            metavar="TEXTS",
            help="A directory of text files, a .txt, .jsonl or .parquet file with a column `text`; or a corpus, to "
            "print what it holds.",
        ),
    ],
    model: Annotated[str | None, typer.Option(metavar="MODEL", help=f"{MODELS}; by default {_MODEL}.")] = None,
    tokens: Annotated[
        int | None, typer.Option(metavar="N", help=f"Read at most so many tokens of a text; by default {_TOKENS}.")
    ] = None,
    out: Annotated[str | None, typer.Option(metavar="DIR", help=f"Where results go; by default {_OUT}.")] = None,
    analyses: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="What to measure; by default head_summary,positional_bias."),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(metavar="LIST", help="Layers to measure, such as 0,3-5; by default all.")
    ] = None,
    pack: Annotated[
        int | None,
        typer.Option(metavar="K", help="Take so many texts at a time, and run short ones in one row; by default 1."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="K", help="Measure in so many processes of this machine.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Measure on the workers of this dask scheduler.")
    ] = None,
) -> None:
    """Measure a model on many texts, one result a text; or print what a corpus holds.

    Run it again after it was stopped: it goes on with the texts that are left. The exit status is 1 when a text could
    not be measured; the last line says how many.
    """
    given = {
        "--model": model, "--tokens": tokens, "--out": out, "--analyses": analyses, "--layers": layers,
        "--pack": pack, "--workers": workers, "--scheduler": scheduler,
    }  # fmt: skip
    if _is_corpus(texts):
        if clash := [option for option, value in given.items() if value is not None]:
            raise InputError(f"{texts!r} is a corpus, which is printed; {', '.join(clash)} go with texts to measure")
        _show(texts)
        return
    source, most, place = model or _MODEL, _TOKENS if tokens is None else tokens, _OUT if out is None else out
    options.check_run_options(most, None, source)
    if workers is not None and scheduler is not None:
        raise InputError("--workers and --scheduler: give one of them, processes to start or a cluster that is there")
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers}: at least 1")
    if pack is not None and pack < 1:
        raise InputError(f"--pack {pack}: at least 1")
    if "://" not in place:
        options.check_place(place)
    chosen = options.numbers(layers, "--layers")
    with options.status("loading libraries"):
        from interp.corpus.analyses import DEFAULT
        from interp.corpus.measuring import measure_corpus
    names = DEFAULT if analyses is None else tuple(name.strip() for name in analyses.split(","))
    try:
        found = measure_corpus(
            source, texts, place, n_tokens=most, analyses=names, layers=chosen, scheduler=scheduler, workers=workers,
            pack=pack or 1, watch=_spoken(time.monotonic()),
        )  # fmt: skip
    except KeyboardInterrupt:
        raise InterruptedRunError("interrupted; run it again to go on with the texts that are left") from None
    typer.echo(found.summary())
    typer.echo(_last_line(found.texts["status"].tolist()))
    if len(found) < len(found.texts) - found.texts["status"].tolist().count("duplicate"):
        raise typer.Exit(1)


def _is_corpus(place: str) -> bool:
    """Whether a corpus is there; decided without loading anything heavy."""
    plan = Path(place) / "plan.json"
    try:
        with plan.open("rb") as file:
            return b'"ropescope corpus"' in file.read(64)
    except OSError:
        return False


def _show(place: str) -> None:
    """Print what a corpus holds, and why texts are missing."""
    with options.status("loading libraries"):
        from interp.corpus.corpora import open_corpus
    found = open_corpus(place)
    typer.echo(found.summary())
    failed = found.texts[found.texts["status"] == "failed"]
    for name, reason in zip(failed["id"], failed["reason"], strict=True):
        typer.echo(f"failed    {name}: {reason}")
    typer.echo(_last_line(found.texts["status"].tolist()))


def _last_line(status: list[str]) -> str:
    """How many texts there are of each kind."""
    kinds = ("measured", "failed", "duplicate", "left")
    return ", ".join(f"{status.count(kind):,} {kind}" for kind in kinds if kind == "measured" or kind in status)


def _spoken(started: float) -> "Callable[[Progress], None]":
    """Says how far a run is, every few seconds."""
    spoken, announced = started, False

    def watch(progress: "Progress") -> None:
        nonlocal spoken, announced
        if progress.dashboard and not announced:
            typer.echo(f"dask's dashboard: {progress.dashboard}")
            announced = True
        if time.monotonic() - spoken < _SECONDS_BETWEEN_LINES:
            return
        spoken = time.monotonic()
        line = f"{progress.done:,} done, {progress.failed:,} failed, {progress.left:,} left"
        if not math.isnan(seconds := progress.seconds_left):  # before the first text
            line += f", about {duration(seconds)} more"
        if progress.memory:
            line += f"; {len(progress.memory)} processes, at most {max(progress.memory.values()) / 1e9:.1f} GB each"
        typer.echo(line)

    return watch
