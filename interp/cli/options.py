"""What the commands share: reading options, a spinner, and one-line messages. Imports nothing heavy."""

import os
import sys
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from hooks import checks
from hooks.errors import CaptureError, InputError, OutputError

if TYPE_CHECKING:
    from interp.metrics import Metric

DTYPES = ("float32", "bfloat16", "float16")
MODELS = "gemma3-270m, smollm2-135m, a Hub id, a directory or a .gguf file"

TextFile = Annotated[str | None, typer.Option(metavar="FILE", help="A UTF-8 text file; by default the standard text.")]
Device = Annotated[
    str | None, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1, mps; by default the model's own.")
]
Dtype = Annotated[
    str | None, typer.Option(metavar="DTYPE", help="float32, bfloat16 or float16; by default the model's own.")
]
Stages = Annotated[
    str | None,
    typer.Option(metavar="LIST", help="Stages to keep besides the final q and k; by default pre_norm,pre_rope."),
]
Layers = Annotated[str | None, typer.Option(metavar="LIST", help="Layers to keep, such as 0,3-5; by default all.")]
Loss = Annotated[
    bool, typer.Option("--loss/--no-loss", help="Compute the loss; without it the last layer kept ends the run.")
]


class InterruptedRunError(Exception):
    """Ctrl-C, with a line on what is left and how to go on."""


def numbers(text: str | None, option: str) -> list[int] | None:
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


def stage_names(text: str) -> tuple[str, ...]:
    """``pre_norm, pre_rope`` as names."""
    return tuple(stage.strip() for stage in text.split(","))


def metric(text: str | None) -> "Metric | None":
    """The metric that a call in words makes, or an InputError."""
    if text is None:
        return None
    from interp.metrics import from_text

    return from_text(text)


def check_run_options(tokens: int, dtype: str | None, model: str) -> None:
    """Raise an InputError for a number of tokens, a type or a model that no run can have."""
    check_model(model)
    if tokens < 2:
        raise InputError(f"--tokens {tokens}: attention needs at least 2")
    check_dtype(dtype)


def check_dtype(dtype: str | None) -> None:
    """Raise an InputError for a type that no weights can have."""
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"--dtype {dtype!r}: choose from {', '.join(DTYPES)}")


def check_model(model: str) -> None:
    """Raise an InputError for a model without a name."""
    if not model.strip():
        raise InputError(f"the model {model!r} has no name: give {MODELS}")


def check_capture(directory: str) -> None:
    """Raise a CaptureError if there is no capture at a path; at once, before anything heavy is imported."""
    path = checks.path("the capture", directory, error=CaptureError)
    try:
        found = (path / "manifest.json").lstat()
    except (FileNotFoundError, NotADirectoryError):
        found = None
    except OSError as error:
        raise CaptureError(f"cannot read {directory!r}: {error.strerror}") from None
    if found is None:
        raise CaptureError(f"there is no capture in {directory!r}: it has no manifest.json")


def check_place(path: str) -> None:
    """Raise an OutputError for a path where no directory can be, before a model is loaded."""
    place = checks.path("the path", path, error=OutputError)
    try:
        os.lstat(place)
        os.lstat(place.absolute())
    except FileNotFoundError:
        os.getcwd()  # that itself may be gone
    except OSError as error:
        raise OutputError(f"cannot write {path!r}: {error.strerror}; choose another place") from None


def system_error(error: OSError) -> str:
    """What the system refused, in one line; the directory that a command stands in may be gone."""
    try:
        os.getcwd()
    except OSError:
        return "the current directory is not there any more: change to one that is"
    where = "" if error.filename is None else f" {str(error.filename)!r}"
    return f"the system refused{where}: {error.strerror or error}"


def checked_device(name: str | None) -> str | None:
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


def status(message: str):
    """A spinner on stderr while a block runs, on a terminal only."""
    from rich.console import Console

    return Console(stderr=True).status(message)


def note(message: object, *_: object, **__: object) -> None:
    """One line on stderr that is no error; also how warnings are shown."""
    print(f"note: {_one_line(message)}", file=sys.stderr)


def fail(message: object, exit_status: int) -> NoReturn:
    """Print one line and leave."""
    print(f"error: {_one_line(message)}", file=sys.stderr)
    sys.exit(exit_status)


def note_short_text(n_tokens: int, asked: int) -> None:
    """Say so when a text has fewer tokens than were asked for."""
    if n_tokens < asked:
        note(f"the text has {n_tokens:,} tokens, fewer than the {asked:,} asked for; all of it was read")


def _is_number(text: str) -> bool:
    """Whether the text is a short run of ASCII digits."""
    return text.isascii() and text.isdigit() and len(text) <= 6


def _one_line(message: object) -> str:
    """A message without line breaks and control characters, which a file name or a text may have put there."""
    return "".join(c if c.isprintable() else " " for c in " ".join(str(message).split()))
