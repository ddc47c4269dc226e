"""Going on with an interrupted capture from its directory alone."""

import json
import warnings
from pathlib import Path

from hooks import HookedTransformer, HookedTransformerConfig
from hooks.attached.transformer import AttachedTransformer
from hooks.config.comparing import differing_settings
from hooks.errors import CaptureError, RopescopeError
from interp.recording.plan import DEFAULT_STAGES, CapturePlan, plan_capture
from interp.recording.provenance import STREAMED
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


def load_model(directory: Path, manifest: Manifest) -> HookedTransformer:
    """The model of a capture, from where it was loaded before, under the settings that it was captured with."""
    again = f"resume it in Python, with the same model: capture(model, tokens, path={str(directory)!r})"
    try:
        source = json.loads(_text_of(directory / SOURCE))["model"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        source = None
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
