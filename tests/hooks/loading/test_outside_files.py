"""Files from outside that are no model: each gives a named error at once, and none is waited for."""

import contextlib
import json
import os
import time

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import Shape, tiny_config, tiny_model, tokens
from tiny_gguf import write_gguf

from hooks import ConfigError, HookedTransformer, HookedTransformerConfig, WeightError
from hooks.errors import RopescopeError, TokenizerWarning, UnknownModelError
from hooks.families.table import FAMILIES, config_from_hf
from hooks.loading.gguf_header import read_header
from hooks.loading.weights import check_sizes

load = HookedTransformer.from_pretrained
pytestmark = pytest.mark.filterwarnings("ignore::hooks.errors.NarrowRotaryWarning")
INDEX = "model.safetensors.index.json"


@pytest.fixture
def directory(tmp_path):
    tiny_model("llama", Shape(tied=True)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def at_once():
    began = time.perf_counter()
    yield
    assert time.perf_counter() - began < 3  # it takes milliseconds; a machine may be busy


def occupy(path, how):
    """Put something that is no regular file at a path."""
    path.unlink(missing_ok=True)
    if how == "pipe":
        os.mkfifo(path)
    elif how == "device":
        path.symlink_to("/dev/zero")
    elif how == "directory":
        path.mkdir()
    else:
        path.symlink_to("nowhere")


@pytest.mark.parametrize("how", ["pipe", "device", "directory"])
@pytest.mark.parametrize("name", ["config.json", INDEX, "model.safetensors"])
def test_only_regular_files_are_read(directory, how, name, at_once):
    occupy(directory / name, how)
    with pytest.raises(RopescopeError, match=rf"{name}.*not a regular file"):
        load(directory)


@pytest.mark.parametrize("how", ["pipe", "device", "directory"])
def test_a_gguf_file_is_a_regular_file(tmp_path, how, at_once):
    occupy(tmp_path / "m.gguf", how)
    with pytest.raises(RopescopeError, match=r"regular file|no model"):
        load(tmp_path / "m.gguf")


@pytest.mark.parametrize("how", ["pipe", "device"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json"])
def test_a_tokenizer_that_is_no_file_does_not_hold_up_its_model(directory, how, name, at_once):
    occupy(directory / name, how)
    with pytest.warns(TokenizerWarning, match=rf"{name}.*not a regular file"):
        assert load(directory).tokenizer is None


def test_a_shard_whose_link_leads_nowhere(directory):
    occupy(directory / "model.safetensors", "dangling")
    with pytest.raises(WeightError, match=r"no \*\.safetensors|not there"):
        load(directory)


@pytest.mark.parametrize("name", ["config.json", INDEX])
@pytest.mark.parametrize(
    "text",
    [
        *("[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000, '{"a":' * 60 + "1" + "}" * 60),
        *('{"a": "\\ud800"}', '{"\\ud800": 1}', "7", "null", '"x"', "", "{", "\xff", '{"a": ' + "9" * 5000 + "}"),
    ],
)
def test_json_of_other_shapes(directory, name, text):
    (directory / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=name):
        load(directory)


def test_a_json_file_too_large_to_be_one(directory, at_once):
    with (directory / "config.json").open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(ConfigError, match="bytes"):
        load(directory)


@pytest.mark.parametrize(
    "weight_map",
    [None, [], ["a"], {}, {"a": 3, "b": "x"}, {"a": [1]}, {"a": None}, {"a": "../x"}, {"a": "/etc/passwd"}, {"a": ""}],
)
def test_an_index_of_other_shapes(directory, weight_map):
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ConfigError, match="index"):
        load(directory)


@pytest.mark.parametrize("source", ["a" * 5000, "a/" + "b" * 5000, "a\0b", "", "~nobody-of-this-name/model", "x" * 300])
def test_sources_that_no_system_takes(source, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnknownModelError) as raised:
        load(source)
    assert len(str(raised.value)) < 1000 or "Hub" in str(raised.value)


# Sizes


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "head_dim", "num_key_value_heads"])
@pytest.mark.parametrize(
    "value", ["97", 97.0, True, [1], {"a": 1}, 0, -1, 10**30, 2**44, 2**62, 2**63, 10**6 + 1, "\ud800"]
)
def test_sizes_of_other_kinds_are_refused_before_anything_is_built(directory, key, value, at_once):
    config = json.loads((directory / "config.json").read_text())
    config |= {key: value}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(RopescopeError):
        load(directory)


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_hidden_layers", 9_999), ("vocab_size", 2**30), ("hidden_size", 2**20), ("intermediate_size", 2**24)],
)
def test_sizes_are_held_against_the_tensors_before_a_layer_is_built(key, value, at_once):
    theirs = tiny_model("llama")
    hf = theirs.config.to_dict() | {key: value}
    with pytest.raises(WeightError, match=r"layers|shape"):
        check_sizes(config_from_hf(hf), FAMILIES["llama"], theirs.state_dict(), "the checkpoint")


