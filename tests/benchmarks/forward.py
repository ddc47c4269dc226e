"""Body forward (no logits) of HookedTransformer against transformers' sdpa, side by side in one run.

    python tests/benchmarks/forward.py [--model gemma3-270m smollm2-135m] [--tokens 4096] [--repeats 5]

Times alternate between the two in one process and medians are compared; peak memory above the loaded model is
taken in a process of its own for each. At most 1.15 × (SmolLM2) and 1.0 × (Gemma) in time and 1.1 × in memory is
what we hold ourselves to at 4,096 tokens.
"""

import argparse
import statistics
import time

import torch
from measuring import in_own_process, peak_above
from reference_models import transformers_model

from hooks import HookedTransformer
from interp.texts.texts import standard_text


def tokens_of(model: HookedTransformer, n: int) -> torch.Tensor:
    """The first n tokens of the standard text."""
    return model.to_tokens(standard_text().content)[:, :n]


def run(kind: str, model: torch.nn.Module, tokens: torch.Tensor) -> None:
    """One forward pass through the body."""
    with torch.no_grad():
        if kind == "ropescope":
            model(tokens, return_type=None)
        else:
            model.model(tokens, use_cache=False)


def load(kind: str, name: str) -> torch.nn.Module:
    """The model in one of the two libraries."""
    return HookedTransformer.from_pretrained(name) if kind == "ropescope" else transformers_model(name)


def memory(kind: str, name: str, n: int) -> float:
    """Peak bytes above the loaded model during one forward pass."""
    tokens = tokens_of(HookedTransformer.from_pretrained(name), n)
    model = load(kind, name)
    run(kind, model, tokens[:, :64])
    return peak_above(lambda: run(kind, model, tokens))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["smollm2-135m", "gemma3-270m"])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    for name in arguments.model:
        kinds = ("ropescope", "transformers")
        models = {kind: load(kind, name) for kind in kinds}
        tokens = tokens_of(models["ropescope"], arguments.tokens)
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for turn in range(arguments.repeats + 1):
            for kind in kinds:
                start = time.perf_counter()
                run(kind, models[kind], tokens)
                if turn:  # the first turn warms up
                    seconds[kind].append(time.perf_counter() - start)
        ratio = statistics.median(a / b for a, b in zip(*(seconds[kind] for kind in kinds), strict=True))
        peaks = {kind: in_own_process(memory, kind, name, arguments.tokens) for kind in kinds}
        for kind in kinds:
            print(
                f"{name} {kind:>12}: {statistics.median(seconds[kind]):6.2f} s, peak + {peaks[kind] / 2**20:5.0f} MiB"
            )
        memory_ratio = peaks["ropescope"] / peaks["transformers"]
        print(f"{name} ratio at {tokens.shape[1]:,} tokens: time {ratio:.2f}, memory {memory_ratio:.2f}")


if __name__ == "__main__":
    main()
