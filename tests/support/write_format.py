"""Writes the folder from which later versions prove that they read what this one wrote.

    PYTHONPATH=. python tests/support/write_format.py tests/interp/storage/capture_format_3

Run it once, when the format is counted up, and never again on a folder that is there: what counts is that it is old.
It holds a finished capture with statistics beside it, one that was killed, and the numbers that this version gave.
"""

import sys
import warnings
from pathlib import Path

import crashing
import numpy as np
from tiny_hooked import random_tokens, tiny_model

from interp import capture, head_summary, open_capture, score_ranges

_STAGES = ("pre_clip", "pre_norm", "pre_rope")
_TYPES = ("sliding_attention", "full_attention", "full_attention")
_MIDDLE = 42  # of the file operations of `crashing.small_capture`: after the last block's files, before the manifest


def write(folder: Path) -> None:
    """Write whole.capture, cut.capture and numbers.npz to a folder that is not there yet."""
    folder.mkdir()
    model = tiny_model(
        n_layers=3, layer_types=_TYPES, window_size=9, clip_qkv=0.9, learned_sinks=True, nope_layers=(2,)
    )
    cap = capture(model, random_tokens(29)[0], folder / "whole.capture", stages=_STAGES)
    cap.statistics(1)
    assert crashing.killed_at(folder / "cut.capture", _MIDDLE) == -9
    cap = capture(model, random_tokens(29)[0], stages=_STAGES)  # keeps nothing beside the other
    numbers = {f"q.{n}.{stage}": cap.q(n, stage).numpy() for n in cap.layers for stage in cap.stages(n)}
    for kind, found in (("statistics", cap.statistics()), ("head_summary", head_summary(cap))):
        numbers |= {f"{kind}.{name}": values.values for name, values in found.data_vars.items()}
    numbers |= {f"score_ranges.{name}": values.values for name, values in score_ranges(cap).data_vars.items()}
    np.savez_compressed(folder / "numbers.npz", loss=cap.loss.numpy(), **numbers)
    print(open_capture(folder / "whole.capture"), open_capture(folder / "cut.capture"))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    write(Path(sys.argv[1]))
