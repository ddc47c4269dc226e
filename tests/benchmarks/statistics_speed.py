"""attention_statistics against torch's fused attention on the same q, k and v, side by side in one run.

OMP_NUM_THREADS=2 python tests/benchmarks/statistics_speed.py [--tokens 8192 16384 32768] [--repeats 3]

Prints medians and their ratios, log-sum-exp inside the timer. What bounds it: the product q·k alone takes half of what
torch's attention takes (which needs a second product of the same size), and cannot be shared with the second product,
since nothing here multiplies by v. The exponentials come next, then, with "scores", the histogram, whose cells are
counted one by one. What helped: keys stored transposed, which BLAS packs a third faster; one block of rows whose scores
stay in the cache for every loop; vectors written out by hand, because LLVM does not vectorise loops over arrays that
may overlap; sheared reads, which sum a distance over all rows of a block in a register; padding rows to an odd number
of cache lines. What did not: more than 64 rows in a block when heads are 64 wide.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

from hooks.attend import AttentionSpec
from interp.statistics import attention_statistics
from interp.statistics_schema import GROUPS

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
