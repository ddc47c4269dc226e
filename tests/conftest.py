"""Examples are drawn once and for all, workers share the machine, and what was left out is said.

``pytest --hypothesis-profile=fresh`` draws new examples; ``pytest -m ""`` runs the slow checks too; ``pytest tests/fuzz
--fuzz=all`` draws everything that the property tests of wrong input draw, and counts what came of it.
"""

import os

import pytest
from hypothesis import settings

# Before numba or torch look: a worker of pytest-xdist that took every core would make its neighbours wait.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
THREADS = max((os.cpu_count() or 1) // WORKERS, 1)
if WORKERS > 1:
    os.environ.setdefault("NUMBA_NUM_THREADS", str(THREADS))
    os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))

settings.register_profile("fixed", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("fresh", deadline=None, print_blob=True)
settings.load_profile("fixed")

LEFT_OUT = pytest.StashKey[int]()


def pytest_addoption(parser):
    parser.addoption("--fuzz", choices=("small", "all"), default="small", help="how much tests/fuzz draws (minutes)")


def pytest_deselected(items):
    """Count the slow checks that the default run leaves out; a worker hands its count to the controller."""
    if items and items[0].config.option.markexpr == "not slow":
        config = items[0].config
        count = config.stash.get(LEFT_OUT, 0) + sum(item.get_closest_marker("slow") is not None for item in items)
        config.stash[LEFT_OUT] = count
        if hasattr(config, "workeroutput"):
            config.workeroutput["left_out"] = count


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Every worker collects everything, so that any count is the count."""
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(terminalreporter, config):
    for what, counts in fuzz_counts(terminalreporter).items():
        terminalreporter.write_line(f"{what}: {', '.join(f'{n:,} {name}' for name, n in sorted(counts.items()))}")
    left_out = config.stash.get(LEFT_OUT, 0)
    if left_out:
        what = "1 slow check was" if left_out == 1 else f"{left_out} slow checks were"
        terminalreporter.write_line(f'{what} left out; run them too with: pytest -m ""')


def fuzz_counts(terminalreporter):
    """What the property tests of wrong input counted, {test file: {what came of it: how often}}."""
    found = {}
    for report in (each for reports in terminalreporter.stats.values() for each in reports):
        for counts in (value for name, value in getattr(report, "user_properties", ()) if name == "fuzz"):
            if report.when == "teardown":
                total = found.setdefault(report.nodeid.split("::")[0], {})
                total |= {name: total.get(name, 0) + n for name, n in counts.items()}
    return found
