"""Gradients on disk: those in memory; killed in either direction, they come to the bytes of a run that was not."""

import json
import os
import random
import shutil
import time

import crashing
import pytest
import torch
from crashing import LAYERS, N_TOKENS, contents, small_capture, small_model
from tiny_hooked import random_tokens

from hooks.errors import (
    CaptureDamagedError,
    CaptureError,
    CaptureMismatchError,
    CaptureWarning,
    InputError,
    OutputError,
)
from interp import attribution, metrics
from interp.captures import capture, open_capture, resume
from interp.storage import gradient_files
from interp.storage.gradient_files import damaged_gradients
from interp.storage.gradient_record import read_record
from interp.storage.manifest import read_manifest

pytestmark = pytest.mark.filterwarnings("ignore::hooks.errors.CaptureWarning")
METRIC = metrics.logit_difference(5, 7, position=-3)
RANDOM_KILLS = 6


@pytest.fixture(scope="module", autouse=True)
def one_quick_thread():
    """One thread as in the children, and no waiting for the disk."""
    threads, fsync = torch.get_num_threads(), os.fsync
    torch.set_num_threads(1)
    os.fsync = lambda handle: None
    yield
    torch.set_num_threads(threads)
    os.fsync = fsync


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of a capture with gradients that nothing interrupted."""
    directory = tmp_path_factory.mktemp("whole") / "cap"
    small_capture(directory, gradient_of=METRIC)
    return contents(directory)


def in_memory(metric=METRIC):
    return capture(small_model(), random_tokens(N_TOKENS)[0], layers=LAYERS, gradient_of=metric)


def test_they_are_those_in_memory_and_nothing_else_stays(tmp_path, whole):
    found, expected = small_capture(tmp_path / "cap", gradient_of=METRIC), in_memory()
    names = {name for name in whole if name.startswith("gradients")}
    assert names == {
        f"gradients/{x}" for x in ("gradients.json", "gradient_000.safetensors", "gradient_002.safetensors")
    }
    assert (found.gradients.metric, found.gradients.value) == (METRIC.name, expected.gradients.value)
    for layer in LAYERS:
        assert [*found.gradients.layers[layer]] and torch.equal(
            found.gradient(layer, "z"), expected.gradient(layer, "z")
        )
        for stage in found.stages(layer):
            for tensor in "qk":
                assert torch.equal(found.gradient(layer, tensor, stage), expected.gradient(layer, tensor, stage))
        assert torch.equal(found.gradient(layer, "v"), expected.gradient(layer, "v"))
    assert attribution(found).equals(attribution(expected))


@pytest.mark.slow
def test_killed_between_any_two_file_operations(tmp_path, whole):
    event, code, backward = 0, -9, 0
    while code == -9:
        directory = tmp_path / str(event)
        code = crashing.killed_at(directory, event, gradient_of=METRIC)
        begun = (directory / "gradients" / "gradients.json").is_file()
        backward += begun and read_record(directory).reached is not None and code == -9
        if begun and event % 2:  # from the directory alone, but for the model
            resume(directory, small_model())
        else:
            small_capture(directory, gradient_of=METRIC)
        assert contents(directory) == whole, f"killed before file operation {event}"
        shutil.rmtree(directory)
        event += 1
    assert code == 0
    assert event > 80 and backward > 20


def test_killed_at_random_moments_and_within_writes(tmp_path, whole):
    draw = random.Random(7)
    for run in range(RANDOM_KILLS):
        directory, kills = tmp_path / str(run), 0
        for _ in range(3):
            kills += crashing.killed_at(
                directory, draw.randrange(10, 60), ("fsync", "replace", "write"), gradient_of=METRIC
            )
        small_capture(directory, gradient_of=METRIC)
        assert kills < 0 and contents(directory) == whole


def test_a_finished_capture_gets_its_gradients_later(tmp_path, whole):
    small_capture(tmp_path / "cap")
    assert open_capture(tmp_path / "cap").gradients is None
    small_capture(tmp_path / "cap", gradient_of=METRIC)
    found = contents(tmp_path / "cap")
    assert {name for name in found if found[name] != whole[name]} == {
        "manifest.json"
    }  # whose provenance names no metric
    before = (tmp_path / "cap" / "gradients" / "gradients.json").stat().st_mtime_ns
    small_capture(tmp_path / "cap", gradient_of=METRIC)
    assert (tmp_path / "cap" / "gradients" / "gradients.json").stat().st_mtime_ns == before


def test_without_a_loss_the_blocks_behind_the_last_layer_run_too(tmp_path):
    model, ids = small_model(), random_tokens(N_TOKENS)[0]
    found = capture(model, ids, tmp_path / "cap", layers=0, loss=False, gradient_of=METRIC)
    assert torch.equal(found.gradient(0, "k"), in_memory().gradient(0, "k"))


def half(directory, metric=METRIC):
    """A capture that was killed on the way back."""
    for event in range(70, 140, 4):
        shutil.rmtree(directory, ignore_errors=True)
        assert crashing.killed_at(directory, event, gradient_of=metric) == -9
        if read_record(directory).reached is not None:
            break
    assert read_record(directory).reached is not None and not read_record(directory).is_complete
    return directory


def test_what_is_unfinished_says_so_and_another_metric_is_refused(tmp_path):
    directory = half(tmp_path / "cap")
    with pytest.warns(CaptureWarning, match="gradients of the capture in .* are unfinished.*ropescope resume"):
        assert open_capture(directory).gradients is None
    before = contents(directory)
    for other in (metrics.logit_difference(5, 8, position=-3), metrics.logit_difference(5, 7, position=-2)):
        with pytest.raises(CaptureMismatchError, match=r"holds gradients of 'logit_difference\(5, 7.*is asked for"):
            small_capture(directory, gradient_of=other)
    assert contents(directory) == before


def test_a_custom_metric_goes_on_with_its_own_name_and_code_alone(tmp_path):
    def mine(by, name="mine"):
        return metrics.custom(lambda logits: (logits[0] * by).sum(), -1, name)

    small_capture(tmp_path / "whole", gradient_of=mine(2.0))
    directory = tmp_path / "cap"
    half(directory, mine(2.0))
    with pytest.raises(InputError, match="which no file holds"):
        resume(directory, small_model())
    for other in (mine(3.0), mine(2.0, "yours")):
        with pytest.raises(CaptureMismatchError, match="holds gradients of 'mine'"):
            small_capture(directory, gradient_of=other)
    small_capture(directory, gradient_of=mine(2.0))
    assert contents(directory) == contents(tmp_path / "whole")
    held = object()
    with pytest.raises(InputError, match="cannot be compared"):
        small_capture(tmp_path / "other", gradient_of=metrics.custom(lambda x: x.sum() + 0 * id(held), -1, "held"))
    assert not (tmp_path / "other").exists()


def test_another_environment_is_refused_unless_forced(tmp_path, monkeypatch):
    directory = half(tmp_path / "cap")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    with pytest.raises(CaptureMismatchError, match=r"gradients in .*threads 1 then, 77 now"):
        small_capture(directory, gradient_of=METRIC)
    small_capture(directory, gradient_of=METRIC, force=True)
    assert [each["threads"] for each in read_record(directory).environments] == [1, 77]


def test_a_changed_file_is_found(tmp_path):
    directory = tmp_path / "cap"
    small_capture(directory, gradient_of=METRIC)
    assert damaged_gradients(directory) == []
    path = directory / "gradients" / "gradient_002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "gradient_002" in damaged_gradients(directory)[0]
    found = open_capture(directory)
    found.gradient(0, "z")
    with pytest.raises(CaptureDamagedError, match="was changed"):
        found.gradient(2, "z")
    path.unlink()
    with pytest.raises(CaptureDamagedError, match="is missing"):
        open_capture(directory)
    record = directory / "gradients" / "gradients.json"
    body = json.loads(record.read_text())
    for change, error, says in (
        ({"value": 3.0}, CaptureDamagedError, "changed after"),
        ({"format": 9}, CaptureError, "format 9"),
        ({"files": 3}, CaptureDamagedError, "cannot be right"),
    ):
        record.write_text(json.dumps(body | change))
        with pytest.raises(error, match=says):
            open_capture(directory)
    record.write_text("{")
    with pytest.raises(CaptureDamagedError, match="not what ropescope wrote"):
        open_capture(directory)


def test_gradients_of_another_capture_are_refused(tmp_path):
    small_capture(tmp_path / "a", gradient_of=METRIC)
    capture(small_model(), random_tokens(N_TOKENS, seed=5)[0], tmp_path / "b", layers=LAYERS)
    shutil.copytree(tmp_path / "a" / "gradients", tmp_path / "b" / "gradients")
    with pytest.raises(CaptureDamagedError, match="of another capture"):
        open_capture(tmp_path / "b")


def test_somebody_elses_files_stay(tmp_path, whole):
    directory = half(tmp_path / "cap")
    mine = directory / "gradients" / "stream_003.safetensors"
    mine.write_text("not yours")
    (directory / "gradients" / "notes.txt").write_text("mine")
    small_capture(directory, gradient_of=METRIC)
    found = contents(directory)
    assert found.pop("gradients/stream_003.safetensors") == b"not yours" and found.pop("gradients/notes.txt") == b"mine"
    assert found == whole


def test_a_disk_too_small_is_refused(tmp_path, monkeypatch):
    small_capture(tmp_path / "cap")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000))
    with pytest.raises(OutputError, match="GB are free"):
        small_capture(tmp_path / "cap", gradient_of=METRIC)
    assert gradient_files.read_gradients(tmp_path / "cap", read_manifest(tmp_path / "cap")) is None


def test_stopped_before_the_metric_was_noted_is_said(tmp_path):
    directory, event = tmp_path / "cap", 0
    while not (directory / "manifest.json").is_file() or (directory / "gradients" / "gradients.json").is_file():
        shutil.rmtree(directory, ignore_errors=True)
        crashing.killed_at(directory, event, gradient_of=METRIC)
        event += 1
        assert event < 40, time.monotonic()
    with pytest.raises(CaptureError, match="begun with gradients of logit_difference"):
        resume(directory, small_model())
    assert small_capture(directory, gradient_of=METRIC).gradients is not None
