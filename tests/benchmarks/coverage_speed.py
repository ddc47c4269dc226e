"""coverage beside the pass with every group on the same q, k and v, in turns: the ratio of each pair.

OMP_NUM_THREADS=2 python tests/benchmarks/coverage_speed.py [--model gemma3-270m] [--tokens 8192] [--repeats 3]

Counting keys computes the scores once more, in float32 also where the pass takes float64, because the keys that hold
much of a row get their score in float64 afterwards. What it adds to that are six looks at each row in the L2 cache
(largest, exponentials, keys to sharpen, gaps, keys to keep) and a histogram of the keys that are kept.
"""

import argparse
import os
import statistics
import time

import torch

import interp
from hooks import HookedTransformer
from interp.analyses.patterns.covering import GAPS, LEVELS
from interp.measure.needed_keys import needed_keys
from interp.measure.schema import GROUPS
from interp.measure.statistics import attention_statistics


def main() -> None:
    """Measure every layer of a model, one after the other in both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma3-270m")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    model = HookedTransformer.from_pretrained(arguments.model)
    cap = interp.capture(model, interp.standard_text(), n_tokens=arguments.tokens, stages=(), loss=False)
    x = torch.randn(300, 1, 64)
    attention_statistics(x, x, cap.spec(0))
    needed_keys(x, x, cap.spec(0), LEVELS, GAPS)
    ratios = []
    print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, {cap!r}")
    for _ in range(arguments.repeats):
        every = counted = 0.0
        for layer in cap.layers:
            q, k, spec = cap.q(layer), cap.k(layer), cap.spec(layer)
            start = time.perf_counter()
            attention_statistics(q, k, spec, v=cap.v(layer), w_o=cap.constants(layer).w_o, groups=GROUPS)
            middle = time.perf_counter()
            needed_keys(q, k, spec, LEVELS, GAPS)
            every, counted = every + middle - start, counted + time.perf_counter() - middle
        ratios.append(counted / every)
        print(f"every group {every:6.2f} s, coverage {counted:6.2f} s ({counted / every:.2f} ×)", flush=True)
    print(f"median {statistics.median(ratios):.2f} ×")


if __name__ == "__main__":
    main()
