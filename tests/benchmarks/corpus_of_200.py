"""A corpus measured undisturbed, by two workers, and through kills of workers and of the client: the same numbers.

    python tests/benchmarks/corpus_of_200.py [--texts 200] [--tokens 1024] [--model smollm2-135m]

Texts are topics of pydoc and docstrings of the standard library, analyses head_summary and positional_bias. Prints how
long each run took, fails where a number differs by more than 1e-6 or a text is lost, and ends with the sink rate of the
model over the texts and its 95 % interval.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpus_throughput import documents

from interp import Corpus, measure_corpus

sys.path.append(str(Path(__file__).parents[1] / "support"))
from interp.engine.clusters import cluster

ANALYSES = ("head_summary", "positional_bias", "sink_rate")


def killed_client(model: str, texts: list[str], path: Path, options: dict[str, Any]) -> None:
    """What the client that is killed runs."""
    measure_corpus(model, texts, path, workers=2, **options)


def disturbed(model: str, texts: list[str], path: Path, options: dict[str, Any]) -> Corpus:
    """The client is killed when a quarter of the texts is there, and three workers in the run that goes on."""
    from on_workers import random_kills

    child = multiprocessing.get_context("spawn").Process(target=killed_client, args=(model, texts, path, options))
    child.start()
    while child.is_alive() and len(list(path.glob("records/c.*"))) < len(texts) // 4:
        time.sleep(0.2)
    child.kill()
    child.join()
    print(f"client killed after {len(list(path.glob('records/c.*')))} texts")
    with cluster(workers=2) as client:
        client.wait_for_workers(2)
        with random_kills(client, 3, pause=20.0) as killed:
            found = measure_corpus(model, texts, path, scheduler=client, **options)
    print(f"workers killed: {len(killed)}")
    return found


def agree(name: str, one: Corpus, other: Corpus) -> None:
    """Raise where two corpora differ by more than 1e-6, or a text is not in both once."""
    assert other.texts["status"].eq("measured").all() and other.texts["id"].tolist() == one.texts["id"].tolist()
    largest, equal = 0.0, True
    for analysis in ANALYSES:
        for variable in one[analysis].data_vars:
            a, b = (np.asarray(corpus[analysis][variable].values, dtype=np.float64) for corpus in (one, other))
            np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-6, err_msg=f"{name}: {analysis} {variable}")
            equal = equal and bool(np.array_equal(a, b, equal_nan=True))
            largest = max(largest, float(np.nanmax(np.abs(a - b), initial=0.0)))
    print(f"{name}: {'the same to the last bit' if equal else f'largest difference {largest:.1e}'}")


def main() -> None:
    """Print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=1024)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    texts, folder = documents(arguments.texts), Path(tempfile.mkdtemp())
    options = {"n_tokens": arguments.tokens, "analyses": ANALYSES}
    start = time.perf_counter()
    alone = measure_corpus(arguments.model, texts, folder / "alone.corpus", **options)
    print(f"{len(alone)} texts, {int(alone.texts['tokens'].sum()):,} tokens: {time.perf_counter() - start:.0f} s alone")
    start = time.perf_counter()
    agree("two workers", alone, measure_corpus(arguments.model, texts, folder / "two.corpus", workers=2, **options))
    print(f"{time.perf_counter() - start:.0f} s with two workers")
    agree("with kills", alone, disturbed(arguments.model, texts, folder / "killed.corpus", options))
    sinks = alone.mean("sink_rate")
    rate, low, high = (float(sinks[name]) for name in ("sink_rate", "sink_rate_low", "sink_rate_high"))
    print(f"sink rate (first token, above 0.3): {rate:.3f}, 95 % interval {low:.3f} to {high:.3f} over texts")


if __name__ == "__main__":
    main()
