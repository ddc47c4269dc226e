"""The one pass over q and k in portable torch: a block of query rows × the keys they see, then the next."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from hooks.errors import InputError
from interp.measure.block import Block, Buffers
from interp.measure.families import FAMILIES, Family
from interp.measure.work import OVERFLOW, Pass

BUFFERS = 4
LARGE_SCORE = 32.0


def run_portable(work: Pass, row_offset: int = 0, done: Callable[[int], None] | None = None) -> None:
    """Measure every row; results of row i go to entry `row_offset + i` of the row totals.

    Args:
        work: what to measure.
        row_offset: where this pass's rows start in the row totals.
        done: called with the number of score rows (rows × heads) after each block.

    Raises:
        InputError: a score overflows.
    """
    group = work.q.shape[1] // work.k.shape[1]
    everything = work.visibility.key.numel() == work.k.shape[0]
    families = [family for family in FAMILIES if family.groups & work.groups]
    buffers = Buffers(work, group)
    # Looked at once a kv head: at every block the host would wait for the device.
    overflow = torch.zeros((), dtype=torch.bool, device=work.q.device)
    for kv_head in range(work.k.shape[1]):
        heads = slice(kv_head * group, (kv_head + 1) * group)
        keys = work.k[:, kv_head] if everything else work.k[work.visibility.key, kv_head]
        keys = keys.to(score_dtype(work, heads, keys)).contiguous()
        for rows in work.visibility.blocks(work.height):
            block = Block(work, buffers, heads, rows, row_offset)
            block.score(keys)
            overflow |= _measure(block, families)
            if done is not None:
                done(group * (rows.stop - rows.start))
        if bool(overflow):
            raise InputError(OVERFLOW)


def _measure(block: Block, families: list[Family]) -> Tensor:
    """Show the block to every family at each moment; True where a score was not finite."""
    for family in families:
        family.scores(block)
    block.fill(-torch.inf)
    for family in families:
        family.masked(block)
    if not any(family.weighs for family in families):
        return ~torch.isfinite(block.scores.amax(-1)).all()
    block.exponentiate()
    for family in families:
        family.weights(block)
    block.normalise()
    for family in families:
        family.pattern(block)
    return ~torch.isfinite(block.top).all()


def score_dtype(work: Pass, heads: slice, keys: Float[Tensor, "kept d_head"]) -> torch.dtype:
    """Precision of q·k: float64 where scores may be so large that float32 sums would show in the pattern."""
    if not keys.numel():
        return work.dtype
    norms = (torch.linalg.vector_norm(x, dim=-1, dtype=work.dtype).max() for x in (work.q[:, heads], keys))
    q_norm, k_norm = torch.stack([*norms]).tolist()
    return torch.float64 if abs(work.spec.scale) * q_norm * k_norm > LARGE_SCORE else work.dtype
