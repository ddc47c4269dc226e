"""A capture that was killed, stopped, short of disk or raced goes on to the bytes of one that was not."""

import errno
import os
import random
import shutil
import time

import crashing
import pytest
import torch
from crashing import LAYERS, N_TOKENS, contents, small_capture, small_model
from tiny_hooked import random_tokens

from hooks.errors import CaptureBusyError, CaptureDamagedError, CaptureError, CaptureMismatchError, OutputError
from interp.captures import capture, open_capture, resume
from interp.storage import writing as capture_writing
from interp.storage.manifest import read_manifest
from interp.storage.reading import CaptureFiles

pytestmark = pytest.mark.filterwarnings("ignore::hooks.errors.CaptureWarning")
RANDOM_KILLS = 6
# Of the file operations, or of the syncs alone, one after the first block is finished.
MIDDLE, INTERRUPTED = 28, 18


@pytest.fixture(scope="module", autouse=True)
def one_quick_thread():
    """One thread as in the children, and no waiting for the disk: what a killed process wrote outlives it anyway."""
    threads, fsync = torch.get_num_threads(), os.fsync
    torch.set_num_threads(1)
    os.fsync = lambda handle: None
    yield
    torch.set_num_threads(threads)
    os.fsync = fsync


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of a capture that nothing interrupted."""
    directory = tmp_path_factory.mktemp("whole") / "cap"
    small_capture(directory)
    return contents(directory)


@pytest.fixture
def stop(monkeypatch):
    """stop(n, error): the n-th sync from now on raises."""

    def at(n, error):
        fsync, calls = os.fsync, iter(range(1_000))

        def fail(handle):
            if next(calls) == n:
                monkeypatch.setattr(os, "fsync", fsync)
                raise error
            return fsync(handle)

        monkeypatch.setattr(os, "fsync", fail)

    return at


def test_killed_between_any_two_file_operations(tmp_path, whole):
    event, code = 0, -9
    while code == -9:
        directory = tmp_path / str(event)
        code = crashing.killed_at(directory, event)
        small_capture(directory)
        assert contents(directory) == whole, f"killed before file operation {event}"
        shutil.rmtree(directory)
        event += 1
    assert code == 0
    assert event > 40


def test_killed_anywhere_without_loss_and_finished_by_resume(tmp_path):
    """The one that leaves nothing behind, whether it goes on or only has to tidy up."""
    small_capture(tmp_path / "whole", loss=False)
    expected, model, event, code = contents(tmp_path / "whole"), small_model(), 0, -9
    while code == -9:
        directory = tmp_path / str(event)
        code = crashing.killed_at(directory, event, loss=False)
        if (directory / "manifest.json").exists():
            resume(directory, model if not read_manifest(directory).is_complete else None)
            assert contents(directory) == expected, f"killed before file operation {event}"
        event += 1
    assert event > 35


def test_killed_again_and_again_within_a_write(tmp_path, whole):
    directory, runs = tmp_path / "cap", 0
    while crashing.killed_at(directory, 13 + 2 * runs, ("write",)) == -9:
        runs += 1
    assert runs >= 2
    assert contents(directory) == whole


def test_killed_at_random_moments(tmp_path, whole):
    draw = random.Random(20)
    began = time.perf_counter()
    small_capture(tmp_path / "timed")
    seconds = time.perf_counter() - began
    for run in range(RANDOM_KILLS):
        directory = tmp_path / str(run)
        crashing.killed_after(directory, draw.uniform(0, 1.5 * seconds))
        small_capture(directory)
        assert contents(directory) == whole


def test_what_is_finished_can_be_read_before_the_rest(tmp_path, whole):
    directory = tmp_path / "cap"
    assert crashing.killed_at(directory, MIDDLE) == -9
    partial = open_capture(directory)
    assert (partial.layers, partial.is_complete) == ((0,), False)
    assert "UNFINISHED" in repr(partial)
    assert torch.equal(partial.q(0), small_capture(tmp_path / "other").q(0))
    assert "UNFINISHED" not in repr(resume(directory, small_model()))
    assert contents(directory) == whole


def test_interrupted_by_the_keyboard(tmp_path, whole, stop):
    directory = tmp_path / "cap"
    stop(INTERRUPTED, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        small_capture(directory)
    assert 0 < read_manifest(directory).blocks_run < 3
    small_capture(directory)
    assert contents(directory) == whole


@pytest.mark.parametrize("n", [0, 5, 9, 14, 20, 27])
def test_a_full_disk_loses_nothing(tmp_path, whole, stop, n):
    directory = tmp_path / "cap"
    stop(n, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(OutputError, match="the disk is full; free some space and run it again: what is finished stays"):
        small_capture(directory)
    assert not list(directory.glob(".ropescope-*"))
    small_capture(directory)
    assert contents(directory) == whole


def test_a_disk_too_small_is_refused_before_anything_runs(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000))
    with pytest.raises(OutputError, match="GB are free"):
        small_capture(tmp_path / "cap")
    assert not (tmp_path / "cap").exists()


def test_two_cannot_write_one_capture(tmp_path, whole):
    directory = tmp_path / "cap"
    directory.mkdir()
    holder = crashing.holding_lock(directory)
    with pytest.raises(CaptureBusyError, match="another process is writing"):
        small_capture(directory)
    holder.kill()
    holder.join()
    small_capture(directory)
    assert contents(directory) == whole


def test_a_capture_that_is_being_written_is_busy_and_not_damaged(half):
    """Its writer may remove the residual stream between our look at the manifest and at the files."""
    files = CaptureFiles(half, read_manifest(half))
    (half / "resume_001.safetensors").unlink()
    files.check()
    assert files.damaged() == []
    holder = crashing.holding_lock(half)
    with pytest.raises(CaptureBusyError):
        resume(half, small_model())
    holder.kill()
    holder.join()
    with pytest.raises(CaptureDamagedError, match=r"resume_001\.safetensors cannot be read"):
        resume(half, small_model())


@pytest.fixture
def half(tmp_path):
    """A capture with its first layer finished."""
    directory = tmp_path / "half"
    assert crashing.killed_at(directory, MIDDLE) == -9
    assert read_manifest(directory).blocks_run == 1
    return directory


def test_another_environment_is_refused_unless_forced(half, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    with pytest.raises(CaptureMismatchError, match=r"threads \d+ then, 77 now.*force"):
        small_capture(half)
    forced = small_capture(half, force=True)
    assert forced.is_complete
    (went_on,) = read_manifest(half).forced
    assert (went_on["from_block"], went_on["threads"]) == (1, 77)


def test_another_model_or_text_does_not_go_on(half):
    before = contents(half)
    with pytest.raises(CaptureMismatchError, match="another text"):
        capture(small_model(), random_tokens(N_TOKENS, seed=3)[0], half, layers=LAYERS)
    with pytest.raises(CaptureMismatchError, match="layers 0, 2 there, 0, 1 here"):
        capture(small_model(), random_tokens(N_TOKENS)[0], half, layers=(0, 1))
    assert contents(half) == before


def test_a_damaged_half_does_not_go_on(half):
    (half / "layer_000.safetensors").unlink()
    with pytest.raises(CaptureDamagedError, match=r"layer_000\.safetensors is missing"):
        small_capture(half)


def test_a_model_in_memory_is_not_found_again(half):
    with pytest.raises(CaptureError, match="nothing says where the model 'custom' was loaded from"):
        resume(half)


def test_a_finished_capture_runs_nothing(tmp_path, whole, monkeypatch):
    small_capture(tmp_path / "cap")
    monkeypatch.setattr(capture_writing, "run_blocks", None)
    assert small_capture(tmp_path / "cap").is_complete
    assert resume(tmp_path / "cap").is_complete
    assert contents(tmp_path / "cap") == whole
