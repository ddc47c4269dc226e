"""Counting keys on the CPU, compiled: each thread takes every n-th block of rows; see `ranking`."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooks.config.attention_spec import AttentionSpec
from hooks.errors import InputError
from interp.measure.fused.buffers import Allocate, Workspace
from interp.measure.fused.dot_products import PANEL, ROWS, pack_keys
from interp.measure.fused.ranking import BINS, FINE, Desk, Ranked, count_blocks
from interp.measure.fused.simd import LANES
from interp.measure.visibility import Visibility
from interp.measure.work import OVERFLOW

_HEIGHT = 64
_CELLS = 2**23  # of a block: 32 MB for each thread, however long the text
# Largest |q||k| that float32 sums are for: more than in the pass, since the keys that matter get their score anew.
_LARGE = 1024.0
_CELLS_PER_CALL = 2**25
_WORKSPACE = Workspace(2**26)


def count_fused(
    q: Float[Tensor, "query head d_head"],
    k: Float[Tensor, "key kv_head d_head"],
    spec: AttentionSpec,
    see: Visibility,
    levels: Float[np.ndarray, " level"],
    gaps: Float[np.ndarray, " gap"],
    done: Callable[[int], None],
) -> tuple[Int[np.ndarray, "head row level"], Int[np.ndarray, "head row gap"]]:
    """Keys needed and keys within of each row that sees something, in float32 scores without soft-cap and ALiBi.

    Args:
        q: queries as they enter the score.
        k: keys.
        spec: how they become a pattern.
        see: which rows see which keys.
        levels: shares of the attention, ascending.
        gaps: how far below the row's largest score.
        done: called with the number of rows that were counted.

    Returns:
        Counts; `NEVER` where the keys do not hold so much, `COARSE` where the scores are too large for float32.
    """
    heads, rows, group = q.shape[1], see.row.numel(), q.shape[1] // k.shape[1]
    needed, within = (np.zeros((heads, rows, x.size), np.int32) for x in (levels, gaps))
    height = max(min(_HEIGHT, _CELLS // max(see.band_width(ROWS), 1), max(rows, 1)), 1)
    band = see.band_width(height) + PANEL
    # An odd number of cache lines per row: a power of two would put all rows into the same few cache sets.
    width = LANES * ((-(-band // LANES) + PANEL // LANES) | 1)
    blocks = -(-rows // height)
    threads = max(min(torch.get_num_threads(), blocks), 1)
    first, stop = (np.ascontiguousarray(x.numpy()) for x in (see.first, see.stop))
    packed = key_norm = plain = np.empty(0)
    stopped = Event()
    with _WORKSPACE.lend() as allocate, ThreadPoolExecutor(max(threads - 1, 1)) as pool:
        desks = [_desk(allocate, height, width, band, q.shape[2]) for _ in range(threads)]
        for head in range(heads):
            if head % group == 0:
                keys = k[see.key, head // group].float().contiguous()
                plain = keys.numpy()
                packed, key_norm = pack_keys(keys)
            sink = -np.inf if spec.sinks is None else float(spec.sinks[head])
            ranked = _ranked(q[see.row, head].float().contiguous(), spec.scale, packed, key_norm, plain, sink)
            settings = height, width, first, stop, ranked, levels, gaps
            parts = [_Part(i, threads, blocks, settings, desk, stopped) for i, desk in enumerate(desks)]
            try:
                others = [pool.submit(part.count_rows, needed[head], within[head]) for part in parts[1:]]
                reported = parts[0].count_rows(needed[head], within[head], done)
                for other in others:
                    other.result()
            except BaseException:
                stopped.set()  # the other threads end after the call that they are in
                raise
            done(rows - reported)
    return needed, within


def _ranked(
    queries: Float[Tensor, "row d_head"],
    scale: float,
    packed: np.ndarray,
    key_norm: np.ndarray,
    plain_keys: np.ndarray,
    sink: float,
) -> Ranked:
    """One query head, with the keys of its kv head.

    Raises:
        InputError: a score may overflow.
    """
    query_norm = torch.linalg.vector_norm(queries * scale, dim=1).numpy()
    largest = float(query_norm.max(initial=0)) * float(key_norm.max(initial=0))
    if not largest < float(np.finfo(np.float32).max):
        raise InputError(OVERFLOW)
    precise = queries.double() * scale if largest > _LARGE else torch.empty(0, queries.shape[1]).double()
    return Ranked(
        queries=(queries * scale).numpy(),
        precise=precise.numpy(),
        query_norm=query_norm,
        packed=packed,
        key_norm=key_norm,
        plain_queries=queries.numpy(),
        plain_keys=plain_keys,
        scale=float(scale),
        sink=sink,
    )


class _Part(NamedTuple):
    """The blocks of one thread: first, first + step, … up to `blocks`."""

    first: int
    step: int
    blocks: int
    settings: tuple
    desk: Desk
    stopped: Event

    def count_rows(self, needed: np.ndarray, within: np.ndarray, done: Callable[[int], None] | None = None) -> int:
        """Count them; returns the rows that were reported."""
        height, width, rows, reported = self.settings[0], self.settings[1], self.settings[2].size, 0
        at_once = max(_CELLS_PER_CALL // (height * width), 1)
        for begin in range(self.first, self.blocks, at_once * self.step):
            if self.stopped.is_set():
                break
            end = min(begin + at_once * self.step, self.blocks)
            count_blocks(begin, end, self.step, *self.settings, self.desk, needed, within)
            if done is not None:
                counted = sum(min(height, rows - b * height) for b in range(begin, end, self.step))
                done(counted)
                reported += counted
        return reported


def _desk(allocate: Allocate, height: int, width: int, band: int, d: int) -> Desk:
    """Buffers of one thread, padded by whole vectors."""
    groups, room = -(-height // ROWS), band + 2 * LANES
    return Desk(
        packed=allocate(groups * ROWS * d, np.float32),
        precise=allocate(groups * ROWS * d),
        norm=allocate(groups, np.float32),
        group_first=allocate(groups, np.int64),
        group_stop=allocate(groups, np.int64),
        cells=allocate(groups * ROWS * width + 2 * LANES, np.float32),
        kept=allocate(room, np.float32),
        bin_of=allocate(2 * room, np.int32),
        inside=allocate(room, np.float32),
        counts=allocate(BINS, np.int64),
        masses=allocate(BINS),
        fine_counts=allocate(FINE, np.int64),
        fine_masses=allocate(FINE),
        lanes=allocate(LANES, np.float32),
        wide=allocate(LANES),
    )
