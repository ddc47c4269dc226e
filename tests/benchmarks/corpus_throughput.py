"""Texts an hour with workers against one process; and what ten thousand tiny texts cost.

python tests/benchmarks/corpus_throughput.py [--texts 200] [--tokens 1024] [--workers 2] [--model smollm2-135m]
python tests/benchmarks/corpus_throughput.py --tiny 10000

The first measures head_summary and positional_bias of topics and docstrings of the standard library, in one process of
one thread and then in workers of one thread each; a pace counts from the moment when every process has measured its
first text, so that loading is left out. On two cores 200 texts of SmolLM2 take about half an hour. The second, some
minutes, takes texts of 24 tokens through a model of two layers, beside the same captures and analyses without a corpus.
"""

import argparse
import ast
import os
import resource
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch

ANALYSES = ("head_summary", "positional_bias")
sys.path.append(str(Path(__file__).parents[1] / "support"))


def documents(count: int) -> list[str]:
    """Topics and docstrings of modules, as many as are wanted."""
    found = [topics[name] for name in sorted(topics)]
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if len(found) >= count or "test" in path.parts or "site-packages" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        named = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
        text = "\n\n".join(filter(None, map(ast.get_docstring, named)))
        found += [text] if len(text) > 200 else []
    return found[:count]


class Pace:
    """Seconds a text from the moment when every process has measured one."""

    def __init__(self, processes: int):
        self.processes, self.start, self.end, self.memory = processes, (0, 0.0), (0, 0.0), {}

    def __call__(self, progress) -> None:
        """Take the time of a text."""
        self.memory = dict(progress.memory)
        if len(progress.memory) < self.processes:
            return
        self.end = progress.done, time.perf_counter()
        if not self.start[0]:
            self.start = self.end

    @property
    def seconds(self) -> float:
        """Seconds a text."""
        return (self.end[1] - self.start[1]) / max(self.end[0] - self.start[0], 1)


def throughput(model: str, count: int, tokens: int, workers: int) -> None:
    """Print both paces and their ratio."""
    from interp import measure_corpus

    texts, folder = documents(count), Path(tempfile.mkdtemp())
    torch.set_num_threads(1)
    alone, together = Pace(1), Pace(workers)
    options = {"n_tokens": tokens, "analyses": ANALYSES}
    one = measure_corpus(model, texts, folder / "one.corpus", **options, watch=alone)
    two = measure_corpus(model, texts, folder / "two.corpus", **options, workers=workers, watch=together)
    most = max(together.memory.values()) / 2**30
    print(f"{model}, {len(one)} texts of at most {tokens:,} tokens, {int(one.texts['tokens'].sum()):,} in all")
    print(f"one process, one thread: {alone.seconds:.2f} s a text, median {one.texts['seconds'].median():.2f} s")
    print(f"{workers} workers: {together.seconds:.2f} s a text, {alone.seconds / together.seconds:.2f} times as fast")
    print(f"memory of a worker: at most {most:.2f} GiB")
    for analysis in ANALYSES:
        for name in one[analysis].data_vars:
            np.testing.assert_array_equal(one[analysis][name], two[analysis][name])
    print("both hold the same numbers")


def timed(call: Callable[[], object]) -> tuple[float, object]:
    """Seconds that a call takes, and what it gives."""
    before = time.perf_counter()
    found = call()
    return time.perf_counter() - before, found


def tiny(count: int) -> None:
    """Print what a text costs beside its capture and analyses, and what the store can still do."""
    from tiny_corpus import quiet_model

    from interp import capture, measure_corpus, open_corpus
    from interp.corpus.analyses import ANALYSES as KEPT
    from interp.corpus.places import grid_of

    torch.set_num_threads(1)
    model, rng, grid = quiet_model(), np.random.default_rng(0), grid_of(24)
    rows = [row.tolist() for row in rng.integers(0, 61, size=(count, 24))]

    def bare() -> None:
        for row in rows[: min(count, 500)]:
            cap = capture(model, row, n_tokens=24, stages=())
            for name in ANALYSES:
                KEPT[name].measure(cap, grid)

    bare()
    alone = timed(bare)[0] / min(count, 500)
    folder = Path(tempfile.mkdtemp()) / "tiny.corpus"
    whole, _ = timed(lambda: measure_corpus(model, rows, folder, n_tokens=24, analyses=ANALYSES))
    files = sum(len(names) for _, _, names in os.walk(folder))
    print(f"{count:,} texts: {whole / count * 1e3:.1f} ms each, of which capture and analyses {alone * 1e3:.1f} ms")
    print(f"overhead {(whole / count - alone) * 1e3:.1f} ms a text; {files:,} files")
    print(f"plan.json {(folder / 'plan.json').stat().st_size / 1e6:.1f} MB")
    again, corpus = timed(lambda: open_corpus(folder))
    rerun, _ = timed(lambda: measure_corpus(model, rows, folder, n_tokens=24))
    print(f"opened in {again:.2f} s; run again in {rerun:.2f} s")
    one = corpus["head_summary"]["entropy"]
    print(f"one variable of {min(count, 2000):,} texts read in {timed(lambda: one[:2000].values)[0]:.3f} s")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for analysis in ANALYSES:
        print(f"mean of {analysis} in {timed(lambda a=analysis: corpus.mean(a))[0]:.1f} s")
    print(f"memory grew by {(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10:.0f} MiB")


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tiny", type=int, help="so many tiny texts instead")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.tiny:
        tiny(arguments.tiny)
    else:
        throughput(arguments.model, arguments.texts, arguments.tokens, arguments.workers)


if __name__ == "__main__":
    main()
