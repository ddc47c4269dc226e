"""attention_statistics against torch's fused attention on the same q, k and v, side by side in one run.

OMP_NUM_THREADS=2 python tests/benchmarks/statistics_speed.py [--tokens 8192 16384 32768] [--repeats 3]

Prints medians and their ratios, log-sum-exp inside the timer. What bounds it, in ns per visible pair on one core of a
Xeon (AVX-512, 2 MiB of L2) where torch's attention takes 3.3 (heads 64 wide) and 11.4 (256 wide), loops timed alone on
tiles: the product q·k 1.05 and 4.8, that is 120 and 107 GFLOP/s of about 130; exponentials 0.33; the second round over
the weights 0.6, more than the 0.3 that its loops take on weights in the L2 cache; moments of distances 0.14; extremes
0.09. "scores" adds 0.5 to 0.9 for its histogram, whose cells are counted one by one.

What it relies on (not taken apart one by one): keys packed once per kv head for an inner product of our own, where BLAS
packed them for each block of rows anew; scores in tiles that every loop finds in the L2 cache; weights relative to the
row's largest score so far, so that scores are not looked at again; all blocks of a call in compiled code; moments of
sixteen distances merged at once; exponentials in base 2; float64 sums decided for 8 × 48 scores at a time; rows padded
to an odd number of cache lines.

What did not help: writing the pattern down before it is summed (0.2 more); prefetching the weights by hand; an inner
product of 12 or 14 rows by 32 keys. Running totals of totals for the mean distance saved an instruction and lost digits
where keys lie on both sides.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

from hooks.config.attention_spec import AttentionSpec
from interp.measure.schema import GROUPS
from interp.measure.statistics import attention_statistics

SHAPES = {"SmolLM2": (9, 3, 64), "Gemma 3": (4, 1, 256)}
CORE = ("rows", "keys", "distances", "map")


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(name: str, n: int, repeats: int) -> None:
    """Print one line for one shape and length."""
    heads, kv_heads, d = SHAPES[name]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n, h, d, generator=generator) for h in (heads, kv_heads, kv_heads))
    spec = AttentionSpec(scale=d**-0.5)
    group = heads // kv_heads
    dense = [q.transpose(0, 1)[None].contiguous()]
    dense += [x.transpose(0, 1)[None].repeat_interleave(group, dim=1).contiguous() for x in (k, v)]
    calls = {
        "attention": lambda: scaled_dot_product_attention(*dense, is_causal=True),
        "core": lambda: attention_statistics(q, k, spec, groups=CORE),
        "every group": lambda: attention_statistics(q, k, spec, groups=GROUPS),
    }
    times: dict[str, list[float]] = {call: [] for call in calls}
    for _ in range(repeats):
        for call, function in calls.items():
            times[call].append(seconds(function))
    base, core, every = (statistics.median(times[call]) for call in calls)
    print(
        f"{name:8} {heads}×{d} on {kv_heads}, {n:6,} tokens: attention {base:6.2f} s, rows + keys + distances + map "
        f"{core:6.2f} s ({core / base:.2f} ×), every group {every:6.2f} s ({every / base:.2f} ×)",
        flush=True,
    )


def main() -> None:
    """Measure every shape at every length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 16384, 32768])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    x = torch.randn(300, 1, 64)
    first = seconds(lambda: attention_statistics(x, x, AttentionSpec(scale=0.125)))
    again = seconds(lambda: attention_statistics(x, x, AttentionSpec(scale=0.125)))
    print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    print(f"compiling, or loading what was compiled before: {first - again:.1f} s")
    for n in arguments.tokens:
        for name in SHAPES:
            measure(name, n, arguments.repeats)


if __name__ == "__main__":
    main()
