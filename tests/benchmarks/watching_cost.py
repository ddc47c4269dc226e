"""What watch_scores adds to a training step: steps with it and without it in turns, in one process.

    python tests/benchmarks/watching_cost.py [--pairs 60] [--length 256]

Medians of the pairs' ratios, over the models of training_twins.py and a transformers model that is attached. At most
5 % of a step is what we hold ourselves to.
"""

import argparse
import contextlib
import statistics
import time
from typing import Any

import torch
from training_twins import FULL, Twin, build
from transformers import Qwen3Config, Qwen3ForCausalLM

from hooks import HookedTransformer
from interp import watch_scores


def attached() -> Any:
    """A Qwen3 of 5 million parameters, four heads on two."""
    config = Qwen3Config(
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=256,
        max_position_embeddings=2048,
    )
    return HookedTransformer.attach(Qwen3ForCausalLM(config).train())


def pairs(model: Any, tokens: torch.Tensor, count: int) -> list[tuple[float, float]]:
    """CPU seconds of a step without and with watch_scores, in turns."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    found = []
    for turn in range(count + 3):
        taken = []
        for context in (contextlib.nullcontext(), watch_scores(model)):
            with context:
                start = time.thread_time()
                model(tokens, "loss").backward()
                optimizer.step()
                optimizer.zero_grad()
                taken.append(time.thread_time() - start)
        if turn >= 3:  # the first ones warm up
            found.append((taken[0], taken[1]))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--length", type=int, default=FULL.length)
    parser.add_argument("--batch", type=int, default=FULL.batch)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # so that a thread's CPU time is the step's
    models = {
        "native, no QK-norm": build(Twin("rate", 0), FULL),
        "native, QK-norm": build(Twin("rate", 0, "before_rope"), FULL),
        "attached Qwen3": attached(),
    }
    for name, model in models.items():
        tokens = torch.randint(256, (arguments.batch, arguments.length))
        taken = pairs(model, tokens, arguments.pairs)
        share = statistics.median(with_it / without for without, with_it in taken) - 1
        step = statistics.median(without for without, _ in taken)
        print(f"{name:>20}: step {1e3 * step:7.1f} ms CPU, watching adds {100 * share:+.1f} %", flush=True)


if __name__ == "__main__":
    main()
