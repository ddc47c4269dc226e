"""Pieces of work done by a cluster: each by one worker at a time, again where a worker was lost, none lost with it.

dask gives up on a piece of work that was on several workers when they died. That may be the piece that kills them, or
one that had bad luck, so it is tried once more when nothing else runs: what kills its worker then has failed, and what
only stood beside it is done.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from hooks.errors import ClusterError, RopescopeError

if TYPE_CHECKING:
    from distributed import Client, Future

_Key = TypeVar("_Key")
_LOOK_AGAIN_SECONDS = 1.0


class Killed(NamedTuple):
    """What a piece of work gives that ends every worker that does it."""

    reason: str


class Piece(NamedTuple, Generic[_Key]):
    """A piece of work: its name, and the arguments of the function that does it."""

    key: _Key
    arguments: tuple


def run_here(function: Callable[..., Any], pieces: Iterable[Piece[_Key]]) -> Iterator[tuple[_Key, Any]]:
    """Do one piece after another in this process; gives the name and the result of each."""
    for piece in pieces:
        yield piece.key, function(*piece.arguments)


def run_on(
    client: "Client",
    function: Callable[..., Any],
    pieces: Iterable[Piece[_Key]],
    *,
    waiting: Callable[[], None] = lambda: None,
) -> Iterator[tuple[_Key, Any]]:
    """Do the pieces on a cluster; gives the name and the result of each as it is done, or `Killed`.

    As many are on their way as there are workers, so that a worker that dies takes few with it and the pieces are made
    no sooner than they are needed.

    Args:
        client: of the cluster.
        function: what does a piece; workers import it by its name.
        pieces: what is to be done.
        waiting: called about once a second while nothing is done.

    Raises:
        RopescopeError: the function raised it.
        ClusterError: a worker cannot run the function at all, or the scheduler is gone.
    """
    suspects: list[Piece[_Key]] = []
    for piece, result in _in_window(client, function, pieces, waiting):
        if isinstance(result, Killed):
            suspects.append(piece)
        else:
            yield piece.key, result
    for suspect in suspects:
        for piece, result in _in_window(client, function, [suspect], waiting):
            yield piece.key, result


def _in_window(
    client: "Client", function: Callable[..., Any], pieces: Iterable[Piece[_Key]], waiting: Callable[[], None]
) -> Iterator[tuple[Piece[_Key], Any]]:
    """Keep as many pieces on their way as there are workers."""
    from distributed import wait

    rest, under_way = iter(pieces), {}
    more = True
    try:
        while more or under_way:
            room = max(_n_workers(client), 1) - len(under_way)
            for _ in range(room if more else 0):
                piece = next(rest, None)
                if piece is None:
                    more = False
                    break
                under_way[client.submit(function, *piece.arguments, pure=False)] = piece
            if not under_way:
                continue
            try:
                waited: Any = wait(list(under_way), timeout=_LOOK_AGAIN_SECONDS, return_when="FIRST_COMPLETED")
            except TimeoutError:
                waiting()
                continue
            for future in waited.done:
                yield under_way.pop(future), _result(future)
    finally:
        client.cancel(list(under_way))


def _result(future: "Future") -> Any:
    """What a piece gave, `Killed`, or the error that ends the run."""
    from distributed import KilledWorker

    try:
        return future.result()
    except KilledWorker:
        return Killed("it ended every worker that measured it (out of memory, or a crash)")
    except RopescopeError:
        raise
    except CancelledError:
        raise ClusterError("the cluster was closed, or lost what was under way: run it again to go on") from None
    except (ImportError, AttributeError) as error:
        raise ClusterError(
            f"a worker cannot run ropescope ({error}): install the same version of it on every worker"
        ) from None
    except Exception as error:
        raise ClusterError(f"a worker failed: {type(error).__name__}: {error}") from error


def _n_workers(client: "Client") -> int:
    """How many workers there are, waiting for the first."""
    while client.status in ("running", "connecting"):
        there: Any = client.nthreads()
        if there:
            return len(there)
        time.sleep(_LOOK_AGAIN_SECONDS)
    raise ClusterError("the scheduler is gone: run it again to go on")


def versions_of(client: "Client", packages: Iterable[str]) -> dict[str, dict[str, str]]:
    """Versions of packages on each worker that is there, by its address; a package that it lacks has none.

    It asks with what every Python has, so a worker without ropescope answers too.
    """
    from importlib.metadata import version

    found: dict[str, dict[str, str]] = {}
    for package in packages:
        answers: Any = client.run(version, package, on_error="return")
        for address, answer in answers.items():
            found.setdefault(address, {})[package] = answer if isinstance(answer, str) else "none"
    return found
