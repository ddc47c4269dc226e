"""Which captured layers rotate, as far as a capture knows."""

from collections.abc import Sequence

from hooks.errors import StageError
from interp.common.words import number_ranges
from interp.tensors.capture_data import CaptureData, check_capture
from interp.tensors.selection import asked_layers


def rotating_layers(cap: CaptureData, layers: int | Sequence[int] | None = None) -> tuple[int, ...]:
    """The captured layers that rotate, or those asked for.

    Raises:
        StageError: one that was asked for is not captured or does not rotate, or none does.
    """
    turning = tuple(layer for layer in check_capture(cap).layers if "rope" in cap.steps(layer))
    chosen = turning if layers is None else asked_layers(cap.layers, layers)
    for layer in chosen or cap.layers[:1]:
        check_rotation_seen(cap, layer)
    still = [layer for layer in chosen if "rope" not in cap.steps(layer)]
    if still or not chosen:
        what = f"layer {still[0]} does not rotate" if still else "none rotates"
        raise StageError(f"{what}; layers of this capture that rotate: {number_ranges(turning) or 'none'}")
    return chosen


def check_rotation_seen(cap: CaptureData, layer: int) -> None:
    """Raise a StageError where a foreign model may rotate out of the capture's sight."""
    seen = any("rope" in cap.steps(other) for other in (layer, *cap.layers))
    if cap.cfg.rope is None and "rope" in cap.cfg.provenance and not seen:
        raise StageError(
            f"whether and how layer {layer} rotates cannot be seen in this capture of a foreign model, which holds q "
            "and k only as they enter the score: capture HookedTransformer.from_pretrained(…) instead"
        )
