"""A gradient of a long text on disk, and the effects of every head: time over the forward pass, memory, disk.

    OMP_NUM_THREADS=2 python tests/benchmarks/causes_at_length.py [--tokens 32768] [--model gemma3-270m] [--repeats 1]
    OMP_NUM_THREADS=2 python tests/benchmarks/causes_at_length.py --eager [--tokens 4096]

Each step runs in a process of its own. "forward" are the blocks alone; "loss" what the loss of every token adds; the
capture with gradients is split into what it computes and what it reads and writes (hashes included). Memory is
anonymous memory: the weights are in it, the mapped pages of files are not. Attribution stands beside `cap.statistics()`
of the same capture. We hold ourselves to computing in 5 times the forward pass, 6 GB, 10 GB of disk, and 1.5 times the
statistics.

--eager takes the gradient of the same metric to z of every layer by autograd through transformers' eager attention
instead, which keeps every pattern, and prints the ratio of the peaks of resident memory.
"""

import argparse
import resource
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import in_own_process, watched
from reference_models import transformers_model

import interp
from hooks import HookedTransformer
from interp import capture, metrics, open_capture, standard_text
from interp.storage.gradient_files import GradientWriter
from interp.storage.writing import CaptureWriter
from interp.texts.texts import tokenise

warnings.filterwarnings("ignore", message=".*beyond the .* tokens.*")
LIMITS = {"computing / forward": 5.0, "memory [GB]": 6.0, "disk [GB]": 10.0, "attribution / statistics": 1.5}
METRIC = metrics.logit(" the")


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def text(name: str, n: int) -> tuple[HookedTransformer, torch.Tensor]:
    """The model, warmed up, and its tokens."""
    model = HookedTransformer.from_pretrained(name)
    tokens, _ = tokenise(model, standard_text(), n)
    with torch.no_grad():
        model.forward(tokens[:, :64], stop_at_layer=model.cfg.n_layers)
    return model, tokens


@torch.no_grad()
def forward(name: str, n: int) -> tuple[float, float]:
    """Seconds of the blocks alone, and of blocks and loss."""
    model, tokens = text(name, n)
    blocks = seconds(lambda: model.forward(tokens, stop_at_layer=model.cfg.n_layers))
    return blocks, seconds(lambda: model.loss_per_token(tokens))


def gradients(name: str, n: int, directory: str) -> dict[str, float]:
    """The capture with gradients: seconds of computing and of files, peak of anonymous memory, bytes on disk."""
    model, tokens = text(name, n)
    spent = 0.0

    def timed(owner: type, method: str) -> None:
        plain = getattr(owner, method)

        def call(*args: Any, **options: Any) -> Any:
            nonlocal spent
            start = time.perf_counter()
            try:
                return plain(*args, **options)
            finally:
                spent += time.perf_counter() - start

        setattr(owner, method, call)

    for owner, method in ((CaptureWriter, "_write"), (GradientWriter, "_finish"), (GradientWriter, "_read")):
        timed(owner, method)
    seen = watched(lambda: capture(model, tokens, directory, loss=False, gradient_of=METRIC))
    disk = sum(path.stat().st_size for path in Path(directory).rglob("*") if path.is_file())
    return {"computing": seen["seconds"] - spent, "files": spent, "memory": seen["peak"] / 1e9, "disk": disk / 1e9}


def asked(directory: str) -> tuple[float, float, float]:
    """Seconds of the statistics and of attribution, and how far its sums are from complete, over Σ|·|."""
    cap = open_capture(directory)
    interp.attribution(cap, layers=cap.layers[0])  # compiles nothing, but reads the libraries in
    measured = seconds(cap.statistics)
    start = time.perf_counter()
    effects = interp.attribution(cap)
    took = time.perf_counter() - start
    worst = 0.0
    for layer in cap.layers:
        z = (cap.z(layer).double() * cap.gradient(layer, "z").double()).sum((0, 2)).numpy()
        one = effects.sel(layer=layer)
        size = (one.effect_positive - one.effect_negative).values
        for name in ("effect_by_key", "effect_by_distance", "effect_map"):
            sums = one[name].sum([dim for dim in one[name].dims if dim != "head"]).values
            worst = max(worst, float((abs(sums - z) / size).max()))
    return measured, took, worst


def peak_of(name: str, n: int, tool: str) -> float:
    """Peak of resident memory of one way to take the gradient of a logit to every z [GB]."""
    model, tokens = text(name, n)
    token = int(model.to_single_token(" the"))
    if tool == "ropescope":
        capture(model, tokens, loss=False, stages=(), gradient_of=METRIC)
    else:
        del model
        reference: Any = transformers_model(name, "eager")
        kept: list[torch.Tensor] = []

        def keep(module: object, args: tuple) -> None:
            kept.append(args[0])

        for layer in reference.model.layers:
            layer.self_attn.o_proj.register_forward_pre_hook(keep)
        last = reference.model(tokens, use_cache=False).last_hidden_state[:, -1]
        torch.autograd.grad(reference.lm_head(last)[0, token], kept)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    """Print each figure beside what we hold ourselves to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma3-270m")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--eager", action="store_true")
    arguments = parser.parse_args()
    name, n = arguments.model, arguments.tokens or (4096 if arguments.eager else 32_768)
    if arguments.eager:
        ours, theirs = (in_own_process(peak_of, name, n, tool) for tool in ("ropescope", "transformers"))
        print(
            f"{name}, {n:,} tokens: block by block {ours:.2f} GB, eager autograd {theirs:.2f} GB, {theirs / ours:.1f} ×"
        )
        return
    runs = [in_own_process(forward, name, n) for _ in range(arguments.repeats)]
    blocks, with_loss = (median(column) for column in zip(*runs, strict=True))
    print(f"{name}, {n:,} tokens\nforward {blocks:.1f} s, the loss {with_loss - blocks:+.1f} s", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        made = []
        for turn in range(arguments.repeats):
            made.append(in_own_process(gradients, name, n, f"{scratch}/{turn}"))
        best = {key: median(run[key] for run in made) for key in made[0]}
        print("capture with gradients: computing {computing:.1f} s, files {files:.1f} s".format(**best), flush=True)
        measured, took, worst = in_own_process(asked, f"{scratch}/0")
    print(f"statistics {measured:.1f} s, attribution {took:.1f} s, complete to {worst:.1e} of Σ|·|")
    found = {
        "computing / forward": best["computing"] / blocks,
        "memory [GB]": best["memory"],
        "disk [GB]": best["disk"],
    }
    for what, value in (found | {"attribution / statistics": took / measured}).items():
        print(f"{what:<26} {value:6.2f}   at most {LIMITS[what]:g}{'' if value <= LIMITS[what] else '   MISSED'}")


if __name__ == "__main__":
    main()
