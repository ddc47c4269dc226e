"""SmolLM2's induction heads on random tokens that come twice: 512 tokens in all, then 8,192.

    python tests/benchmarks/induction_at_length.py [--tokens 512 8192]

At 8,192 tokens the patterns that transformer_lens.head_detector reads from a cache would take 72 GB.
"""

import argparse
import time

import torch
import xarray as xr
from measuring import peak_above

from hooks import HookedTransformer
from interp.analyses.heads.summary import head_summary, typical_heads
from interp.captures import Capture, capture
from interp.texts.repeated import repeated_tokens

TOP = 10


def measure(model: HookedTransformer, n: int) -> tuple[Capture, xr.Dataset]:
    """The capture and the best induction heads of one length."""
    cap = capture(model, repeated_tokens(model, n // 2), stages=())
    return cap, typical_heads(head_summary(cap), TOP).sel(kind="induction")


def main() -> None:
    """Print time, memory, the loss on either stretch, and which heads are found again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 8192])
    lengths = parser.parse_args().tokens
    model = HookedTransformer.from_pretrained("smollm2-135m", dtype=torch.float32)
    first: set[str] = set()
    for n in lengths:
        found: list[tuple[Capture, xr.Dataset]] = []
        start = time.perf_counter()
        peak = peak_above(lambda n=n, found=found: found.append(measure(model, n)))
        seconds = time.perf_counter() - start
        cap, best = found[0]
        scores = {
            f"L{int(head['layer'])} H{int(head['head'])}": float(head["score"])
            for head in (best.isel(rank=rank) for rank in range(TOP))
        }
        first = first or set(scores)
        once, again = cap.loss[: n // 2].mean(), cap.loss[n // 2 :].mean()
        print(f"{n:,} tokens: {seconds:.0f} s, peak + {peak / 1e9:.2f} GB; loss {once:.2f} nats, then {again:.2f}")
        print("  " + ", ".join(f"{name} {score:.3f}" for name, score in scores.items()))
        print(f"  {len(first & set(scores))} of {TOP} as at {lengths[0]:,} tokens", flush=True)


if __name__ == "__main__":
    main()
