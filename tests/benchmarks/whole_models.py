"""A whole model at length, every layer and head: capture to disk and all statistics; its forward against transformers'.

    python tests/benchmarks/whole_models.py [--model gemma3-270m] [--tokens 32768] [--layers 0 …]
    python tests/benchmarks/whole_models.py --forward [--model gemma3-270m] [--tokens 32768]

With ``--layers`` the loss is left out, so that the pass ends after the last of them. Weights are streamed, as on the
command line. Prints seconds, the peak of the process's own memory (anonymous and shared; files that are mapped do not
count to it) while it captures and while it measures, the size of the capture, and the bytes that stored patterns would
have taken. ``--forward`` times one body forward (no logits) of each library, each in a process of its
own: transformers' sdpa needs 9 minutes and 8 GB for Gemma at 32,768 tokens, because it computes the whole square on
sliding layers too. The figures we hold ourselves to: a model of 32,768 tokens under 8 GB, one layer of SmolLM2 at
131,072 tokens (``--model smollm2-135m --layers 0 --tokens 131072``) under 2.5 GB, and a forward at most 0.33 ×
transformers'.
"""

import argparse
import resource
import tempfile
import time
import warnings
from pathlib import Path

import torch
from forward import load, run, tokens_of
from measuring import in_own_process, own_memory_peak

from hooks import HookedTransformer, RopeConfig
from interp import capture, standard_text

warnings.filterwarnings("ignore", message=".*beyond the .* tokens.*")


def peak_memory() -> float:
    """Largest resident memory of this process so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def whole(name: str, n: int, layers: list[int] | None) -> str:
    """Capture and measure; what it took, as text."""
    model = HookedTransformer.from_pretrained(name, stream=True)
    if n > model.cfg.n_ctx:
        model = model.with_config(rope=RopeConfig(rope_type="yarn", factor=float(-(-n // model.cfg.n_ctx))))
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        with own_memory_peak() as at_capture:
            cap = capture(model, standard_text(), Path(scratch) / "a", n_tokens=n, layers=layers, loss=layers is None)
        captured = time.perf_counter() - start
        held = sum(file.stat().st_size for file in Path(scratch).rglob("*") if file.is_file())
        start = time.perf_counter()
        with own_memory_peak() as at_statistics:
            cap.statistics()
        measured = time.perf_counter() - start
    heads = len(cap.layers) * cap.cfg.n_heads
    return (
        f"{name}, {len(cap.tokens):,} tokens, {len(cap.layers)} layers, {heads} heads: "
        f"capture {captured:.0f} s ({held / 1e9:.2f} GB on disk, peak {at_capture[0] / 1e9:.2f} GB), "
        f"all statistics {measured:.0f} s, peak {at_statistics[0] / 1e9:.2f} GB; "
        f"stored patterns would take {heads * len(cap.tokens) ** 2 * 4 / 1e9:,.0f} GB"
    )


def one_forward(kind: str, name: str, n: int) -> tuple[float, float]:
    """Seconds of one body forward and the peak memory of the process, in GB."""
    tokens = tokens_of(HookedTransformer.from_pretrained(name), n)
    model = load(kind, name)
    run(kind, model, tokens[:, :64])
    start = time.perf_counter()
    with torch.no_grad():
        run(kind, model, tokens)
    return time.perf_counter() - start, peak_memory()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma3-270m")
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--layers", type=int, nargs="+")
    parser.add_argument("--forward", action="store_true")
    arguments = parser.parse_args()
    if not arguments.forward:
        print(in_own_process(whole, arguments.model, arguments.tokens, arguments.layers))
        return
    kinds = ("ropescope", "transformers")
    taken = {kind: in_own_process(one_forward, kind, arguments.model, arguments.tokens) for kind in kinds}
    for kind, (seconds, peak) in taken.items():
        print(f"{arguments.model} {kind:>12}, {arguments.tokens:,} tokens: {seconds:.1f} s, peak {peak:.2f} GB")
    print(f"ratio {taken['ropescope'][0] / taken['transformers'][0]:.2f} in time")


if __name__ == "__main__":
    main()
