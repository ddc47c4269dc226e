"""A person's files survive, byte for byte, under every name that the tool uses; what it left itself is known."""

import json
import os
import shutil
from pathlib import Path

import crashing
import pytest
import torch
from crashing import contents, small_capture, small_model
from safetensors.torch import save_file
from tiny_hooked import random_tokens

from hooks.errors import CaptureError, OutputError, RopescopeError
from interp import compare, open_capture, plots, positional_bias, report, resume
from interp.cli import command as cli
from interp.storage import tensor_files
from interp.storage.manifest import read_manifest

pytestmark = pytest.mark.filterwarnings("ignore::hooks.errors.CaptureWarning")
CUT = sorted(Path(__file__).parent.glob("capture_format_*/cut.capture"))
# What a person may well have of these names: words, JSON, tensors of their own, nothing.
NAMES = [
    *("manifest.json", "tokens.json", "source.json", "tokens.safetensors", "constants.safetensors", "loss.safetensors"),
    *("layer_000.safetensors", "layer_001.safetensors", "layer_002.safetensors", "resume_001.safetensors"),
    *("resume_002.safetensors", "resume_003.safetensors", "resume_notes.safetensors", "resume.safetensors"),
    *(".lock", ".ropescope-mine.tmp", ".ropescope-abcd1234.tmp", "notes.txt", "statistics/notes.txt"),
    *("statistics/layer_000_0123456789abcdef.safetensors", "statistics/.ropescope-abcd1234.tmp", "statistics/a.json"),
]
CONTENTS = {
    "words": lambda path: path.write_text("mine"),
    "json": lambda path: path.write_text('{"model": "gpt2", "str_tokens": ["a"], "token 0": "a"}'),
    "tensors": lambda path: save_file({"residual": torch.ones(3), "v": torch.ones(2)}, path, {"note": "my own"}),
    "a residual": lambda path: save_file({"residual": torch.ones(1, 9, 32)}, path),
    "cut": lambda path: path.write_bytes(b"\x40\0\0\0\0\0\0\0{"),
}


