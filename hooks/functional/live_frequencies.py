"""The frequencies that a live model holds in buffers, against those of its schedule."""

from collections.abc import Iterable

import torch
from torch import Tensor

from hooks.config.rope import RopeConfig
from hooks.functional.rope import inv_freq

# A device may compute a power one or two units in the last place off; a cast to bfloat16 is 30,000 of them.
_SAME = 8 * torch.finfo(torch.float32).eps


def unlike_schedule(
    buffers: Iterable[tuple[str, Tensor]], schedules: Iterable[RopeConfig], d_head: int
) -> dict[str, float]:
    """How far live frequencies are from every schedule, for those that are.

    ``model.to(torch.bfloat16)`` rounds the frequencies of a transformers model for good, a cast back included; a model
    that was loaded in bfloat16 keeps them in float32. A schedule that adapts to the length of the text changes its
    frequencies as it runs; what it keeps of them to come back to, ``…original_inv_freq``, is looked at instead.

    Args:
        buffers: (name, tensor), as ``model.named_buffers()`` gives them; only those called ``…inv_freq`` count.
        schedules: the schedules that the model's config gives.
        d_head: Size of one head.

    Returns:
        The largest relative error of a frequency against the schedule that fits best, by buffer; of a buffer that has
        another number of pairs than every schedule, nothing is said.
    """
    schedules, held = list(schedules), dict(buffers)
    expected = [inv_freq(rope, d_head)[0] for rope in schedules]
    adapts = any(rope.rope_type in ("dynamic", "longrope") for rope in schedules)
    found = {}
    for name, live in held.items():
        if not name.endswith("inv_freq") or name.endswith("original_inv_freq"):
            continue
        if adapts:
            live = held.get(f"{name.removesuffix('inv_freq')}original_inv_freq", live)
        if live.ndim != 1:
            continue
        same_size = [each for each in expected if each.shape == live.shape]
        apart = [float(((live.cpu().double() - each) / each).abs().nan_to_num(0.0).max()) for each in same_size]
        if apart and min(apart) > _SAME:
            found[name] = min(apart)
    return found
