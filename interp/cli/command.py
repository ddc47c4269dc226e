"""The ``ropescope`` command. Nothing heavy is imported before a command runs."""

import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from hooks.errors import InputError, RopescopeError
from interp.cli import auditing, captures, comparing, corpora, exploring, options, planning, tables
from interp.cli.options import MODELS, Device, Dtype, InterruptedRunError, TextFile, fail
from interp.cli.output import sturdy_output

if TYPE_CHECKING:
    from interp.captures import Capture

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="See what a transformer does with position: attention and scores before and after QK-norm and RoPE.",
)

_REPORT_EPILOG = "Example: ropescope report --model smollm2-135m --text essay.txt --layers 0,3-5 --out essay.html"
_MODEL, _TOKENS = "gemma3-270m", 4096


@app.callback()
def _ropescope() -> None:
    """See what a transformer does with position: attention and scores before and after QK-norm and RoPE."""


@app.command(epilog=_REPORT_EPILOG)
def report(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help=f"{MODELS}; by default {_MODEL}.",
        ),
    ] = None,
    text: TextFile = None,
    tokens: Annotated[
        int | None, typer.Option(metavar="N", help=f"How many tokens of it to read; by default {_TOKENS}.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(metavar="LIST", help="Layers to report on, such as 0,3-5; by default all.")
    ] = None,
    heads: Annotated[
        str | None, typer.Option(metavar="LIST", help="Heads of each layer to show, such as 0-3; by default all.")
    ] = None,
    out: Annotated[str, typer.Option(metavar="FILE", help="Where to write the report.")] = "ropescope-report.html",
    csv: Annotated[
        str | None, typer.Option(metavar="DIR", help="Also write the report's numbers as CSV tables.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    capture: Annotated[
        str | None, typer.Option(metavar="DIR", help="Report on this capture instead of running a model.")
    ] = None,
) -> None:
    """Write one HTML file on the attention of a model in a text, or of a capture."""
    started = time.monotonic()
    tokens_asked = _TOKENS if tokens is None else tokens
    source = _MODEL if model is None else model
    options.check_run_options(tokens_asked, dtype, source)
    chosen_layers, chosen_heads = options.numbers(layers, "--layers"), options.numbers(heads, "--heads")
    from interp.common.files import check_writable

    check_writable(out)
    if csv is not None:
        options.check_place(csv)
    if capture is None:
        cap = _captured(
            _MODEL if model is None else model, text, tokens_asked, chosen_layers, chosen_heads, device, dtype
        )
    else:
        given = {"--model": model, "--text": text, "--tokens": tokens, "--device": device, "--dtype": dtype}
        clash = [option for option, value in given.items() if value is not None]
        if clash:
            raise InputError(f"{', '.join(clash)} cannot go with --capture, which has its own: leave one of them out")
        cap = _opened(capture, chosen_layers)
    from interp.reporting.page import report

    written = report(cap, Path(out), heads=chosen_heads, csv=csv)
    size = written.stat().st_size / 1e6
    typer.echo(f"wrote {out} ({size:.1f} MB) in {time.monotonic() - started:.0f} s")


app.command(epilog=auditing.AUDIT_EPILOG)(auditing.audit)
app.command(epilog=captures.CAPTURE_EPILOG)(captures.capture)
app.command(epilog=planning.PLAN_EPILOG)(planning.plan)
app.command(epilog=captures.RESUME_EPILOG)(captures.resume)
app.command(epilog=captures.INFO_EPILOG)(captures.info)
app.command(epilog=comparing.COMPARE_EPILOG)(comparing.compare)
app.command(epilog=corpora.CORPUS_EPILOG)(corpora.corpus)
app.command(epilog=exploring.EXPLORE_EPILOG)(exploring.explore)
app.command(epilog=tables.HOOKS_EPILOG)(tables.hooks)
app.command(epilog=tables.STATS_EPILOG)(tables.stats)


def main() -> NoReturn:
    """Entry point: an error is one line on stderr and an exit status, never a traceback."""
    warnings.showwarning = options.note
    with sturdy_output() as failure:
        status = _run()
        if status == 0 and (why := failure()) is not None:
            fail(why, 1)
    sys.exit(status)


def _run() -> int:
    """Run the command that was called; gives the exit status, or leaves with one line on what is wrong."""
    try:
        status = app(prog_name="ropescope", standalone_mode=False) or 0
    except KeyboardInterrupt:
        status = 130
    except InterruptedRunError as error:
        fail(error, 130)
    except RopescopeError as error:
        fail(error, 1)
    except MemoryError:
        fail("out of memory: read fewer tokens (--tokens), or fewer layers (--layers)", 1)
    except OSError as error:
        fail(options.system_error(error), 1)
    except Exception as error:
        if (usage := getattr(error, "format_message", None)) is not None:
            fail(f"{usage()} {_hint(error)}See ropescope --help.", 2)
        if type(error).__name__ != "Abort":
            raise
        status = 130
    if status == 130:
        fail("interrupted; nothing was written", 130)
    return status


def _hint(error: Exception) -> str:
    """What a usage error may have meant: a text or a capture, named without its option."""
    command = getattr(getattr(error, "ctx", None), "command", None)
    if "unexpected extra argument" not in str(error) or command is None:
        return ""
    given = [option for option in ("--text", "--model", "--capture") if any(option in p.opts for p in command.params)]
    return f"Name what it is with {', '.join(given[:-1])} or {given[-1]}. " if len(given) > 1 else ""


def _captured(model, text, tokens, layers, heads, device, dtype) -> "Capture":
    """Load a model and capture in memory; heavy imports happen here."""
    from interp.texts.texts import read_text, standard_text

    source = standard_text() if text is None else read_text(text)
    device = options.checked_device(device)
    with options.status("loading libraries"):
        from hooks import HookedTransformer
        from interp.captures import capture
        from interp.tensors.selection import head_numbers
    with options.status(f"loading {model}"):
        loaded = HookedTransformer.from_pretrained(model, dtype=dtype, device=device)
    head_numbers(heads, loaded.cfg.n_heads)
    cap = capture(loaded, source, n_tokens=tokens, layers=layers)
    options.note_short_text(len(cap.tokens), tokens)
    return cap


def _opened(directory: str, layers: list[int] | None) -> "Capture":
    """A capture on disk, or some of its layers."""
    options.check_capture(directory)
    with options.status("loading libraries"):
        from interp.captures import open_capture
    cap = open_capture(directory)
    return cap if layers is None else cap.select(layers)
