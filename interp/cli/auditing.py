"""``ropescope audit``: what a model's settings and weights say about position, before any text."""

from typing import TYPE_CHECKING, Annotated

import typer

from interp.cli import options
from interp.cli.options import MODELS, Device, Dtype
from interp.cli.tables import console

if TYPE_CHECKING:
    from hooks import HookedTransformer, HookedTransformerConfig

AUDIT_EPILOG = "Example: ropescope audit smollm2-135m --html audit.html"


def audit(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=f"{MODELS}.")] = "gemma3-270m",
    layers: Annotated[
        str | None, typer.Option(metavar="LIST", help="Layers to audit, such as 0,3-5; by default all.")
    ] = None,
    factor: Annotated[
        float, typer.Option(metavar="X", help="How far the schedules compared stretch the trained length.")
    ] = 4.0,
    weights: Annotated[
        bool, typer.Option("--weights/--no-weights", help="Read the weights; without them say what the config says.")
    ] = True,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Also write every number as JSON.")] = None,
    html: Annotated[str | None, typer.Option(metavar="FILE", help="Also write a page with figures.")] = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Print what a model's settings and weights prove about its attention to positions; no text is read.

    Wavelengths against the trained length, what other schedules would change, score bounds, float16 and float8, and
    what each head can do at each distance.
    """
    options.check_model(model)
    options.check_dtype(dtype)
    chosen = options.numbers(layers, "--layers")
    from interp.common.files import check_writable
    from interp.reporting.audit_json import is_audit_json, write_audit_json

    if json is not None:
        check_writable(json, is_audit_json)
    if html is not None:
        check_writable(html)
    device = options.checked_device(device)
    with options.status("loading libraries"):
        from interp.auditing.auditing import audit as audit_model
        from interp.auditing.printed import screen
    with options.status(f"loading {model}"):
        source = _loaded(model, dtype, device) if weights else _config(model)
    with options.status("reading weights"):
        found = audit_model(source, chosen, factor=factor)
    for part in screen(found):
        console().print(part)
    if json is not None:
        written = write_audit_json(found, json)
        typer.echo(f"wrote {json} ({written.stat().st_size / 1e6:.1f} MB)")
    if html is not None:
        written = found.report(html)
        typer.echo(f"wrote {html} ({written.stat().st_size / 1e6:.1f} MB)")


def _loaded(model: str, dtype: str | None, device: str | None) -> "HookedTransformer":
    """The model, its weights streamed where they do not fit."""
    from hooks import HookedTransformer

    return HookedTransformer.from_pretrained(model, dtype=dtype, device=device)


def _config(model: str) -> "HookedTransformerConfig":
    """The settings alone: of a file, its header."""
    from hooks.loading.sources import read_source

    return read_source(model).cfg
