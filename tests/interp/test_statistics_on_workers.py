"""The layers of one capture on disk measured by workers: kept beside it, and the same as measured here."""

import sys

import pytest
import xarray as xr

pytest.importorskip("distributed")
from tiny_corpus import quiet_model, single_thread
from tiny_hooked import random_tokens

from hooks.errors import CaptureError, ClusterError, StageError
from interp import capture, open_capture
from interp.engine.clusters import cluster
from interp.engine.threads import take_share


def test_a_capture_in_memory_cannot_be_measured_elsewhere():
    cap = capture(quiet_model(), random_tokens(9)[0])
    with pytest.raises(CaptureError, match="cannot see a capture in memory"):
        cap.statistics(scheduler="tcp://127.0.0.1:1")


def test_a_layer_that_is_not_there_and_a_scheduler_that_does_not_answer_are_named(tmp_path):
    cap = capture(quiet_model(), random_tokens(9)[0], tmp_path / "a.capture")
    with pytest.raises(ClusterError, match="no dask scheduler answers"):
        cap.statistics(scheduler="nonsense://here")
    with pytest.raises(StageError, match="layer 7 is not in this capture"):
        cap.statistics(7)


@pytest.mark.slow
def test_workers_keep_what_they_measure_beside_the_capture(tmp_path, monkeypatch):
    single_thread()
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    tokens, model = random_tokens(70)[0], quiet_model(n_layers=4)
    here = capture(model, tokens, tmp_path / "here.capture").statistics()
    cap = capture(model, tokens, tmp_path / "there.capture")
    with cluster(workers=2) as client:
        found = cap.statistics(scheduler=client)
        shares = {client.submit(take_share).result()}
        assert shares == set(client.nthreads().values())
    xr.testing.assert_identical(found, here)
    kept = list((tmp_path / "there.capture" / "statistics").iterdir())
    assert len(kept) == 4
    times = {path: path.stat().st_mtime_ns for path in kept}
    xr.testing.assert_identical(open_capture(tmp_path / "there.capture").statistics(), here)
    assert times == {path: path.stat().st_mtime_ns for path in kept}