@pytest.fixture(params=CONTENTS)
def plant(request):
    """plant(path): put a person's file there, and make it old."""

    def put(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        CONTENTS[request.param](path)
        os.utime(path, (0, 0))
        return {path: path.read_bytes()}

    return put


def assert_there(planted):
    assert {path: path.read_bytes() for path in planted} == planted


@pytest.fixture(scope="module")
def captures(tmp_path_factory):
    """A finished capture and one of which the first block has run."""
    folder = tmp_path_factory.mktemp("captures")
    small_capture(folder / "whole")
    assert crashing.killed_at(folder / "half", 28) == -9
    assert read_manifest(folder / "half").blocks_run == 1
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_directory_that_is_no_capture_is_refused_whatever_is_in_it(tmp_path, plant, name):
    planted = plant(tmp_path / "mine" / name)
    with pytest.raises(RopescopeError):
        small_capture(tmp_path / "mine")
    with pytest.raises(CaptureError):
        resume(tmp_path / "mine", small_model())
    assert_there(planted)
    assert [p for p in (tmp_path / "mine").rglob("*") if p.is_file()] == list(planted)


def test_in_a_finished_capture_everything_survives_every_use(captures, tmp_path, plant):
    cap = shutil.copytree(captures / "whole", tmp_path / "cap")
    planted = {}
    for name in NAMES:
        if not (cap / name).exists():
            planted |= plant(cap / name)
    before = contents(cap)
    assert small_capture(cap).is_complete
    assert resume(cap).is_complete
    assert resume(cap, small_model()).is_complete
    opened = open_capture(cap)
    opened.statistics()
    report(opened, cap / "r.html", csv=cap / "tables")
    assert_there(planted)
    assert {name: content for name, content in contents(cap).items() if name in before} == before


@pytest.mark.parametrize("name", ["layer_002.safetensors", "resume_002.safetensors", "loss.safetensors"])
def test_what_stands_where_the_rest_would_go_is_named_before_anything_runs(captures, tmp_path, plant, name):
    cap = shutil.copytree(captures / "half", tmp_path / "cap")
    (cap / name).unlink(missing_ok=True)
    planted = plant(cap / name) | plant(cap / "resume_notes.safetensors") | plant(cap / ".ropescope-mine.tmp")
    before = contents(cap)
    with pytest.raises(OutputError, match=f"{name}' is there already and ropescope did not write it"):
        small_capture(cap)
    assert contents(cap) == before
    (cap / name).rename(tmp_path / "moved")
    assert small_capture(cap).is_complete
    assert_there({path: content for path, content in planted.items() if path.name != name})


@pytest.mark.parametrize("name", ["source.json", "resume_notes.safetensors", "layer_009.safetensors", "notes.txt"])
def test_what_stands_in_nobodys_way_stays_while_the_rest_is_written(captures, tmp_path, plant, name):
    cap = shutil.copytree(captures / "half", tmp_path / "cap")
    planted = plant(cap / name)
    assert small_capture(cap).is_complete
    assert_there(planted)


def test_results_of_a_person_survive(captures, tmp_path, plant):
    """Every function and command that writes a result somewhere, where something stands already."""
    whole = str(shutil.copytree(captures / "whole", tmp_path / "whole"))
    cap, other = open_capture(whole), small_capture(None)
    tables = ("heads", "distances", "ranges", "variants", "loss")
    planted = {}
    for name in ("r.html", "f.html", "f.png", "f.svg", "f.pdf", "ropescope-report.html", "ropescope.capture"):
        planted |= plant(tmp_path / name)
    for name in tables:
        planted |= plant(tmp_path / "tables" / f"{name}.csv")
    figure = plots.show(positional_bias(cap).isel(layer=[0]))
    for write in (
        lambda: report(cap, tmp_path / "r.html"),
        lambda: report(cap, tmp_path / "r.html", compare_with=other),
        lambda: cap.report(tmp_path / "new.html", csv=tmp_path / "tables"),
        lambda: small_capture(tmp_path / "ropescope.capture"),
        lambda: small_capture(tmp_path / "tables"),
        *(lambda kind=kind: plots.save(figure, tmp_path / f"f.{kind}") for kind in ("html", "png", "svg", "pdf")),
        lambda: cli.app(["report", "--capture", whole, "--out", str(tmp_path / "r.html")], standalone_mode=False),
        lambda: cli.app(["compare", whole, whole, "--out", str(tmp_path / "r.html")], standalone_mode=False),
        lambda: cli.app(["report", "--tokens", "9", "--out", str(tmp_path / "r.html")], standalone_mode=False),
    ):
        with pytest.raises(RopescopeError):
            write()
        assert_there(planted)
    assert compare(cap, other) is not None
    assert {path.name for path in tmp_path.iterdir()} == {
        "tables",
        "whole",
        *(p.name for p in planted if p.parent == tmp_path),
    }


def unmarked(path):
    """A file of ours as an earlier version wrote it."""
    if path.suffix == ".json":
        content = json.loads(path.read_bytes())
        content.pop(tensor_files.MARK)
        path.write_text(json.dumps(content))
        return
    length, infos, _ = tensor_files.read_header(path)
    path.write_bytes(tensor_files.header(infos, {}) + path.read_bytes()[len(length) :])


@pytest.mark.parametrize("cut", [None, 100])
def test_what_an_earlier_version_left_goes_on(captures, tmp_path, cut):
    """Begun, and killed before there was a manifest; with a file of it half written, or none."""
    cap = tmp_path / "cap"
    assert crashing.killed_at(cap, 11) == -9
    assert not (cap / "manifest.json").exists()
    kept = [path for path in cap.iterdir() if path.suffix in (".json", ".safetensors")]
    assert len(kept) > 2
    for path in kept:
        unmarked(path)
    if cut:
        (cap / ".ropescope-abcd1234.tmp").write_bytes((cap / "tokens.safetensors").read_bytes()[:cut])
    small_capture(cap)
    assert contents(cap) == contents(captures / "whole")


@pytest.mark.parametrize("cut", CUT, ids=lambda folder: folder.parent.name)
def test_a_capture_that_an_earlier_version_began_is_finished(captures, tmp_path, cut):
    """The version's own files: two blocks have run, and it was killed after it wrote the third one's."""
    cap = Path(shutil.copytree(cut, tmp_path / "cap"))
    finished, whole = small_capture(cap, force=True), open_capture(captures / "whole")
    assert sorted(os.listdir(cap)) == sorted(os.listdir(captures / "whole"))
    for layer in whole.layers:
        for stage in whole.stages(layer):
            torch.testing.assert_close(finished.q(layer, stage), whole.q(layer, stage))
            torch.testing.assert_close(finished.k(layer, stage), whole.k(layer, stage))
    torch.testing.assert_close(finished.loss, whole.loss)


def test_without_its_manifest_a_capture_is_not_begun_anew(captures, tmp_path):
    """All of it is ours, and hours of work."""
    cap = Path(shutil.copytree(captures / "whole", tmp_path / "cap"))
    (cap / "manifest.json").unlink()
    before = contents(cap)
    with pytest.raises(CaptureError, match=r"is no capture and not empty \(it holds layer_000\.safetensors"):
        crashing.capture(small_model(), random_tokens(9)[0], cap)
    assert contents(cap) == before
