"""What a capture will be before any of it is there, and whether the one that stands at its path is the same."""

import json
import os
from pathlib import Path
from typing import Any

from hooks.config.comparing import differing_settings
from hooks.errors import CaptureMismatchError
from interp.recording.constants import plain_constants
from interp.recording.plan import CapturePlan
from interp.recording.provenance import environment, token_hash, weight_hash
from interp.storage.manifest import LayerRecord, Manifest
from interp.storage.reading import spec_values


def manifest_of(plan: CapturePlan) -> Manifest:
    """What the capture will be, before any of it is there."""
    config = plan.model.cfg.to_dict()
    config["model_name"] = model_id(plan.model)
    return Manifest(
        model_id=model_id(plan.model),
        config=json.loads(json.dumps(config)),
        weights=weight_hash(plan.model),
        n_tokens=plan.n_tokens,
        tokens=token_hash(plan.tokens[0]),
        stages=plan.stages,
        environment=environment(plan.model),
        provenance=plan.provenance,
        layers={n: _layer_record(plan, n) for n in plan.steps},
        loss=plan.loss,
        documents=None if plan.documents is None else tuple(plan.documents.tolist()),
    )


def _layer_record(plan: CapturePlan, layer: int) -> LayerRecord:
    """What is known of a layer before it runs."""
    spec, factor = plain_constants(plan.model, layer)
    return LayerRecord(plan.steps[layer], plan.stage_names(layer), spec_values(spec), factor)


def model_id(model: Any) -> str:
    """The model's name; of a path only the last part, so that a capture names no place on this machine."""
    name = str(model.cfg.model_name)
    return Path(name).name if os.path.isabs(name) else name


def check_same(directory: Path, found: Manifest, wanted: Manifest) -> None:
    """Raise a CaptureMismatchError that says in what the capture at a path differs from the one asked for."""
    # The weights' own type counts, not the configuration's: a cast changes the first alone.
    settings = [name for name in differing_settings(wanted.config, found.config) if name != "dtype"]
    different = [f"{key} {found.config.get(key)!r} there, {wanted.config.get(key)!r} here" for key in settings[:3]]
    if found.dtype != wanted.dtype:
        different.append(f"weights of {found.dtype} there, of {wanted.dtype} here")
    elif not settings and found.weights != wanted.weights:
        different.append(f"other weights ({found.model_id} there, {wanted.model_id} here)")
    if found.tokens != wanted.tokens:
        different.append(f"another text ({found.n_tokens:,} tokens there, {wanted.n_tokens:,} here)")
    if found.documents != wanted.documents:
        there, here = (1 if m.documents is None else len(m.documents) for m in (found, wanted))
        counts = f"{there:,} there, {here:,} here" if there != here else f"{there:,} that begin elsewhere"
        different.append(f"other documents packed into its row ({counts})")
    held, asked = ({n: (r.steps, r.stages) for n, r in m.layers.items()} for m in (found, wanted))
    if set(held) != set(asked):
        different.append(f"layers {', '.join(map(str, held))} there, {', '.join(map(str, asked))} here")
    elif held != asked:
        different.append(f"stages {', '.join(found.stages)} there, {', '.join(wanted.stages)} here")
    if found.loss != wanted.loss:
        different.append("with its loss there, without here" if found.loss else "without its loss there, with it here")
    if different:
        raise CaptureMismatchError(
            f"the capture in {str(directory)!r} is another one: {'; '.join(different)}; choose another path"
        )
