"""The rotation of an attached model as a RopeConfig: proven on its own q and k, near and far, or not claimed."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from hooks.attached.probe import PROBE_LENGTH, LayerFacts, find_layers
from hooks.config.rope import RopeConfig
from hooks.config.steps import STEP_OUTPUT
from hooks.config.transformer import LayerRopes
from hooks.errors import ConfigError
from hooks.functional.live_frequencies import unlike_schedule
from hooks.functional.rope import rotate
from hooks.modules.rotary import Rotary

_Ropes = dict[str, RopeConfig | None]


@dataclass(frozen=True)
class Schedule:
    """What was proven of a model's rotation.

    Attributes:
        rope: the schedule, None where none is proven.
        why_not: why none is.
        limits: what was not proven of it, in sentences.
    """

    rope: RopeConfig | LayerRopes | None = None
    why_not: str = ""
    limits: tuple[str, ...] = ()


def proven_schedule(model: Any, layers: list[LayerFacts]) -> Schedule:
    """The schedule that turns q and k of the probe as the model does, at its first positions and at its last.

    Args:
        model: the transformers model, attached for the time being.
        layers: its layers, as the probe found them at the first positions.
    """
    text = model.config.get_text_config()
    attending = [facts for facts in layers if facts.attention is not None]
    if not any("rope" in facts.steps["q"] for facts in attending):
        return _unproven("no layer was seen to rotate")
    read = _read(text)
    by_type = isinstance(read, Mapping)
    candidates = _candidates(read, {layer_type(facts) for facts in attending})
    fitting = [ropes for ropes in candidates if all(_rotates_by(ropes, facts, 0) for facts in attending)]
    if not fitting:
        if not all(_seen(facts) for facts in attending if "rope" in facts.steps["q"]):
            return _unproven("q before its rotation cannot be seen, so no schedule can be held against it")
        return _unproven("not expressible as a RopeConfig")
    ropes = fitting[0]
    wrong = unlike_schedule(model.named_buffers(), [r for r in ropes.values() if r], attending[0].q.shape[3])
    if wrong:
        name, error = max(wrong.items(), key=lambda each: each[1])
        return _unproven(
            f"the frequencies that the model holds ({name}) are off by {error:.1e} from those of its config, as a cast "
            "of the whole model to a narrower type leaves them (load it in that type instead)"
        )
    return _held_far(model, text, ropes, by_type)


def _held_far(model: Any, text: Any, ropes: _Ropes, by_type: bool) -> Schedule:
    """A schedule that fits near the first positions, held against the model's last ones."""
    rope = LayerRopes(ropes) if by_type else next(iter(ropes.values()))
    trained = getattr(text, "max_position_embeddings", None)
    last = trained if isinstance(trained, int) else 2048
    first = max(last - PROBE_LENGTH, 0)
    try:
        far = [facts for facts in find_layers(model, first) if facts.attention is not None]
    except Exception as error:
        limit = (
            f"the schedule was held against the model's q and k at positions 0 to {PROBE_LENGTH - 1} only: a run at "
            f"others failed with {type(error).__name__}"
        )
        return Schedule(rope, limits=(limit,))
    if not all(_rotates_by(ropes, facts, first) for facts in far):
        return _unproven(f"the schedule of its config turns q and k at the first positions, but not at {first:,}")
    return Schedule(rope, limits=(f"its rotation was not held against a schedule beyond position {last - 1:,}",))


def _unproven(why: str) -> Schedule:
    """No schedule, and why."""
    return Schedule(why_not=why, limits=(f"cfg.rope is None: {why}",))


def layer_type(facts: LayerFacts) -> str:
    """What a layer is called, by whether it has a window."""
    return "sliding_attention" if facts.spec.window is not None else "full_attention"


def _read(text: Any) -> RopeConfig | Mapping[str, RopeConfig | None] | None:
    """The schedule that the config gives, None where it gives none that can be read."""
    settings = text.to_dict()
    with suppress(ConfigError, KeyError, TypeError):
        read = RopeConfig.from_hf(settings)
        if read is not None:
            return read
    if isinstance(settings.get("rotary_dim"), int):
        # GPT-J and CodeGen name the width; their base of 10,000 stands in their code (modeling_gptj.py).
        return RopeConfig(rope_theta=10_000.0, rotary_dim=settings["rotary_dim"])
    return None


def _candidates(read: RopeConfig | Mapping[str, RopeConfig | None] | None, kinds: set[str]) -> Iterator[_Ropes]:
    """That schedule by layer type, in both pairings of features."""
    if read is None:
        return
    ropes = {kind: read.get(kind) if isinstance(read, Mapping) else read for kind in kinds}
    yield ropes
    yield {kind: rope and dataclasses.replace(rope, interleaved=True) for kind, rope in ropes.items()}


def _points(facts: LayerFacts, tensor: str) -> tuple[Any, Any]:
    """A tensor of the probe before and after its rotation, None where it was not seen."""
    steps = facts.steps.get(tensor, ())
    points = [f"hook_{tensor}", *(STEP_OUTPUT[step].format(tensor) for step in steps)]
    at = steps.index("rope")
    return facts.seen.get(points[at]), facts.seen.get(points[at + 1])


def _seen(facts: LayerFacts) -> bool:
    """Whether both sides of the rotation were."""
    return all(x is not None for tensor in "qk" for x in _points(facts, tensor))


def _rotates_by(ropes: _Ropes, facts: LayerFacts, first: int) -> bool:
    """Whether a schedule turns the probe's q and k before rotation, at positions from `first`, into those after it."""
    rope = ropes.get(layer_type(facts))
    for tensor in ("q", "k"):
        if "rope" not in facts.steps.get(tensor, ()):
            continue
        before, after = _points(facts, tensor)
        if rope is None or before is None or after is None:
            return False
        try:
            rotary = Rotary(rope, before.shape[-1])
            positions = first + torch.arange(before.shape[1], device=before.device)[None]
            turned = rotate(before, *rotary(positions, dtype=before.dtype), interleaved=bool(rope.interleaved))
        except ConfigError:
            return False
        if not torch.allclose(turned, after, rtol=0.02, atol=0.02 * float(after.abs().max())):
            return False
    return True
