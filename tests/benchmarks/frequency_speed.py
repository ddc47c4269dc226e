"""Mean score by distance of every RoPE frequency pair, of one head, at lengths up to a million tokens.

OMP_NUM_THREADS=2 python tests/benchmarks/frequency_speed.py [--tokens 32768 131072 1048576] [--d-head 64]

Prints the time and the peak memory above q and k, and how far the sum of the pairs is from sums taken directly at a few
distances, the farthest included. Time goes to Fourier transforms: five for each pair. What helped: features transposed
once, so that each is read as one run; lengths that are products of 2, 3 and 5. What did not: float32, whose far
distances are noise.
"""

import argparse
import os
import time

import torch
from measuring import peak_above

from hooks.config.attention_spec import AttentionSpec
from interp.analyses.position.frequencies import frequency_scores


def measure(n: int, d_head: int) -> None:
    """Print one line for one length."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(n, 1, d_head, generator=generator) for _ in range(2))
    inv_freq = 10_000.0 ** (-torch.arange(d_head // 2) / (d_head // 2))
    spec, result = AttentionSpec(scale=d_head**-0.5), []
    start, cpu = time.perf_counter(), time.process_time()
    peak = peak_above(lambda: result.append(frequency_scores(q, k, spec, inv_freq)))
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    whole = result[0]["score_mean"].sum("pair").values[0]
    error = 0.0
    for distance in (0, 1, n // 3, n - 1000, n - 2, n - 1):
        direct = spec.scale * (q[distance:].double() * k[: n - distance].double()).sum((1, 2)).mean()
        error = max(error, abs(float(direct) - float(whole[distance])))
    print(
        f"{n:9,} tokens, {d_head // 2} pairs: {wall:6.2f} s ({cpu:.2f} s of processor), {peak / 1e9:5.2f} GB, "
        f"largest error {error:.1e}",
        flush=True,
    )


def main() -> None:
    """Measure every length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[32_768, 131_072, 1_048_576])
    parser.add_argument("--d-head", type=int, default=64)
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    for n in arguments.tokens:
        measure(n, arguments.d_head)


if __name__ == "__main__":
    main()
