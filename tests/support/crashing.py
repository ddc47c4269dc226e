"""Captures in child processes that die at a chosen moment, and what they leave behind."""

import multiprocessing
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
from tiny_hooked import random_tokens, tiny_model

from interp.captures import capture

# A forked child has imported everything. With one thread it does not miss those that a fork leaves behind.
_CONTEXT = multiprocessing.get_context("fork")
N_TOKENS, LAYERS = 37, (0, 2)
_TYPES = ("sliding_attention", "full_attention", "full_attention")


def small_model():
    """Three layers, of which the middle one is not captured."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tiny_model(n_layers=3, d_head=8, layer_types=_TYPES, window_size=5)


def small_capture(directory, **options):
    """The capture that everything here is about."""
    return capture(small_model(), random_tokens(N_TOKENS)[0], directory, layers=LAYERS, **options)


def contents(directory):
    """Every file below a directory with its bytes."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(Path(directory).rglob("*")) if p.is_file()}


def killed_at(directory, event, operations=("fsync", "replace", "unlink", "mkdir"), **options):
    """Run the capture in a child that kills itself just before the `event`-th of these file operations, or in a write.

    Returns the child's exit code: 0 when it came to its end before.
    """
    child = _CONTEXT.Process(target=_die_at, args=(directory, event, operations, options))
    child.start()
    child.join(60)
    return child.exitcode


def killed_after(directory, seconds):
    """Run the capture in a child that is killed this long after it began to capture; gives its exit code."""
    began = _CONTEXT.Event()
    child = _CONTEXT.Process(target=_capture, args=(directory, began))
    child.start()
    assert began.wait(60)
    time.sleep(seconds)
    child.kill()
    child.join(60)
    return child.exitcode


def holding_lock(directory):
    """A child that holds the lock of a capture until it is killed."""
    held = _CONTEXT.Event()
    child = _CONTEXT.Process(target=_hold, args=(directory, held))
    child.start()
    assert held.wait(60)
    return child


def _capture(directory, began):
    """Capture, and tell when it begins."""
    torch.set_num_threads(1)
    model = small_model()
    began.set()
    capture(model, random_tokens(N_TOKENS)[0], directory, layers=LAYERS)


def _hold(directory, held):
    """Take the lock and wait."""
    from interp.storage.lock import locked

    with locked(directory):
        held.set()
        time.sleep(60)


def _die_at(directory, event, operations, options):
    """Capture until the `event`-th operation; of a write, one half is done."""
    seen = 0

    def step(before_dying=lambda: None):
        nonlocal seen
        if seen == event:
            before_dying()
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    def counted(function):
        def call(*args, **kwargs):
            step()
            return function(*args, **kwargs)

        return call

    class Torn:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            def half():
                self.file.write(data[: len(data) // 2])
                self.file.flush()

            step(half)
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

    torch.set_num_threads(1)
    fdopen = os.fdopen
    for name in set(operations) - {"write"}:
        setattr(os, name, counted(getattr(os, name)))
    if "write" in operations:
        os.fdopen = lambda handle, mode: Torn(fdopen(handle, mode))
    small_capture(directory, **options)
    sys.exit(0)
