"""Peak memory of a fused forward pass against the number of tokens: it must grow like n, not n².

python tests/benchmarks/memory_growth.py [--model smollm2-135m] [--tokens 8192 16384 32768]
"""

import argparse
import math
import warnings

from forward import memory
from measuring import in_own_process

warnings.filterwarnings("ignore", message=".*beyond the .* tokens.*")


def main() -> None:
    """Print bytes per length and the fitted exponent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 16384, 32768])
    arguments = parser.parse_args()
    peaks = [in_own_process(memory, "ropescope", arguments.model, n) for n in arguments.tokens]
    for n, peak in zip(arguments.tokens, peaks, strict=True):
        print(f"{arguments.model} {n:>7,} tokens: peak + {peak / 2**20:7.0f} MiB, {peak / n / 2**10:.1f} KiB per token")
    exponent = math.log(peaks[-1] / peaks[0]) / math.log(arguments.tokens[-1] / arguments.tokens[0])
    print(f"memory grows like n^{exponent:.2f}")


if __name__ == "__main__":
    main()
