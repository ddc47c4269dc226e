"""Time per generated token with a cache, ours against transformers', and the memory of the cache against its formula.

    python tests/benchmarks/generation.py [--model smollm2-135m] [--tokens 512] [--new 64] [--repeats 5]

Runs alternate between the libraries in one process with one thread, and medians of process time are compared. At most
1.1 × is what we hold ourselves to on SmolLM2, without hooks.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from reference_models import transformers_model

from hooks import HookedTransformer, KeyValueCache
from interp.texts.texts import standard_text


def seconds_per_token(generate: Callable[[int], object], n_new: int) -> float:
    """Process seconds of one more token: a run of n_new less a run of one, which has the same prompt to read."""
    times = []
    for new in (1, n_new):
        start = time.process_time()
        generate(new)
        times.append(time.process_time() - start)
    return (times[1] - times[0]) / (n_new - 1)


def computed_bytes(model: HookedTransformer, n_tokens: int) -> int:
    """2 · kept tokens · kv heads · head width · itemsize, over the layers; a window w keeps w − 1 tokens."""
    windows = [model.cfg.window(layer) for layer in range(model.cfg.n_layers)]
    kept = sum(n_tokens if window is None else min(n_tokens, window - 1) for window in windows)
    return 2 * kept * model.cfg.n_kv_heads * model.cfg.d_head * model.dtype.itemsize


def compare(name: str, n_tokens: int, n_new: int, repeats: int) -> None:
    """Print the figures of one model."""
    ours = HookedTransformer.from_pretrained(name)
    theirs: Any = transformers_model(name)
    tokens = ours.to_tokens(standard_text().content)[:, :n_tokens]
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "attention_mask": torch.ones_like(tokens)}
    ways: dict[str, Callable[[int], Any]] = {
        "ropescope": lambda new: ours.generate(tokens, new, stop_at_eos=False),
        "transformers": lambda new: theirs.generate(tokens, max_new_tokens=new, **options),
    }
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, generate in ways.items():
            found[way].append(seconds_per_token(generate, n_new))
    medians = {way: statistics.median(times) for way, times in found.items()}
    shown = ", ".join(f"{way} {1000 * median:.1f} ms" for way, median in medians.items())
    print(f"{name}: {shown} a token, {medians['ropescope'] / medians['transformers']:.2f} ×")
    past = KeyValueCache(ours)
    with torch.no_grad():
        ours.forward(tokens, return_type=None, past=past)
    print(f"  cache of {len(past)} tokens: {past.nbytes:,} bytes, computed {computed_bytes(ours, len(past)):,}")


def main() -> None:
    """Print the figures of each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["smollm2-135m", "gemma3-270m"])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.model:
        compare(name, arguments.tokens, arguments.new, arguments.repeats)


if __name__ == "__main__":
    main()
