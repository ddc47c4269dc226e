"""A corpus measured by workers: the numbers of one process, whatever dies; what differs on a worker is named."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("distributed")
from on_workers import Changed, deadly, other_version, other_weights, random_kills
from tiny_corpus import N_TOKENS, same, saved_model, single_thread, token_rows

from hooks.errors import CorpusMismatchError, UnknownModelError
from interp import measure_corpus, open_corpus
from interp.engine.clusters import cluster

pytestmark = pytest.mark.slow
ROWS = token_rows(40)
DEADLY = 60  # no text of token_rows begins with it


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    assert all(row[0] != DEADLY for row in ROWS)
    return saved_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def undisturbed(model, tmp_path_factory):
    """One process, one thread."""
    single_thread()
    return measure_corpus(model, ROWS, tmp_path_factory.mktemp("one") / "one.corpus", n_tokens=N_TOKENS)


@pytest.fixture
def workers(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    with cluster(workers=2) as client:
        client.wait_for_workers(2)
        yield client


def run(path, model, rows=ROWS, **options):
    return measure_corpus(model, rows, path, n_tokens=N_TOKENS, **options)


def test_two_workers_give_the_numbers_of_one_process(model, undisturbed, tmp_path):
    seen = []
    found = run(
        tmp_path / "two.corpus", model, workers=2, watch=lambda p: seen.append((p.done, p.left, dict(p.memory)))
    )
    same(found, undisturbed)
    assert seen[-1][:2] == (40, 0)
    assert all(50e6 < held < 4e9 for held in seen[-1][2].values())


def test_three_kills_of_workers_and_one_of_the_client_change_nothing(model, undisturbed, tmp_path):
    """The client's end closes its workers; the next run goes on with what is left."""
    path = tmp_path / "killed.corpus"
    child = multiprocessing.get_context("spawn").Process(target=_killed_client, args=(model, path))
    child.start()
    while child.is_alive() and len(list(path.glob("records/c.*"))) < 5:
        time.sleep(0.05)
    child.kill()
    child.join()
    assert 5 <= len(list(path.glob("records/c.*"))) < 40
    with cluster(workers=2) as client:
        client.wait_for_workers(2)
        with random_kills(client, 3, pause=1.0) as killed:
            found = run(path, model, scheduler=client)
    assert killed
    same(found, undisturbed)
    assert found.texts["status"].eq("measured").all()


def _killed_client(model, path):
    run(path, model, workers=2, watch=lambda progress: time.sleep(0.2))


def test_a_deadly_text_fails_alone_and_innocent_ones_survive_eight_kills(model, undisturbed, workers, tmp_path):
    workers.register_plugin(Changed("deadly", deadly, DEADLY))
    rows = [*ROWS[:9], [DEADLY, 1, 2, 3], *ROWS[9:]]
    with random_kills(workers, 8, pause=1.5) as killed:
        found = run(tmp_path / "deadly.corpus", model, rows, scheduler=workers)
    assert killed
    status = found.texts["status"].tolist()
    assert status.pop(9) == "failed" and status == ["measured"] * 40
    assert "ended every worker that measured it" in found.texts["reason"][9]
    entropy = found["head_summary"]["entropy"].values
    assert (entropy == undisturbed["head_summary"]["entropy"].values).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ((other_version, "torch", "1.0"), r"has torch 1\.0, and this corpus is measured with"),
        ((other_weights,), "holds other weights on the worker"),
    ],
)
def test_what_differs_on_a_worker_is_named(model, undisturbed, workers, tmp_path, change, says):
    """A corpus that was begun elsewhere, and a worker that would add other numbers to it."""
    run(tmp_path / "a.corpus", model, ROWS[:1])
    plan = tmp_path / "a.corpus" / "plan.json"
    assert plan.is_file()
    (tmp_path / "a.corpus" / "records" / "c.0.0").unlink()
    workers.register_plugin(Changed("other", *change))
    with pytest.raises(CorpusMismatchError, match=says):
        run(tmp_path / "a.corpus", model, ROWS[:1], scheduler=workers)
    assert not len(_opened(tmp_path / "a.corpus"))


def _opened(path):
    with pytest.warns(UserWarning, match="1 of 1 texts are left"):
        return open_corpus(path)


def test_a_model_that_no_worker_finds_is_named(workers, tmp_path):
    with pytest.raises(UnknownModelError):
        run(tmp_path / "a.corpus", str(tmp_path / "no-model"), scheduler=workers)
    assert not (tmp_path / "a.corpus").exists()


def test_a_cluster_started_by_hand_takes_it_by_address_from_elsewhere(model, undisturbed, tmp_path):
    """`dask scheduler` and two `dask worker`, in a directory that is not the checkout."""
    where = tmp_path / "elsewhere"
    where.mkdir()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "dask"]
    options = ["--no-dashboard", "--scheduler-file", "scheduler.json"]
    processes = [subprocess.Popen([*command, "scheduler", "--port", "0", *options], cwd=where, env=environment)]
    try:
        for _ in range(2):
            arguments = ["worker", "--nthreads", "1", "--no-dashboard", "--scheduler-file", "scheduler.json"]
            processes.append(subprocess.Popen([*command, *arguments], cwd=where, env=environment))
        deadline = time.monotonic() + 60
        while not (where / "scheduler.json").is_file() and time.monotonic() < deadline:
            time.sleep(0.2)
        import json

        address = json.loads((where / "scheduler.json").read_text())["address"]
        found = run(tmp_path / "by_hand.corpus", model, scheduler=address)
    finally:
        for process in processes:
            process.send_signal(signal.SIGINT)
        for process in processes:
            process.wait(30)
    same(found, undisturbed)
