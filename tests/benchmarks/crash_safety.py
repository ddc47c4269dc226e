"""Captures killed at random moments: how many go on to the bytes of one that nothing interrupted.

python tests/benchmarks/crash_safety.py [--kills 30] [--seed 0] [--model smollm2-135m] [--tokens 256]

Each run is killed with SIGKILL, drawn over the time that a whole one takes, then once more while it resumes, and then
resumed to its end.
"""

import argparse
import multiprocessing
import random
import shutil
import tempfile
import time
import warnings
from pathlib import Path

import torch

from hooks import HookedTransformer
from interp.captures import capture
from interp.storage.manifest import read_manifest
from interp.texts.texts import standard_text

_CONTEXT = multiprocessing.get_context("fork")


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of a capture with its bytes."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def run(model: HookedTransformer, n_tokens: int, directory: Path) -> None:
    """Capture, or go on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        capture(model, standard_text(), directory, n_tokens=n_tokens)


def kill_after(model: HookedTransformer, n_tokens: int, directory: Path, seconds: float) -> bool:
    """Capture in a child that is killed after a while; whether it was still running."""
    child = _CONTEXT.Process(target=run, args=(model, n_tokens, directory))
    child.start()
    child.join(seconds)
    running = child.is_alive()
    child.kill()
    child.join()
    return running


def blocks_run(directory: Path) -> str:
    """How far a capture is."""
    try:
        return f"{read_manifest(directory).blocks_run} blocks"
    except ValueError:
        return "nothing"


def main() -> None:
    """Print every run and the count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=256)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a forked child has no other threads
    model, draw = HookedTransformer.from_pretrained(arguments.model), random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as scratch:
        whole, directory = Path(scratch) / "whole", Path(scratch) / "killed"
        started = time.perf_counter()
        run(model, arguments.tokens, whole)
        seconds, expected = time.perf_counter() - started, contents(whole)
        print(f"{arguments.model}, {arguments.tokens} tokens: {seconds:.1f} s without a kill", flush=True)
        equal = killed = 0
        for number in range(arguments.kills):
            reached = []
            for _ in range(2):
                killed += kill_after(model, arguments.tokens, directory, draw.uniform(0.02, 1.0) * seconds)
                reached.append(blocks_run(directory))
            run(model, arguments.tokens, directory)
            same = contents(directory) == expected
            equal += same
            print(f"run {number:2}: {' then '.join(reached)}, {'identical' if same else 'DIFFERENT'}", flush=True)
            shutil.rmtree(directory)
    print(f"{equal} of {arguments.kills} byte-identical after {killed} kills")


if __name__ == "__main__":
    main()
