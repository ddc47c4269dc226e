"""The headers and notes of files gone wrong: a named error, or what the whole file gave. Nothing is waited for.

Only what a file says of its data is changed, never the data: what is then read without an error must be what it was.
"""

import hashlib
import json
import shutil
import time

import crashing
import gguf
import mutating
import pytest
import torch
from safetensors.torch import save_file
from tiny import Shape, tiny_model
from tiny_gguf import write_gguf
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hooks import HookedTransformer
from hooks.errors import RopescopeError
from interp import open_capture, resume

pytestmark = pytest.mark.filterwarnings("ignore")
OTHER = "was read as something else"
AT_MOST = 10  # seconds
INDEX = "model.safetensors.index.json"


def state(source):
    """Everything that a loaded model computes with."""
    model = HookedTransformer.from_pretrained(source)
    values = {
        name: tensor.clone() for name, tensor in model.state_dict().items()
    }  # not the pages of a file that changes
    return values | {"tokenizer": torch.tensor(model.tokenizer is not None)}


def same(found, whole):
    return found.keys() == whole.keys() and all(torch.equal(found[name], whole[name]) for name in whole)


def outcome(read, whole):
    """What came of one file: (word, complaint or None); `read` gives what `whole` is, or raises."""
    began = time.perf_counter()
    try:
        found = read()
        word, complaint = "read as before", None if same(found, whole) else OTHER
    except RopescopeError as error:
        word, complaint = (
            "named errors",
            None if len(str(error)) < 3000 else f"an error of {len(str(error))} characters",
        )
    except Exception as error:
        word, complaint = "faults", f"{type(error).__name__}: {error}"[:300]
    took = time.perf_counter() - began
    return word, complaint or (f"took {took:.0f} s" if took > AT_MOST else None)


def hunt(number, one, tally):
    """Draw this many times; `one(i)` gives (what was done, word, complaint)."""
    wrong = []
    for i in range(number):
        done, word, complaint = one(i)
        tally[word] = tally.get(word, 0) + 1
        if complaint:
            wrong.append(f"{i}: {complaint} after {str(done)[:300]}")
    assert not wrong, "\n".join(wrong)


def split(data):
    """A safetensors file as its JSON header and what comes after it."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def joined(header, rest):
    text = mutating.as_json(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


@pytest.fixture
def directory(tmp_path):
    """A model in two shards with their index and a tokenizer."""
    tiny_model("llama", Shape(layers=1, head_dim=8, d_model=12, d_mlp=10, vocab=19)).save_pretrained(tmp_path / "model")
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def sharded(directory):
    """The same weights in two files; gives the index."""
    header, rest = split((directory / "model.safetensors").read_bytes())
    header.pop("__metadata__", None)
    tensors = {name: _tensor(about, rest) for name, about in header.items()}
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    for number, held in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in held}, directory / f"model-{number}.safetensors")
    index = {"weight_map": {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}, "metadata": {"x": 1}}
    (directory / INDEX).write_text(json.dumps(index))
    return index


def _tensor(about, rest):
    start, stop = about["data_offsets"]
    return torch.frombuffer(bytearray(rest[start:stop]), dtype=torch.float32).reshape(about["shape"])


@pytest.mark.parametrize("part", range(4))
def test_safetensors_headers(part, directory, rng, draws, tally):
    path, whole = directory / "model.safetensors", state(directory)
    data = path.read_bytes()
    header, rest = split(data)

    def one(i):
        tree = mutating.changed(rng, header, rng.choice((1, 1, 2)))
        done = tree if i % 2 else "flips"
        path.write_bytes(joined(tree, rest) if i % 2 else mutating.flipped(rng, data[: -len(rest)]) + rest)
        return done, *outcome(lambda: state(directory), whole)

    hunt(draws(10, 250), one, tally)


@pytest.mark.parametrize("name", [INDEX, "tokenizer.json", "tokenizer_config.json", "prepared.json"])
def test_json_beside_the_weights(name, directory, rng, draws, tally):
    if name == INDEX:
        sharded(directory)
    whole = state(directory)
    path = directory / name
    data = path.read_bytes() if path.exists() else b'{"model": "x", "provenance": {"a": "b"}, "files": {"a": 1}}'
    deep = (b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b'"\\ud800"')

    def one(i):
        tree = mutating.changed(rng, json.loads(data), rng.choice((1, 1, 2)))
        hostile = data[: rng.randrange(len(data))] + rng.choice(deep)
        said = (mutating.as_json(tree).encode(), mutating.flipped(rng, data), hostile)[i % 3]
        path.write_bytes(said)
        word, complaint = outcome(lambda: {**state(directory), "tokenizer": whole["tokenizer"]}, whole)
        return said, word, complaint

    hunt(draws(10, 250), one, tally)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3"])
def test_gguf_headers(family, tmp_path, rng, draws, tally):
    shape = Shape(layers=1, head_dim=8, d_model=32, d_mlp=10, vocab=19, bias=False, tied=family == "gemma2")
    path = write_gguf(tiny_model(family, shape), tmp_path / "m.gguf")
    whole, data = state(path), path.read_bytes()
    size = _start_of_data(path)

    def one(i):
        path.write_bytes(mutating.flipped(rng, data[:size]) + data[size:])
        return "flips", *outcome(lambda: state(path), whole)

    hunt(draws(10, 250), one, tally)


def _start_of_data(path):
    """Where the first tensor of a GGUF file lies."""
    return min(tensor.data_offset for tensor in gguf.GGUFReader(path).tensors)


# Captures


@pytest.fixture
def whole_capture(tmp_path):
    """A finished capture with statistics beside it."""
    crashing.small_capture(tmp_path / "whole").statistics(0)
    return tmp_path / "whole"


def contents(directory, *, resumed=False):
    """All that a capture tells, as tensors."""
    cap = resume(directory, crashing.small_model()) if resumed else open_capture(directory)
    found = {"tokens": cap.tokens, "positions": cap.positions, "loss": cap.loss}
    for layer in cap.layers:
        for stage in cap.stages(layer):
            found |= {f"q{layer}{stage}": cap.q(layer, stage), f"k{layer}{stage}": cap.k(layer, stage)}
        found[f"v{layer}"] = cap.v(layer)
        statistics = cap.statistics(layer, groups=("rows", "keys", "distances"))
        found |= {f"{layer}{name}": torch.from_numpy(x.values.copy()).nan_to_num() for name, x in statistics.items()}
    return {name: tensor.clone() for name, tensor in found.items()}


def signed(body):
    """A manifest's bytes with the signature of whatever it says."""
    text = (json.dumps(body, indent=1) + "\n").encode()
    return (json.dumps({**body, "sha256": hashlib.sha256(text).hexdigest()}, indent=1) + "\n").encode()


