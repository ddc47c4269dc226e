"""The frequencies of a schedule, computed once: a training step asks for those of every layer again."""

from functools import lru_cache

from jaxtyping import Float
from torch import Tensor

from hooks.config.rope import RopeConfig
from hooks.functional.rope import inv_freq


@lru_cache(maxsize=128)
def frequencies_of(rope: RopeConfig, d_head: int, length: int | None) -> tuple[Float[Tensor, " pair"], float]:
    """As `hooks.functional.rope.inv_freq`, on the CPU; shared by all who ask, so to be read only."""
    return inv_freq(rope, d_head, length)