def test_no_weights_at_all(at_once):
    with pytest.raises(WeightError, match="lacks"):
        check_sizes(config_from_hf(tiny_config("llama", Shape()).to_dict()), FAMILIES["llama"], {}, "nothing")


@pytest.mark.parametrize("d_vocab", ["97", 97.0, True, 0, -2, 2**40])
def test_a_vocabulary_is_a_whole_number(d_vocab):
    with pytest.raises(ConfigError, match="d_vocab"):
        HookedTransformerConfig(d_model=8, d_head=4, n_layers=1, n_ctx=8, n_heads=2, d_vocab=d_vocab)


# Shards


def shards(directory, *, index):
    """The directory's weights in two files, the final norm in both, three times as large in the second."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    key, names = "model.norm.weight", sorted(tensors)
    files = {
        "model-1.safetensors": {n: tensors[n] for n in names[::2]} | {key: tensors[key]},
        "model-2.safetensors": {n: tensors[n] for n in names[1::2]} | {key: tensors[key] * 3},
    }
    for name, held in files.items():
        save_file(held, directory / name)
    if index:
        places = {n: "model-1.safetensors" if i % 2 == 0 else "model-2.safetensors" for i, n in enumerate(names)}
        (directory / INDEX).write_text(json.dumps({"weight_map": places | {key: index}}))
    return tensors[key]


@pytest.mark.parametrize(("file", "times"), [("model-1.safetensors", 1), ("model-2.safetensors", 3)])
def test_the_index_decides_which_of_two_tensors_counts(directory, file, times):
    expected = shards(directory, index=file)
    assert torch.equal(load(directory).ln_final.weight, expected * times)


def test_without_an_index_two_values_of_one_tensor_are_an_error(directory):
    shards(directory, index=None)
    with pytest.raises(WeightError, match=r"model\.norm\.weight is in model-1.* and in model-2"):
        load(directory)


def test_an_index_that_names_the_wrong_file(directory):
    shards(directory, index="model-1.safetensors")
    places = json.loads((directory / INDEX).read_text())["weight_map"]
    (directory / INDEX).write_text(json.dumps({"weight_map": places | {"lost.weight": "model-2.safetensors"}}))
    with pytest.raises(WeightError, match=r"lost\.weight in model-2.*does not hold it"):
        load(directory)


# GGUF


def gguf_with(path, edit, arch="qwen3"):
    """A tiny GGUF file whose writer was edited."""
    writer = gguf.GGUFWriter(path, arch)
    edit(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def flipped(whole, at, bit):
    return whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :]


def test_no_flipped_bit_of_a_gguf_header_hangs_or_raises_a_bare_error(tmp_path):
    path = write_gguf(tiny_model("llama", Shape(bias=False, layers=1)), tmp_path / "whole.gguf")
    whole = path.read_bytes()
    header = min(t.data.ctypes.data for t in read_header(path).tensors.values()) - np.memmap(path).ctypes.data
    header = header if 0 < header < len(whole) else 2500
    refused = 0
    for at in range(0, header, 5):
        for bit in (at % 8, 7 - at % 8):
            (tmp_path / "flipped.gguf").write_bytes(flipped(whole, at, bit))
            began = time.perf_counter()
            try:
                read_header(tmp_path / "flipped.gguf")
            except WeightError:
                refused += 1
            assert time.perf_counter() - began < 2, (at, bit)
    assert refused > header / 10


@pytest.mark.slow
def test_no_flipped_bit_of_a_gguf_header_loads_with_a_bare_error(tmp_path):
    whole = write_gguf(tiny_model("llama", Shape(bias=False, layers=1)), tmp_path / "whole.gguf").read_bytes()
    for at in range(0, 2500, 3):
        (tmp_path / "flipped.gguf").write_bytes(flipped(whole, at, at % 8))
        began = time.perf_counter()
        with contextlib.suppress(RopescopeError):
            load(tmp_path / "flipped.gguf")
        assert time.perf_counter() - began < 5, at


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda w: w.add_array("qwen3.block_count", [1, 2]), "lacks|block_count"),
        (lambda w: w.add_array("qwen3.attention.head_count", [2, 2]), "lacks|head_count"),
        (lambda w: w.add_tensor("token_embd.weight", np.ones((4, 4), np.float32)), r"lacks qwen3\.block_count"),
        (lambda w: None, "lacks"),
    ],
)
def test_counts_that_are_missing_or_many(tmp_path, edit, said):
    with pytest.raises(RopescopeError, match=said):
        load(gguf_with(tmp_path / "m.gguf", edit))


def test_an_architecture_that_is_an_array(tmp_path):
    path = write_gguf(tiny_model("qwen3", Shape(bias=False)), tmp_path / "m.gguf")
    whole = path.read_bytes()
    key = b"general.architecture"
    at = whole.index(key) + len(key)
    name = whole[at + 4 : at + 4 + 8 + 5]
    array = (9).to_bytes(4, "little") + (8).to_bytes(4, "little") + (1).to_bytes(8, "little") + name
    shift = (array + whole[at + 4 + len(name) :], whole[:at])
    path.write_bytes(shift[1] + shift[0])
    with pytest.raises(RopescopeError):
        load(path)


def nested(path):
    """A header with one key, an array of arrays."""
    key = b"general.x"
    body = b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
    body += len(key).to_bytes(8, "little") + key + (9).to_bytes(4, "little")
    for _ in range(50_000):
        body += (9).to_bytes(4, "little") + (1).to_bytes(8, "little")
    path.write_bytes(body)
    return path


def test_arrays_of_arrays(tmp_path):
    with pytest.raises(WeightError, match="array"):
        load(nested(tmp_path / "m.gguf"))


def tensor_info(whole, name):
    """Where the count of axes of a tensor stands, and where its offset does."""
    at = whole.index(len(name).to_bytes(8, "little") + name) + 8 + len(name)
    axes = int.from_bytes(whole[at : at + 4], "little")
    return at, at + 4 + 8 * axes + 4


@pytest.mark.parametrize("offset", [0, 32, 2**20, 2**62, 2**64 - 32, 33])
def test_a_tensor_that_lies_elsewhere(tmp_path, offset):
    """Inside another tensor, beyond the file, or between two places."""
    path = write_gguf(tiny_model("qwen3", Shape(bias=False)), tmp_path / "m.gguf")
    whole = path.read_bytes()
    _, at = tensor_info(whole, b"blk.1.attn_k.weight")
    path.write_bytes(whole[:at] + offset.to_bytes(8, "little") + whole[at + 8 :])
    with pytest.raises(WeightError, match=r"blk\.1\.attn_k\.weight"):
        load(path)


def test_a_tensor_whose_type_takes_fewer_bytes(tmp_path):
    """A flipped bit makes Q8_0 of float32: what it leaves over belongs to no tensor."""
    path = write_gguf(tiny_model("qwen3", Shape(bias=False, d_model=64)), tmp_path / "m.gguf")
    whole = path.read_bytes()
    _, at = tensor_info(whole, b"blk.1.ffn_norm.weight")
    kind = int(gguf.GGMLQuantizationType.Q8_0).to_bytes(4, "little")
    path.write_bytes(whole[: at - 4] + kind + whole[at:])
    with pytest.raises(WeightError, match=r"blk\.1\.ffn_norm\.weight.*belong to no tensor"):
        load(path)


def test_a_header_that_became_longer(tmp_path):
    """Data that lies further back than its header says would be read from the wrong place."""
    path = write_gguf(tiny_model("qwen3", Shape(bias=False)), tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes() + bytes(33))
    with pytest.raises(WeightError, match="after the last tensor"):
        load(path)


@pytest.mark.parametrize("axes", [0, 5, 2**32 - 1])
def test_a_tensor_of_no_axes_or_too_many(tmp_path, axes):
    path = write_gguf(tiny_model("qwen3", Shape(bias=False)), tmp_path / "m.gguf")
    whole = path.read_bytes()
    at, _ = tensor_info(whole, b"blk.1.attn_k.weight")
    path.write_bytes(whole[:at] + axes.to_bytes(4, "little") + whole[at + 4 :])
    with pytest.raises(WeightError, match="axes"):
        load(path)


def test_tensors_that_follow_the_header_load_as_before(tmp_path):
    """The checks let a sound file through, and read the values that gguf's own reader reads."""
    path = write_gguf(tiny_model("llama", Shape(bias=False, d_model=64, d_mlp=96)), tmp_path / "m.gguf", quantised=True)
    for theirs in gguf.GGUFReader(path).tensors:
        ours = read_header(path).tensors[theirs.name]
        assert np.array_equal(gguf.dequantize(ours.data, ours.kind), gguf.dequantize(theirs.data, theirs.tensor_type))
    assert load(path)(tokens(5)).shape == (2, 5, 97)
