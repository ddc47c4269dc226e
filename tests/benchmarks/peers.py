"""The attention profile of every head of SmolLM2-135M by three tools: time, memory, and the longest text of each.

    python tests/benchmarks/peers.py [--tokens 1024 2048 4096]
    python tests/benchmarks/peers.py --largest [--tokens 1024 1536 …] [--memory 16] [--minutes 10]

Each tool runs in a process of its own: TransformerLens' ``run_with_cache`` on every ``hook_pattern``, transformers'
``output_attentions=True``, and ours. All three then give the same result, attention summed along each distance for
each of the 270 heads; the profiles are compared, and the largest difference is printed. Memory is the process's peak,
the libraries included. Ours keeps the q and k that enter the score and v, as the others keep patterns only; it also
computes the loss of every token, which neither of them does.
At 4,096 tokens TransformerLens needs 20 GB. ``--largest`` raises the length until the process passes ``--memory`` GB
(it is killed there) or a run takes longer than ``--minutes``.
"""

import argparse
import multiprocessing
import resource
import time
import warnings
from multiprocessing.connection import Connection

import numpy as np
import psutil
import torch
from reference_models import transformers_model

from hooks import HookedTransformer
from interp import capture, standard_text

warnings.filterwarnings("ignore", message=".*beyond the .* tokens.*")
MODEL = "smollm2-135m"
TOOLS = ("transformer_lens", "transformers", "ropescope")
COMPARED = [1024, 2048, 4096]
LENGTHS = [1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768]


def by_distance(pattern: torch.Tensor) -> torch.Tensor:
    """Attention [head query key] summed along each distance, [head distance]: columns flipped, then sheared."""
    heads, n, _ = pattern.shape
    out = torch.empty(heads, n, dtype=torch.float64)
    for head in range(heads):
        sheared = torch.nn.functional.pad(pattern[head].flip(-1), (0, n)).flatten()[:-n].view(n, 2 * n - 1)
        out[head] = sheared.sum(0, dtype=torch.float64)[n - 1 :]
    return out


def profile(tool: str, tokens: torch.Tensor) -> tuple[np.ndarray, float]:
    """[layer head distance], and the seconds of running and summing, the model loaded and warmed up on 64 tokens."""
    with torch.no_grad():
        if tool == "ropescope":
            model = HookedTransformer.from_pretrained(MODEL)
            capture(model, tokens[:, :64], stages="final").statistics(groups=("distances",))
            start = time.perf_counter()
            ds = capture(model, tokens, stages="final").statistics(groups=("distances",))
            return ds["attention"].values, time.perf_counter() - start
        reference = transformers_model(MODEL, "eager")
        reference.model(tokens[:, :64], use_cache=False)
        if tool == "transformers":
            start = time.perf_counter()
            patterns = [a[0] for a in reference.model(tokens, output_attentions=True, use_cache=False).attentions]
        else:
            from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

            bridge = build_bridge_from_module(reference, type(reference).__name__, hf_config=reference.config)
            start = time.perf_counter()
            _, cache = bridge.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))
            patterns = [cache[f"blocks.{i}.attn.hook_pattern"][0] for i in range(bridge.cfg.n_layers)]
        return torch.stack([by_distance(p) for p in patterns]).numpy(), time.perf_counter() - start


def child(tool: str, n: int, out: Connection) -> None:
    """One run; sends seconds, peak GB and the profile."""
    tokens = HookedTransformer.from_pretrained(MODEL).to_tokens(standard_text().content)[:, :n]
    values, seconds = profile(tool, tokens)
    out.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, values))


def one_run(tool: str, n: int, limit_gb: float, limit_s: float) -> tuple[float, float, np.ndarray] | str:
    """The run in a process of its own, or why it was stopped."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(tool, n, send), daemon=True)
    process.start()
    watched, start = psutil.Process(process.pid), time.monotonic()
    try:
        while not receive.poll(0.05):
            if not process.is_alive():
                return "it crashed"
            if watched.memory_info().rss > limit_gb * 1e9:
                return f"it passed {limit_gb:g} GB"
            if time.monotonic() - start > limit_s:
                return f"it took longer than {limit_s / 60:g} minutes"
        return receive.recv()
    finally:
        process.kill()
        process.join()


def side_by_side(lengths: list[int]) -> None:
    """Print every tool at every length."""
    for n in lengths:
        results = {tool: one_run(tool, n, limit_gb=22, limit_s=1800) for tool in TOOLS}
        ours = results["ropescope"]
        assert not isinstance(ours, str), ours
        for tool, result in results.items():
            if isinstance(result, str):
                print(f"{n:>6,} tokens {tool:>17}: {result}", flush=True)
                continue
            seconds, peak, values = result
            print(
                f"{n:>6,} tokens {tool:>17}: {seconds:6.1f} s ({seconds / ours[0]:5.2f} × ours), peak {peak:5.2f} GB "
                f"({peak / ours[1]:5.2f} ×), profiles differ by at most {np.abs(values - ours[2]).max():.1e}",
                flush=True,
            )


def largest(lengths: list[int], limit_gb: float, minutes: float) -> None:
    """Print the longest text that each tool finishes."""
    for tool in TOOLS:
        reached, why = 0, "the list of lengths ended"
        for n in lengths:
            result = one_run(tool, n, limit_gb, minutes * 60)
            if isinstance(result, str):
                why = f"at {n:,} {result}"
                break
            reached = n
        print(f"{tool:>17}: {reached:,} tokens ({why})", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+")
    parser.add_argument("--largest", action="store_true")
    parser.add_argument("--memory", type=float, default=16.0)
    parser.add_argument("--minutes", type=float, default=10.0)
    arguments = parser.parse_args()
    if arguments.largest:
        largest(arguments.tokens or LENGTHS, arguments.memory, arguments.minutes)
    else:
        side_by_side(arguments.tokens or COMPARED)


if __name__ == "__main__":
    main()
