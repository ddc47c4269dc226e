"""Going on with an interrupted capture from its directory alone."""

import json
import warnings
from pathlib import Path

from hooks import HookedTransformer, HookedTransformerConfig
from hooks.attached.transformer import AttachedTransformer
from hooks.config.comparing import differing_settings
from hooks.errors import CaptureError, RopescopeError
from interp.metrics import Metric, from_description
from interp.recording.plan import DEFAULT_STAGES, CapturePlan, plan_capture
from interp.recording.provenance import STREAMED
from interp.storage.gradient_record import has_gradients, read_record
from interp.storage.manifest import TOKENS, Manifest
from interp.storage.own_files import SOURCE
from interp.storage.reading import CaptureFiles, config_of

_LONGEST = 2**20


def plan_rest(directory: Path, manifest: Manifest, model: HookedTransformer | AttachedTransformer) -> CapturePlan:
    """The plan that a capture was begun with, from its own files."""
    files = CaptureFiles(directory, manifest)  # the rest is checked under the lock: another process may be writing
    stages = DEFAULT_STAGES if manifest.stages == DEFAULT_STAGES else manifest.stages
    tokens = files.tensor(TOKENS, "tokens")
    positions = None if manifest.documents is None else files.positions()
    return plan_capture(
        model, tokens, stages=stages, layers=tuple(manifest.layers), loss=manifest.loss, positions=positions
    )


def metric_to_finish(directory: Path, manifest: Manifest) -> Metric | None:
    """The metric of gradients that were begun beside a capture and are not finished.

    Raises:
        InputError: a custom one, whose function no file holds.
        CaptureError: the gradients were asked for, and the run was stopped before it said of what.
    """
    if has_gradients(directory):
        record = read_record(directory)
        return None if record.is_complete else from_description(record.metric)
    wanted = manifest.provenance.get("settings", {}).get("gradient of")
    if wanted is not None and not manifest.is_complete:
        raise CaptureError(
            f"the capture in {str(directory)!r} was begun with gradients of {wanted}, and stopped before that was "
            f"noted in full: go on in Python, with capture(model, tokens, {str(directory)!r}, gradient_of=the same)"
        )
    return None


def load_model(directory: Path, manifest: Manifest) -> HookedTransformer:
    """The model of a capture, from where it was loaded before, under the settings that it was captured with."""
    again = f"resume it in Python, with the same model: capture(model, tokens, path={str(directory)!r})"
    try:
        source = json.loads(_text_of(directory / SOURCE))["model"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        source = None
    if source is None and has_gradients(directory):  # the capture itself may be complete
        source = read_record(directory).source
    if not isinstance(source, str):
        raise CaptureError(f"nothing says where the model {manifest.model_id!r} was loaded from; {again}")
    cfg = config_of(directory, manifest)
    try:
        dtype, device = manifest.dtype or cfg.dtype, manifest.environment.get("device")
        stream = streams_weights(manifest)
        model = HookedTransformer.from_pretrained(source, dtype=dtype, device=device, stream=stream)
        return _under_settings(model, cfg)
    except RopescopeError as error:
        raise CaptureError(f"cannot load the model {source!r} again ({error}); {again}") from None


def streams_weights(manifest: Manifest) -> bool:
    """Whether a capture was begun with streamed weights, which are told from others by their files, not their bytes."""
    return manifest.weights.startswith(STREAMED)


def _text_of(path: Path) -> bytes:
    """A small regular file."""
    if not path.is_file() or path.stat().st_size > _LONGEST:
        raise ValueError
    return path.read_bytes()


def _under_settings(model: HookedTransformer, cfg: HookedTransformerConfig) -> HookedTransformer:
    """The model under the settings of a config, where they are not its own."""
    # The weights' type is that of the manifest: a model that was cast still has the type it was loaded in as a setting.
    differing = set(differing_settings(cfg.to_dict(), model.cfg.to_dict())) - {"dtype"}
    changes = {name: getattr(cfg, name) for name in sorted(differing)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when the capture began
        return model.with_config(**changes) if changes else model
