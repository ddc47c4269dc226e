"""What a capture costs: its bytes to the last one, its time judged by a trial and then by the first block that ran."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch

from hooks import HookedTransformerConfig
from interp.common.words import duration
from interp.recording.plan import CapturePlan

_TRIAL_TOKENS = 512


def size_estimate(plan: CapturePlan, directory: Path) -> str:
    """One line: the bytes of q, k and v, what patterns would have taken, what is stored, and the room on the disk."""
    place = directory if directory.is_dir() else directory.absolute().parent
    cfg, room = plan.model.cfg, ""
    if place.is_dir():
        room = f"; {shutil.disk_usage(place).free / 1e9:,.1f} GB are free there"
    patterns = len(plan.steps) * cfg.n_heads * plan.n_tokens**2 * plan.model.dtype.itemsize
    return (
        f"{plan.n_tokens:,} tokens × {len(plan.steps)} layers: {plan.n_bytes:,} bytes of q, k and v in {directory}, "
        f"where patterns would take {patterns:,}; {plan.stored_bytes():,} are stored if later stages follow from the "
        f"first{room}"
    )


@torch.no_grad()
def time_estimate(plan: CapturePlan, blocks_run: int = 0) -> str:
    """One line: how long what is left takes at the speed of a trial, one block on the first tokens."""
    tokens = plan.tokens[:, :_TRIAL_TOKENS]
    stream, context = plan.model.embed_tokens(tokens), plan.model.context(tokens)
    plan.model.blocks[0](stream, context)  # the first call allocates
    before = time.monotonic()
    plan.model.blocks[0](stream, context)
    rate = block_operations(plan.model.cfg, 0, tokens.shape[1]) / max(time.monotonic() - before, 1e-6)
    takes = duration(_operations(plan, blocks_run) / rate)
    return f"at the speed of a trial on {tokens.shape[1]:,} tokens it takes about {takes}"


def _operations(plan: CapturePlan, start: int = 0) -> float:
    """Floating-point operations of a capture from this block on."""
    cfg, n = plan.model.cfg, plan.n_tokens
    head = head_operations(cfg, n) if plan.loss else 0
    return head + sum(block_operations(cfg, layer, n) for layer in range(start, plan.n_blocks))


class Pace:
    """Tells how long the whole takes once the first block has run; judged by operations, since layers differ.

    Args:
        plan: what runs.
        say: takes the line.
    """

    def __init__(self, plan: CapturePlan, say: Callable[[str], None]):
        self._plan, self._say = plan, say
        self._before = time.monotonic()
        self._said = False

    def start(self) -> None:
        """The blocks begin to run."""
        self._before = time.monotonic()

    def finished(self, layer: int) -> None:
        """A block has run and what it leaves is written."""
        if self._said:
            return
        self._said = True
        took = time.monotonic() - self._before
        done = block_operations(self._plan.model.cfg, layer, self._plan.n_tokens)
        seconds = took * _operations(self._plan, layer + 1) / done
        self._say(f"layer {layer} took {took:.1f} s; the rest takes about {duration(seconds)}")


def block_operations(cfg: HookedTransformerConfig, layer: int, n: int) -> float:
    """Floating-point operations of one block on n tokens: its matrices, and attention over the visible pairs."""
    return matrix_operations(cfg, n) + attention_operations(cfg, layer, n)


def matrix_operations(cfg: HookedTransformerConfig, n: int) -> float:
    """Floating-point operations of the matrices of one block on n tokens."""
    width = 2 * (cfg.n_heads + cfg.n_kv_heads) * cfg.d_head + (3 if cfg.gated_mlp else 2) * (cfg.d_mlp or 0)
    return 2 * n * cfg.d_model * width


def attention_operations(cfg: HookedTransformerConfig, layer: int, n: int) -> float:
    """Floating-point operations of attention in one layer: q·k and p·v over the visible pairs."""
    seen = min(cfg.window(layer) or n, n)
    pairs = seen * (seen + 1) / 2 + (n - seen) * seen
    return 4 * pairs * cfg.n_heads * cfg.d_head


def head_operations(cfg: HookedTransformerConfig, n: int) -> float:
    """Floating-point operations of the unembedding on n tokens."""
    return 2 * n * cfg.d_model * cfg.d_vocab
