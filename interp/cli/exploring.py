"""``ropescope explore``: a capture as a page in the browser, served to this machine alone."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from hooks.errors import InputError
from interp.cli import options
from interp.cli.options import MODELS, Device, Dtype, TextFile

if TYPE_CHECKING:
    from interp.captures import Capture

EXPLORE_EPILOG = "Example: ropescope explore essay.capture"
_MODEL, _TOKENS = "gemma3-270m", 4096


def explore(
    capture: Annotated[str | None, typer.Argument(metavar="CAPTURE", help="A capture on disk.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help=f"Without a capture: {MODELS}; by default {_MODEL}.")
    ] = None,
    text: TextFile = None,
    tokens: Annotated[
        int | None, typer.Option(metavar="N", help=f"How many tokens of it to read; by default {_TOKENS}.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(metavar="LIST", help="Layers to explore, such as 0,3-5; by default all.")
    ] = None,
    port: Annotated[
        int, typer.Option(metavar="PORT", help="Port on 127.0.0.1; by default any that is free.", min=0, max=65535)
    ] = 0,
    open: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Explore every attention pattern as a map, exact at every zoom, in the browser.

    Measures what the capture lacks, prints the page's address, and answers it until Ctrl-C. Nobody else can reach it:
    it listens on 127.0.0.1, and its address holds a secret.
    """
    given = {"--model": model, "--text": text, "--tokens": tokens, "--device": device, "--dtype": dtype}
    clash = [option for option, value in given.items() if value is not None]
    if capture is not None and clash:
        raise InputError(f"{', '.join(clash)} cannot go with a capture, which has its own: leave one of them out")
    chosen = options.numbers(layers, "--layers")
    if capture is None:
        name, n = model or _MODEL, _TOKENS if tokens is None else tokens
        options.check_run_options(n, dtype, name)
        cap, source = _run(name, text, n, chosen, device, dtype)
    else:
        options.check_capture(capture)
        _check_installed()
        with options.status("loading libraries"):
            from interp.captures import open_capture
        cap = open_capture(capture)
        cap = cap if chosen is None else cap.select(chosen)
        source = f"from interp import open_capture\n\ncap = open_capture({capture!r})"
    from interp.explorer.questions import Explorer
    from interp.explorer.server import serve

    def ready(address: str) -> None:
        typer.echo(address)
        sys.stdout.flush()
        typer.echo("Ctrl-C ends it", err=True)
        if open:
            import webbrowser

            webbrowser.open(address)

    serve(Explorer(cap, source), port, ready=ready)


def _check_installed() -> None:
    """Raise an InputError where the extra is missing, before anything is loaded."""
    from importlib.util import find_spec

    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise InputError(f"exploring needs {' and '.join(missing)}: pip install 'ropescope[explore]'")


def _run(
    model: str, text: str | None, tokens: int, layers: list[int] | None, device: str | None, dtype: str | None
) -> "tuple[Capture, str]":
    """A capture in memory, and the lines of Python that make it."""
    from interp.texts.texts import read_text, standard_text

    _check_installed()
    read = standard_text() if text is None else read_text(text)
    device = options.checked_device(device)
    with options.status("loading libraries"):
        from hooks import HookedTransformer
        from interp.captures import capture
    with options.status(f"loading {model}"):
        loaded = HookedTransformer.from_pretrained(model, dtype=dtype, device=device)
    cap = capture(loaded, read, n_tokens=tokens, layers=layers, loss=False)
    options.note_short_text(len(cap.tokens), tokens)
    settings = "".join(f", {name}={value!r}" for name, value in (("dtype", dtype), ("device", device)) if value)
    words = "standard_text()" if text is None else f"Path({text!r}).read_text()"
    lines = [
        "from hooks import HookedTransformer",
        "from interp import capture" + ("" if text else ", standard_text"),
        "",
        f"model = HookedTransformer.from_pretrained({model!r}{settings})",
        f"cap = capture(model, {words}, n_tokens={tokens}, layers={layers!r}, loss=False)",
    ]
    return cap, "\n".join((["from pathlib import Path", ""] if text else []) + lines)
