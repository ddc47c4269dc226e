"""Going on with an interrupted capture from its directory alone."""

import json
import warnings
from pathlib import Path

from hooks import HookedTransformer, HookedTransformerConfig
from hooks.attached.transformer import AttachedTransformer
from hooks.config.comparing import differing_settings
from hooks.errors import CaptureError, RopescopeError
from interp.recording.plan import DEFAULT_STAGES, CapturePlan, plan_capture
from interp.storage.manifest import TOKENS, Manifest
from interp.storage.reading import CaptureFiles, config_of
from interp.storage.writing import SOURCE


def plan_rest(directory: Path, manifest: Manifest, model: HookedTransformer | AttachedTransformer) -> CapturePlan:
    """The plan that a capture was begun with, from its own files."""
    files = CaptureFiles(directory, manifest)  # the rest is checked under the lock: another process may be writing
    stages = DEFAULT_STAGES if manifest.stages == DEFAULT_STAGES else manifest.stages
    tokens = files.tensor(TOKENS, "tokens")
    return plan_capture(model, tokens, stages=stages, layers=manifest.layers, loss=manifest.loss)


def load_model(directory: Path, manifest: Manifest) -> HookedTransformer:
    """The model of a capture, from where it was loaded before, under the settings that it was captured with."""
    again = f"resume it in Python, with the same model: capture(model, tokens, path={str(directory)!r})"
    try:
        source = json.loads((directory / SOURCE).read_bytes())["model"]
    except (OSError, ValueError, KeyError, TypeError):
        source = None
    if not isinstance(source, str):
        raise CaptureError(f"nothing says where the model {manifest.model_id!r} was loaded from; {again}")
    cfg = config_of(directory, manifest)
    try:
        model = HookedTransformer.from_pretrained(source, dtype=cfg.dtype, device=manifest.environment.get("device"))
        return _under_settings(model, cfg)
    except RopescopeError as error:
        raise CaptureError(f"cannot load the model {source!r} again ({error}); {again}") from None


def _under_settings(model: HookedTransformer, cfg: HookedTransformerConfig) -> HookedTransformer:
    """The model under the settings of a config, where they are not its own."""
    changes = {name: getattr(cfg, name) for name in differing_settings(cfg.to_dict(), model.cfg.to_dict())}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when the capture began
        return model.with_config(**changes) if changes else model
