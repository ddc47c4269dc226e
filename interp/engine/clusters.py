"""Where work runs: in this process, on workers started for it, or on a cluster that is there; opened and closed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hooks import checks
from hooks.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Client

_PATIENCE_SECONDS = 30


@contextmanager
def cluster(scheduler: Any = None, workers: int | None = None) -> Iterator["Client | None"]:
    """The client of a cluster while the block runs; None where neither is given: then work runs in this process.

    Args:
        scheduler: the address of a scheduler, such as ``tcp://10.0.0.1:8786``, or a Client; a Client stays open.
        workers: start so many processes on this machine, each with its share of the cores, and end them afterwards.

    Raises:
        InputError: both, or something else.
        ClusterError: dask.distributed is not installed, or nobody answers at the address.
    """
    if scheduler is None and workers is None:
        yield None
        return
    if scheduler is not None and workers is not None:
        raise ClusterError(
            f"scheduler={checks.shown(scheduler)} and workers={checks.shown(workers)}: give one of them, a cluster "
            "that is there or the number of processes to start"
        )
    count = None if workers is None else checks.whole("workers", workers, at_least=1)
    client_class = _distributed()
    if count is not None:
        with _local(count) as client:
            yield client
    elif isinstance(scheduler, client_class):
        yield scheduler
    else:
        client = _connected(scheduler)
        try:
            yield client
        finally:
            client.close()


@contextmanager
def _local(count: int) -> Iterator["Client"]:
    """Processes on this machine, spawned and never forked, that share its cores."""
    from dask import config
    from distributed import Client, LocalCluster

    threads = max(1, (os.cpu_count() or 1) // count)
    # A process that is started by forking would inherit locks that threads of this one hold.
    settings = {"distributed.worker.multiprocessing-method": "spawn", "distributed.scheduler.worker-saturation": 1.0}
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
    settings |= {f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in limits.items()}
    with (
        config.set(settings),
        # Any free port: the usual one may be another's, who shares the machine.
        LocalCluster(n_workers=count, threads_per_worker=threads, processes=True, dashboard_address=":0") as started,
        Client(started) as client,
    ):
        yield client


def _connected(address: Any) -> "Client":
    """A client of the scheduler at an address."""
    from distributed import Client

    if not isinstance(address, str) or not address.strip():
        raise ClusterError(
            f"scheduler={checks.shown(address)}: give the address of a dask scheduler, such as tcp://10.0.0.1:8786, or "
            "a dask.distributed Client"
        )
    try:
        return Client(address, timeout=_PATIENCE_SECONDS)
    except (OSError, ValueError) as error:
        why = str(error).split("\n")[0] or type(error).__name__
        raise ClusterError(
            f"no dask scheduler answers at {address!r} ({why}): start one with `dask scheduler`"
        ) from None


def _distributed() -> type:
    """dask.distributed's Client, or an error that says how to get it."""
    try:
        from distributed import Client
    except ImportError:
        raise ClusterError(
            "workers= and scheduler= need dask.distributed: pip install 'ropescope[cluster]'; "
            "without them the work runs in this process"
        ) from None
    return Client


def dashboard(client: "Client | None") -> str:
    """The address of a cluster's dashboard; empty where there is none."""
    if client is None:
        return ""
    # The scheduler names an address even where it lacks what draws the page.
    services = (client.scheduler_info(n_workers=0) or {}).get("services", {})
    drawn = bool(services.get("dashboard")) and client.run_on_scheduler(find_spec, "bokeh") is not None
    return str(client.dashboard_link or "") if drawn else ""
