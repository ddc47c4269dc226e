"""The ``ropescope`` command. Nothing heavy is imported before a command runs."""

import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from hooks.errors import InputError, RopescopeError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="See what a transformer does with position: attention and scores before and after QK-norm and RoPE.",
)

_REPORT_EPILOG = "Example: ropescope report --model smollm2-135m --text essay.txt --layers 0,3-5 --out essay.html"
_DTYPES = ("float32", "bfloat16", "float16")


@app.callback()
def _ropescope() -> None:
    """See what a transformer does with position: attention and scores before and after QK-norm and RoPE."""


@app.command(epilog=_REPORT_EPILOG)
def report(
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="gemma3-270m, smollm2-135m, a Hub id, a directory or a .gguf file.")
    ] = "gemma3-270m",
    text: Annotated[
        str | None, typer.Option(metavar="FILE", help="A UTF-8 text file; by default the standard text.")
    ] = None,
    tokens: Annotated[int, typer.Option(metavar="N", help="How many tokens of it to read.")] = 4096,
    layers: Annotated[
        str | None, typer.Option(metavar="LIST", help="Layers to report on, such as 0,3-5; by default all.")
    ] = None,
    heads: Annotated[
        str | None, typer.Option(metavar="LIST", help="Heads of each layer to show, such as 0-3; by default all.")
    ] = None,
    out: Annotated[str, typer.Option(metavar="FILE", help="Where to write the report.")] = "ropescope-report.html",
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1, mps; by default the model's own.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="DTYPE", help="float32, bfloat16 or float16; by default the model's own.")
    ] = None,
) -> None:
    """Run a model on a text and write one HTML file on its attention."""
    started = time.monotonic()
    if tokens < 2:
        raise InputError(f"--tokens {tokens}: attention needs at least 2")
    if dtype is not None and dtype not in _DTYPES:
        raise InputError(f"--dtype {dtype!r}: choose from {', '.join(_DTYPES)}")
    chosen_layers, chosen_heads = _numbers(layers, "--layers"), _numbers(heads, "--heads")
    from interp.files import check_writable
    from interp.texts import read_text, standard_text

    check_writable(out)
    source = standard_text() if text is None else read_text(text)
    written = _run(model, source, tokens, chosen_layers, chosen_heads, Path(out), _device(device), dtype)
    size = written.stat().st_size / 1e6
    typer.echo(f"wrote {out} ({size:.1f} MB) in {time.monotonic() - started:.0f} s")


def main() -> NoReturn:
    """Entry point: an error is one line on stderr and an exit status, never a traceback."""
    warnings.showwarning = _note
    try:
        status = app(prog_name="ropescope", standalone_mode=False) or 0
    except KeyboardInterrupt:
        status = 130
    except RopescopeError as error:
        _fail(error, 1)
    except MemoryError:
        _fail("out of memory: read fewer tokens (--tokens), or fewer layers (--layers)", 1)
    except Exception as error:
        if type(error).__name__ == "Abort":
            status = 130
        elif (usage := getattr(error, "format_message", None)) is not None:
            _fail(f"{usage()} See ropescope --help.", 2)
        else:
            raise
    if status == 130:
        _fail("interrupted; no report was written", 130)
    sys.exit(status)


def _run(model, source, tokens, layers, heads, out, device, dtype) -> Path:
    """Load, capture, report; heavy imports happen here."""
    with _status("loading libraries"):
        from hooks import HookedTransformer
        from interp.captures import capture
        from interp.reports import check_heads, report
    with _status(f"loading {model}"):
        loaded = HookedTransformer.from_pretrained(model, dtype=dtype, device=device)
    check_heads(loaded.cfg.n_heads, heads)
    cap = capture(loaded, source, n_tokens=tokens, layers=layers)
    if len(cap.tokens) < tokens:
        _note(f"the text has {len(cap.tokens):,} tokens, fewer than the {tokens:,} asked for; all of it was read")
    return report(cap, out, heads=heads)


def _numbers(text: str | None, option: str) -> list[int] | None:
    """``0,3-5`` as [0, 3, 4, 5]; None stays None."""
    if text is None:
        return None
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not _is_number(first) or (dash and not _is_number(last)):
            raise InputError(f"{option} {text!r}: write numbers and ranges from 0, such as 0,3-5")
        low, high = int(first), int(last or first)
        if high < low or high - low > 10_000:
            raise InputError(f"{option} {text!r}: the range {part.strip()} does not go from small to large")
        chosen.update(range(low, high + 1))
    return sorted(chosen)


def _is_number(text: str) -> bool:
    """Whether the text is a short run of ASCII digits."""
    return text.isascii() and text.isdigit() and len(text) <= 6


def _device(name: str | None) -> str | None:
    """A device that this machine has, or an InputError."""
    if name is None:
        return None
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"--device {name!r} does not work here: {reason}") from None
    return name


def _status(message: str):
    """A spinner on stderr while a block runs, on a terminal only."""
    from rich.console import Console

    return Console(stderr=True).status(message)


def _note(message: object, *_: object, **__: object) -> None:
    """One line on stderr that is no error; also how warnings are shown."""
    print(f"note: {_one_line(message)}", file=sys.stderr)


def _fail(message: object, status: int) -> NoReturn:
    """Print one line and leave."""
    print(f"error: {_one_line(message)}", file=sys.stderr)
    sys.exit(status)


def _one_line(message: object) -> str:
    """A message without line breaks and control characters, which a file name or a text may have put there."""
    return "".join(c if c.isprintable() else " " for c in " ".join(str(message).split()))


if __name__ == "__main__":
    main()
