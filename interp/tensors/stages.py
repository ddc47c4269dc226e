"""The steps between a projection and a score, and the names of the tensors between them."""

from difflib import get_close_matches

from hooks.errors import StageError

STEPS = ("clip", "norm", "rope")
STAGES = (*(f"{side}_{step}" for step in STEPS for side in ("pre", "post")), "final")


def steps_before(stage: str, steps: tuple[str, ...]) -> int | None:
    """How many steps the tensor of this stage has behind it; None when the layer has no such stage.

    ``pre_rope`` of a layer that normalises and then rotates is ``post_norm``: both have one step behind them.

    Raises:
        StageError: the name is no stage at all.
    """
    if stage not in STAGES:
        near = get_close_matches(str(stage), STAGES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise StageError(f"unknown stage {stage!r}: {hint}stages are {', '.join(STAGES)}")
    if stage == "final":
        return len(steps)
    side, step = stage.split("_")
    if step not in steps:
        return None
    return steps.index(step) + (side == "post")


def stage_name(done: int, steps: tuple[str, ...]) -> str:
    """The stage that has this many steps behind it, by its shortest description: before the next one, or final."""
    return "final" if done == len(steps) else f"pre_{steps[done]}"
