"""Work on a cluster: each piece is done whatever dies, and what kills its worker takes no other along."""

import socket
import sys
from contextlib import nullcontext
from importlib.util import find_spec

import pytest

pytest.importorskip("distributed")
from on_workers import kill_or_square, random_kills, refuse

from hooks.errors import ClusterError, InputError
from interp.engine.clusters import cluster, dashboard
from interp.engine.running import Killed, Piece, run_here, run_on, versions_of


def pieces(numbers):
    return (Piece(f"piece {n}", (n,)) for n in numbers)


def test_here_pieces_are_made_when_it_is_their_turn():
    made = []

    def each():
        for n in range(3):
            made.append(n)
            yield Piece(n, (n,))

    results = run_here(lambda n: n + 1, each())
    assert next(results) == (0, 1) and made == [0]
    assert list(results) == [(1, 2), (2, 3)]


def test_a_second_cluster_on_a_machine_starts_and_names_a_dashboard_only_where_it_is_drawn():
    with socket.create_server(("", 8787)) if _is_free(8787) else nullcontext(), cluster(workers=1) as client:
        assert bool(dashboard(client)) == (find_spec("bokeh") is not None)
    assert dashboard(None) == ""


def _is_free(port):
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) != 0


def test_nothing_asked_for_is_this_process():
    with cluster() as client:
        assert client is None


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"scheduler": "tcp://127.0.0.1:1", "workers": 2}, ClusterError, "give one of them"),
        ({"workers": 0}, InputError, "workers=0"),
        ({"workers": 1.5}, InputError, "workers=1.5"),
        ({"scheduler": 8786}, ClusterError, "scheduler=8786: give the address"),
        ({"scheduler": " "}, ClusterError, "give the address"),
        ({"scheduler": "nonsense://there"}, ClusterError, "no dask scheduler answers at 'nonsense://there'"),
    ],
)
def test_what_is_no_cluster_is_refused_by_name(arguments, error, says):
    with pytest.raises(error, match=says), cluster(**arguments):
        pass


def test_without_dask_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    for arguments in ({"workers": 2}, {"scheduler": "tcp://127.0.0.1:8786"}):
        with pytest.raises(ClusterError, match=r"pip install 'ropescope\[cluster\]'"), cluster(**arguments):
            pass
    with cluster() as client:
        assert client is None


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path_factory.mktemp("nothing")))
        patch.setenv("PYTHONPATH", ":".join(sys.path))  # spawned processes find the tests' support
        with cluster(workers=2) as client:
            client.wait_for_workers(2)
            yield client


@pytest.mark.slow
def test_every_piece_is_done_once(two_workers):
    found = list(run_on(two_workers, kill_or_square, pieces(range(12))))
    assert len(found) == 12
    assert dict(found) == {f"piece {n}": n * n for n in range(12)}


@pytest.mark.slow
def test_no_more_pieces_are_under_way_than_there_are_workers(two_workers):
    made = []

    def each():
        for n in range(8):
            made.append(n)
            yield Piece(n, (n,))

    for done, _ in enumerate(run_on(two_workers, kill_or_square, each()), start=1):
        assert len(made) - done < 3


@pytest.mark.slow
def test_what_kills_every_worker_is_found_out_and_the_rest_is_done(two_workers):
    found = dict(run_on(two_workers, kill_or_square, pieces([1, 13, *range(2, 9)])))
    assert isinstance(found.pop("piece 13"), Killed)
    assert found == {f"piece {n}": n * n for n in range(1, 9)}


@pytest.mark.slow
def test_random_kills_lose_nothing(two_workers):
    two_workers.wait_for_workers(2)
    with random_kills(two_workers, 3, pause=0.5) as killed:
        found = list(run_on(two_workers, kill_or_square, pieces([*range(12), *range(14, 300)])))
    assert dict(found) == {f"piece {n}": n * n for n in (*range(12), *range(14, 300))}
    assert len(found) == 298 and killed


@pytest.mark.slow
def test_an_error_ends_the_run_under_its_own_name(two_workers):
    two_workers.wait_for_workers(2)
    with pytest.raises(InputError, match="3 is odd"):
        list(run_on(two_workers, refuse, pieces([2, 3])))
    with pytest.raises(ClusterError, match="a worker failed: ZeroDivisionError"):
        list(run_on(two_workers, refuse, pieces([4])))
    versions = versions_of(two_workers, ["torch", "no-such-package"])
    assert len(versions) == 2 and all(v["no-such-package"] == "none" for v in versions.values())
