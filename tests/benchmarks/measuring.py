"""Peak memory and processes of their own, shared by the benchmarks."""

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil


def peak_above(call: Callable[[], Any], every: float = 0.005) -> float:
    """Highest resident bytes during `call` above those before it, sampled every 5 ms."""
    process = psutil.Process()
    before = peak = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(every):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return max(peak, process.memory_info().rss) - before


def own_memory() -> int:
    """Bytes of this process that no file on disk holds: anonymous and shared memory, as Linux counts them."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * sum(int(words[1]) for words in lines if words[0] in ("RssAnon:", "RssShmem:"))


@contextmanager
def own_memory_peak(every: float = 0.005) -> Iterator[list[int]]:
    """A list whose one number is the peak of `own_memory` within the block, sampled every 5 ms."""
    peak, done = [own_memory()], threading.Event()

    def watch() -> None:
        while not done.wait(every):
            peak[0] = max(peak[0], own_memory())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def in_own_process(function: Callable[..., Any], *args: Any) -> Any:
    """The function's result, computed in a fresh process so that nothing allocated before counts."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def watched(work: Callable[[], Any]) -> dict[str, Any]:
    """Peak of anonymous memory in bytes, and seconds, of this process while it works; and what the work gives."""
    peak, done = [anonymous()], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    before = time.perf_counter()
    found = work()
    done.set()
    watcher.join()
    return {"peak": peak[0], "seconds": time.perf_counter() - before, "cpu": time.process_time(), "found": found}


def anonymous() -> int:
    """Bytes of this process's memory that no file backs."""
    with open("/proc/self/status") as status:
        return 1024 * int(next(line.split()[1] for line in status if line.startswith("RssAnon")))