def test_manifests(whole_capture, rng, draws, tally):
    """Flipped ones are noticed; signed ones that say what no capture can be are refused, all others can be asked."""
    path, whole = whole_capture / "manifest.json", contents(whole_capture)
    data = path.read_bytes()
    body = {name: value for name, value in json.loads(data).items() if name != "sha256"}

    def one(i):
        if i % 2:
            path.write_bytes(mutating.flipped(rng, data))
            return "flips", *outcome(lambda: contents(whole_capture), whole)
        tree = mutating.changed(rng, body, rng.choice((1, 1, 2)))
        path.write_bytes(signed(tree))
        word, complaint = outcome(lambda: contents(whole_capture), whole)
        said = {name: value for name, value in tree.items() if value != body.get(name)}
        return said, word, None if complaint == OTHER else complaint  # it was signed: other numbers may be meant

    hunt(draws(16, 600), one, tally)


@pytest.mark.parametrize(
    "name", ["tokens.safetensors", "constants.safetensors", "layer_000.safetensors", "tokens.json"]
)
def test_files_of_a_capture(name, whole_capture, rng, draws, tally):
    path, whole = whole_capture / name, contents(whole_capture)
    data = path.read_bytes()

    def one(i):
        path.write_bytes(mutating.flipped(rng, data))
        return "flips", *outcome(lambda: contents(whole_capture), whole)

    hunt(draws(4, 100), one, tally)


def test_notes_of_statistics(whole_capture, rng, draws, tally):
    """Statistics that were kept are used if they are whole, and else computed again."""
    path = next((whole_capture / "statistics").glob("*.safetensors"))
    whole, data = contents(whole_capture), path.read_bytes()
    header, rest = split(data)
    note = json.loads(header["__metadata__"]["note"])
    note.pop("signature")

    def one(i):
        if i % 2:
            path.write_bytes(mutating.flipped(rng, data))
        else:
            tree = mutating.changed(rng, note)
            text = json.dumps({**tree, "signature": hashlib.sha256(json.dumps(tree).encode()).hexdigest()})
            path.write_bytes(joined({**header, "__metadata__": {**header["__metadata__"], "note": text}}, rest))
        return "flips", *outcome(lambda: contents(whole_capture), whole)

    hunt(draws(10, 400), one, tally)


def test_notes_of_where_to_go_on(tmp_path, rng, draws, tally):
    """A capture that was cut short goes on to the same bytes, or not at all."""
    assert crashing.killed_at(tmp_path / "cut", 22) == -9
    (name,) = [each.name for each in (tmp_path / "cut").glob("resume_*")][-1:]
    data = (tmp_path / "cut" / name).read_bytes()
    copy = tmp_path / "copy"
    whole = contents(shutil.copytree(tmp_path / "cut", copy), resumed=True)

    def one(i):
        shutil.rmtree(copy)
        shutil.copytree(tmp_path / "cut", copy)
        (copy / name).write_bytes(mutating.flipped(rng, data))
        return "flips", *outcome(lambda: contents(copy, resumed=True), whole)

    hunt(draws(6, 200), one, tally)
