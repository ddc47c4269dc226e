"""Every analysis on one long capture of a whole model: seconds and peak memory of each, in a process of its own.

    python tests/benchmarks/analyses_at_length.py [--model gemma3-270m] [--tokens 32768] [--directory DIR] [--only …]

Memory is the most that the process had resident, libraries and the pages of the mapped capture included. The figure we
hold ourselves to is 8 GB. The capture is kept in DIR, with its statistics beside it, and used again by the next run;
"statistics" therefore comes first, and what reads them finds them there, as in a notebook.
"""

import argparse
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from measuring import in_own_process

import interp
from hooks import HookedTransformer, RopeConfig
from hooks.config.rope_inherited import RopeSetting
from interp import Capture, capture, open_capture, standard_text

warnings.filterwarnings("ignore", message=".*beyond the .* tokens.*")
LIMIT_GB = 8.0


def stretched(cap: Capture) -> RopeSetting:
    """Every layer's positions divided by two, the rest of its rotation as it is."""
    halved = RopeConfig(rope_type="linear", factor=2.0)
    return dict.fromkeys(cap.cfg.rope, halved) if isinstance(cap.cfg.rope, Mapping) else halved


def full_effect(cap: Capture) -> Any:
    """The other rotation with a new run of the whole model."""
    return interp.what_if_rope(cap, stretched(cap), model=HookedTransformer.from_pretrained(cap.model_id))


def compared(cap: Capture) -> Any:
    """The capture against one of the stretched model, made here if it is not there."""
    path = Path(str(cap.path) + "-stretched")
    model = HookedTransformer.from_pretrained(cap.model_id).with_config(rope=stretched(cap))
    return interp.compare(cap, capture(model, cap.tokens, path))


ANALYSES: dict[str, Callable[[Capture], Any]] = {
    "statistics": lambda cap: cap.statistics(),
    "positional_bias": lambda cap: interp.positional_bias(cap),
    "received_by_position": lambda cap: interp.received_by_position(cap),
    "sink_rate": lambda cap: interp.sink_rate(cap),
    "loss_by_position": lambda cap: interp.loss_by_position(cap),
    "relativity_error": lambda cap: interp.relativity_error(cap),
    "frequency_bias": lambda cap: interp.frequency_bias(cap),
    "score_ranges": lambda cap: interp.score_ranges(cap),
    "precision_cost": lambda cap: interp.precision_cost(cap),
    "bound_by_distance": lambda cap: interp.bound_by_distance(cap),
    "head_summary": lambda cap: interp.typical_heads(interp.head_summary(cap)),
    "patterns": lambda cap: (
        cap.pattern[cap.layers[-1], 0, -64:, :],
        cap.top_keys(cap.layers[-1], 0, query=-1),
        interp.attention_map(cap, cap.layers[-1], 0),
    ),
    "what_if_rope": lambda cap: interp.what_if_rope(cap, stretched(cap)),
    "what_if_rope, full effect": full_effect,
    "compare": compared,
}


def make(name: str, n: int, directory: str) -> None:
    """The capture, unless it is there."""
    capture(HookedTransformer.from_pretrained(name), standard_text(), directory, n_tokens=n)


def measure(analysis: str, directory: str) -> tuple[float, float]:
    """Seconds of one analysis, and the peak of the process in GB."""
    cap = open_capture(directory)
    start = time.perf_counter()
    ANALYSES[analysis](cap)
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    """Print one line for each analysis."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma3-270m")
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--directory")
    parser.add_argument("--only", nargs="+", choices=ANALYSES, default=list(ANALYSES))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = arguments.directory or str(Path(scratch) / "capture")
        in_own_process(make, arguments.model, arguments.tokens, directory)
        too_much = []
        for analysis in arguments.only:
            seconds, peak = in_own_process(measure, analysis, directory)
            too_much += [analysis] if peak > LIMIT_GB else []
            print(f"{analysis:<26} {seconds:7.1f} s, peak {peak:5.2f} GB", flush=True)
    if too_much:
        raise SystemExit(f"more than {LIMIT_GB:g} GB: {', '.join(too_much)}")


if __name__ == "__main__":
    main()
