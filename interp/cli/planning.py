"""``ropescope plan``: what a capture would take, before there is a model, a text or a weight."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import options
from interp.cli.options import Dtype

if TYPE_CHECKING:
    from interp.recording.forecast import Forecast, Speed

PLAN_EPILOG = "Example: ropescope plan meta-llama/Llama-3.1-8B --tokens 131072"
_WIDTH = 80
_ROW = "{:<25} {:>10} {:>13}   {}"


def plan(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=f"{options.MODELS}; a config.json alone will do.")
    ] = "gemma3-270m",
    tokens: Annotated[int, typer.Option(metavar="N", help="How many tokens the text would have.")] = 4096,
    stages: options.Stages = None,
    layers: options.Layers = None,
    loss: options.Loss = True,
    dtype: Dtype = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print bytes and seconds as JSON.")] = False,
) -> None:
    """Say what a capture and its statistics would take and whether it fits here; no weight is read or fetched."""
    options.check_run_options(tokens, dtype, model)
    chosen = options.numbers(layers, "--layers")
    with options.status("loading libraries"):
        from hooks.loading.describing import read_config
        from hooks.memory import free_bytes
        from interp.recording.forecast import Forecast, measure_speed
        from interp.recording.plan import DEFAULT_STAGES
    wanted = DEFAULT_STAGES if stages is None else options.stage_names(stages)
    cfg = read_config(model, dtype=dtype)
    found = Forecast.of_config(cfg, tokens, wanted, chosen, loss=loss)
    with options.status("trying how fast this machine is"):
        speed = measure_speed(cfg, found.dtype)
    free = free_bytes(), shutil.disk_usage(Path.cwd()).free
    typer.echo(json.dumps(_numbers(found, speed, *free), indent=1) if as_json else _table(found, speed, *free))


def summary(found: "Forecast", speed: "Speed", *, device: Any, streamed: bool, out: Path) -> str:
    """One line on what a capture that is about to run will take."""
    from hooks.memory import free_bytes
    from interp.common.words import duration

    place = out if out.is_dir() else out.absolute().parent
    room = f" of {_size(shutil.disk_usage(place).free)} free" if place.is_dir() else ""
    memory = found.memory_streamed if streamed else found.memory
    return (
        f"memory about {_size(memory)}{', weights streamed' if streamed else ''} "
        f"({_size(free_bytes(device))} free now), "
        f"disk {_size(found.disk_with_statistics)}{room}, "
        f"time roughly {duration(found.seconds(speed))} and "
        f"{duration(found.statistics_seconds(speed))} for its statistics"
    )


def _numbers(found: "Forecast", speed: "Speed", free_memory: float, free_disk: float) -> dict[str, Any]:
    """Everything as plain numbers."""
    return {
        "model": found.cfg.model_name,
        "dtype": str(found.dtype).removeprefix("torch."),
        "tokens": found.n_tokens,
        "layers": list(found.steps),
        "stages": list(found.kept_stages),
        "parameters": found.weights.whole,
        "weight_bytes": found.weight_bytes,
        "memory_bytes": round(found.memory),
        "memory_streamed_bytes": round(found.memory_streamed),
        "statistics_memory_bytes": round(found.statistics_memory),
        "capture_bytes": found.disk,
        "capture_bytes_while_running": found.disk_while_running,
        "statistics_bytes": found.statistics_disk,
        "capture_seconds": found.seconds(speed),
        "statistics_seconds": found.statistics_seconds(speed),
        "free_memory_bytes": free_memory,
        "free_disk_bytes": free_disk,
        "longest_that_fits": found.longest_within(free_memory, free_disk),
    }


def _table(found: "Forecast", speed: "Speed", free_memory: float, free_disk: float) -> str:
    """The same for a reader, at most 80 columns wide."""
    from interp.common.words import duration, number_ranges

    cfg = found.cfg
    lines = [
        f"{cfg.model_name}: {found.weights.whole / 1e9:,.2f} billion weights, {_size(found.weight_bytes)} in "
        f"{str(found.dtype).removeprefix('torch.')}",
        f"{cfg.n_layers} layers, {cfg.n_heads} heads and {cfg.n_kv_heads} kv heads of {cfg.d_head}, "
        f"width {cfg.d_model:,}, {cfg.d_vocab:,} words",
        f"A capture of {found.n_tokens:,} tokens, layers {number_ranges(tuple(found.steps))}, stages "
        f"{', '.join(found.kept_stages)}{'' if found.loss else ', without the loss'}",
        "",
        _ROW.format("", "takes", "free here", ""),
    ]
    rows = [
        ("memory, weights held", found.memory, free_memory),
        ("memory, weights streamed", found.memory_streamed, free_memory),
        ("memory, statistics", found.statistics_memory, free_memory),
        ("disk, capture", found.disk_while_running, free_disk),
        ("disk, with statistics", found.disk_with_statistics, free_disk),
    ]
    for name, takes, free in rows:
        lines.append(_ROW.format(name, _size(takes), _size(free), "fits" if takes <= free else "does not fit"))
    lines.append(_ROW.format("time, capture", duration(found.seconds(speed)), "", "").rstrip())
    lines.append(_ROW.format("time, statistics", duration(found.statistics_seconds(speed)), "", "").rstrip())
    longest = found.longest_within(free_memory, free_disk)
    lines += [
        "",
        f"The longest text that fits here: about {longest:,} tokens." if longest else "Not even two tokens fit.",
    ]
    return "\n".join([*(part for line in lines for part in _wrapped(line)), "", *_wrapped(_assumed(found))])


def _assumed(found: "Forecast") -> str:
    """What the numbers rest on."""
    tried = str(found.dtype).removeprefix("torch.")
    return (
        "Assumed: one text, all statistics, the CPU; the disk of this directory. Bytes on disk are those of the "
        "tensors and a little for the rest; memory is within about a factor of 1.5, libraries included. Times are "
        f"rough: from a short trial product in {tried} and a trial attention on this machine as busy as it is now; "
        "reading weights and writing are not in them."
    )


def _wrapped(line: str) -> list[str]:
    """A line in pieces of at most 80 columns."""
    import textwrap

    return textwrap.wrap(line, _WIDTH, break_long_words=False) if len(line) > _WIDTH else [line]


def _size(n_bytes: float) -> str:
    """Bytes as a reader wants them."""
    if n_bytes < 1e9:
        return f"{n_bytes / 1e6:,.1f} MB"
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes < 1e13 else f"{n_bytes / 1e12:,.0f} TB"
