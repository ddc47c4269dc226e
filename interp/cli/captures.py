"""``ropescope capture``, ``resume`` and ``info``: captures on disk from a script."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import options
from interp.cli.options import MODELS, Device, Dtype, InterruptedRunError, TextFile
from interp.cli.planning import summary

if TYPE_CHECKING:
    from interp.captures import Capture
    from interp.metrics import Resolved
    from interp.recording.plan import CapturePlan

CAPTURE_EPILOG = "Example: ropescope capture --model smollm2-135m --text essay.txt --out essay.capture"
RESUME_EPILOG = "Example: ropescope resume essay.capture"
INFO_EPILOG = "Example: ropescope info essay.capture --verify"
_Directory = Annotated[str, typer.Argument(metavar="DIR", help="The capture.")]
_Force = Annotated[
    bool,
    typer.Option("--force", help="Go on although torch, threads, device or processor changed; last bits will differ."),
]


def capture(
    model: Annotated[str, typer.Option(metavar="MODEL", help=f"{MODELS}.")] = "gemma3-270m",
    text: TextFile = None,
    tokens: Annotated[int, typer.Option(metavar="N", help="How many tokens of it to read.")] = 4096,
    stages: options.Stages = None,
    layers: options.Layers = None,
    loss: options.Loss = True,
    gradient_of: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC",
            help="Take gradients of it: logit(' Paris'), logit_difference(' Paris', ' London'), loss().",
        ),
    ] = None,
    out: Annotated[str, typer.Option(metavar="DIR", help="Where to write the capture.")] = "ropescope.capture",
    device: Device = None,
    dtype: Dtype = None,
    force: _Force = False,
) -> None:
    """Run a model on a text and keep q, k and v of each layer in a directory.

    Run it again, or `ropescope resume DIR`, after it was stopped: it goes on from the last finished layer.
    """
    options.check_run_options(tokens, dtype, model)
    options.check_place(out)
    chosen = options.numbers(layers, "--layers")
    asked = options.metric(gradient_of)
    from interp.texts.texts import read_text, standard_text

    source = standard_text() if text is None else read_text(text)
    device = options.checked_device(device)
    with options.status("loading libraries"):
        from hooks import HookedTransformer
        from interp.recording.gradients import resolved_metric
        from interp.recording.plan import DEFAULT_STAGES, plan_capture
    with options.status(f"loading {model}"):
        loaded = HookedTransformer.from_pretrained(model, dtype=dtype, device=device, stream=_streams(Path(out)))
    wanted = DEFAULT_STAGES if stages is None else options.stage_names(stages)
    plan = plan_capture(loaded, source, tokens, wanted, chosen, loss)
    options.note_short_text(plan.n_tokens, tokens)
    metric = None if asked is None else resolved_metric(plan, asked)
    _say_what_it_takes(plan, out)
    _write(plan, out, metric, force=force)


def _streams(out: Path) -> bool:
    """Whether weights are read as blocks run, once, since a capture runs each once; not where it began otherwise."""
    from interp.storage.manifest import MANIFEST, read_manifest
    from interp.storage.resuming import streams_weights

    return not (out / MANIFEST).is_file() or streams_weights(read_manifest(out))


def _say_what_it_takes(plan: "CapturePlan", out: str) -> None:
    """The line of ``ropescope plan``, before anything runs."""
    from interp.recording.forecast import Forecast, measure_speed

    found = Forecast.of_plan(plan)
    speed = measure_speed(found.cfg, found.dtype, str(plan.model.device))
    streamed = getattr(plan.model, "stream", None) is not None
    options.note(summary(found, speed, device=plan.model.device, streamed=streamed, out=Path(out)))


def resume(directory: _Directory, force: _Force = False) -> None:
    """Go on with a capture that was stopped, from its directory alone."""
    options.check_capture(directory)
    from interp.storage.manifest import read_manifest

    manifest = read_manifest(Path(directory))
    from interp.storage.resuming import metric_to_finish

    asked = metric_to_finish(Path(directory), manifest)
    if manifest.is_complete and asked is None:
        from interp.storage.gradient_files import tidy_gradients
        from interp.storage.writing import tidy

        tidy(Path(directory))
        tidy_gradients(Path(directory))
        typer.echo(f"{directory} is complete")
        return
    with options.status(f"loading {manifest.model_id}"):
        from interp.storage.resuming import load_model, plan_rest

        plan = plan_rest(Path(directory), manifest, load_model(Path(directory), manifest))
    from interp.recording.gradients import resolved_metric

    _write(plan, directory, None if asked is None else resolved_metric(plan, asked), force=force)


def info(
    directory: _Directory,
    verify: Annotated[bool, typer.Option("--verify", help="Read every file again and compare its SHA-256.")] = False,
) -> None:
    """Print what a capture holds; with --verify, check every byte of it (exit status 1 names the bad files)."""
    options.check_capture(directory)
    from hooks.errors import CaptureDamagedError
    from interp.captures import open_capture
    from interp.storage.gradient_files import damaged_gradients
    from interp.storage.manifest import read_manifest
    from interp.storage.reading import CaptureFiles
    from interp.storage.statistics_store import StatisticsStore

    manifest = read_manifest(Path(directory))
    if verify:
        problems = CaptureFiles(Path(directory), manifest).damaged() + StatisticsStore(Path(directory), {}).damaged()
        problems += damaged_gradients(Path(directory))
        if problems:
            raise CaptureDamagedError("; ".join(problems))
    typer.echo(_described(open_capture(directory)))
    if verify:
        typer.echo(f"verified: {len(manifest.files)} files are what they were when they were written")


def _write(plan: "CapturePlan", out: str, metric: "Resolved | None", *, force: bool) -> None:
    """Say what it will cost, capture, and say what was written."""
    from interp.captures import read_capture
    from interp.recording.cost import Pace, size_estimate, time_estimate
    from interp.storage.gradient_files import write_with_gradients
    from interp.storage.manifest import MANIFEST, read_manifest
    from interp.storage.writing import write_capture

    started = time.monotonic()
    typer.echo(size_estimate(plan, Path(out)))
    if metric is not None:
        typer.echo(f"gradients of {metric.name} take {plan.gradient_bytes:,} bytes more, and three times as long")
    begun = Path(out) / MANIFEST
    if getattr(plan.model, "stream", None) is None:  # a trial would read the embedding and a block for nothing else
        typer.echo(time_estimate(plan, read_manifest(Path(out)).blocks_run if begun.is_file() else 0))
    try:
        watch = Pace(plan, typer.echo)
        if metric is None:
            write_capture(plan, out, force=force, watch=watch)
        else:
            write_with_gradients(plan, out, metric, force=force, watch=watch)
    except KeyboardInterrupt:
        again = f"go on with: ropescope resume {out}" if begun.is_file() else "nothing was captured yet: run it again"
        raise InterruptedRunError(f"interrupted; {again}") from None
    from interp.tensors.description import bytes_in_words

    typer.echo(f"wrote {out} ({bytes_in_words(read_capture(out))} of q, k and v) in {time.monotonic() - started:.0f} s")


def _loss_line(cap: "Capture") -> str:
    """The mean loss, or why there is none."""
    if len(cap.loss):
        return f"{float(cap.predicted_loss.double().mean()):.4f} nats per token"
    return cap.provenance["settings"].get("loss", "not there yet")


def _storage_rows(cap: "Capture") -> list[tuple[str, str]]:
    """What is stored and what is derived, with the layers that it is so in."""
    from interp.common.words import number_ranges

    alike: dict[tuple[str, ...], list[int]] = {}
    for layer in cap.layers:
        alike.setdefault(cap._layers[layer].derived, []).append(layer)
    rows = [("stored", f"{cap.stored_bytes:,} bytes")]
    for names, layers in alike.items():
        what = ", ".join(names) if names else "nothing"
        rows.append(("derived", f"{what} when read, in layer{'s' * (len(layers) > 1)} {number_ranges(layers)}"))
    return rows


def _gradient_line(cap: "Capture") -> str:
    """Of what there are gradients."""
    if cap.gradients is not None:
        return f"of {cap.gradients.metric}, which is {cap.gradients.value:.6g}"
    from interp.storage.gradient_record import has_gradients

    begun = cap.path is not None and has_gradients(cap.path)
    return f"unfinished: go on with `ropescope resume {cap.path}`" if begun else "none"


def _described(cap: "Capture") -> str:
    """What a capture holds, in lines."""
    from interp.tensors.description import size_in_words

    rows: list[tuple[str, Any]] = [
        ("model", cap.model_id),
        ("text", f"{size_in_words(cap)}, {cap.provenance['text']['read']}"),
        ("loss", _loss_line(cap)),
        ("q, k and v", f"{cap.n_bytes:,} bytes"),
        *_storage_rows(cap),
        ("gradients", _gradient_line(cap)),
        ("complete", "yes" if cap.is_complete else f"no: go on with `ropescope resume {cap.path}`"),
    ]
    lines = [f"{name:<11} {value}" for name, value in rows]
    if cap.layers:
        lines += ["", cap.holdings().drop(columns="derived").to_string()]
    return "\n".join(lines)
