"""Time and memory of attention_statistics against length: n² and n; with a window, both like n.

python tests/benchmarks/statistics_growth.py [--tokens 4096 16384 65536 131072] [--window 512]
"""

import argparse
import math
import time

import torch
from measuring import in_own_process, peak_above

from hooks.config.attention_spec import AttentionSpec
from interp.measure.statistics import attention_statistics


def measure(n: int, window: int | None) -> tuple[float, float]:
    """Seconds and peak bytes for one kv group of SmolLM2's shape, 3 heads × 64 on 1."""
    q, k = torch.randn(n, 3, 64), torch.randn(n, 1, 64)
    spec = AttentionSpec(scale=0.125, window=window)
    attention_statistics(q[:300], k[:300], spec)
    start = time.perf_counter()
    peak = peak_above(lambda: attention_statistics(q, k, spec))
    return time.perf_counter() - start, peak


def exponent(tokens: list[int], values: list[float]) -> float:
    """Slope of the straight line fitted to log(values) over log(tokens)."""
    x, y = ([math.log(v) for v in values_] for values_ in (tokens, values))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def main() -> None:
    """Print every length and the fitted exponents, without and with a window."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 16384, 65536, 131072])
    parser.add_argument("--window", type=int, default=512)
    arguments = parser.parse_args()
    for window in (None, arguments.window):
        results = [in_own_process(measure, n, window) for n in arguments.tokens]
        for n, (seconds, peak) in zip(arguments.tokens, results, strict=True):
            print(f"window {window}, {n:7,} tokens: {seconds:7.2f} s, peak + {peak / 2**20:6.1f} MiB", flush=True)
        time_, memory = (exponent(arguments.tokens, list(column)) for column in zip(*results, strict=True))
        print(f"window {window}: time grows like n^{time_:.2f}, memory like n^{memory:.2f}", flush=True)


if __name__ == "__main__":
    main()
