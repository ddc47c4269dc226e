"""Streamed weights: the same bits as held ones, each byte read once a pass, a named error when a file goes wrong."""

import copy
import hashlib
import json
import os
import pickle
import threading
from collections import Counter

import pytest
import torch
from tiny import Shape, tiny_model, tokens
from tiny_gguf import write_gguf

from hooks import ConfigError, HookedTransformer, WeightError
from hooks.config.rope import RopeConfig
from hooks.errors import CaptureWarning, StreamingWarning
from hooks.loading import stream as streaming
from hooks.recipes import remove_sink
from interp import capture, open_capture, resume
from interp.storage.manifest import read_manifest

load = HookedTransformer.from_pretrained
pytestmark = pytest.mark.filterwarnings("ignore::hooks.errors.NarrowRotaryWarning")


def saved(path, family="llama", layers=4, tied=False, **more):
    """A tiny checkpoint in many shards."""
    theirs = tiny_model(family, Shape(layers=layers, tied=tied), **more)
    theirs.save_pretrained(path, max_shard_size="20KB")
    return theirs


def in_memory(model):
    """Our parameters that have values now."""
    return {".".join(name.split(".")[:2]) for name, p in model.named_parameters() if not p.is_meta}


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3", "gpt_neox", "olmo2", "gptj"])
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_same_bits_and_each_byte_once(tmp_path, family, tied):
    theirs = saved(tmp_path, family, tied=tied)
    held, streamed = load(tmp_path, stream=False), load(tmp_path, stream=True)
    ids = tokens(23)
    out = streamed(ids)
    assert torch.equal(out, held(ids))
    torch.testing.assert_close(out, theirs(ids).logits, rtol=1e-4, atol=1e-4)
    assert set(streamed.stream.reads.values()) == {1}
    names = {n for n, p in held.named_parameters(remove_duplicate=False) if not n.startswith("rotary.")}
    assert set(streamed.stream.reads) == names - ({"unembed.weight"} if streamed.cfg.tie_word_embeddings else set())
    assert torch.equal(streamed.loss_per_token(ids), held.loss_per_token(ids))


@torch.no_grad()
def test_memory_is_two_blocks(tmp_path):
    saved(tmp_path, layers=7)
    model, seen = load(tmp_path, stream=True), []
    model.run_with_hooks(
        tokens(9), fwd_hooks=[("blocks.*.hook_resid_post", lambda x, hook: seen.append(in_memory(model)))]
    )
    for layer, there in enumerate(seen):
        assert f"blocks.{layer}" in there
        assert (
            len({name for name in there if name.startswith("blocks.")}) == 1
        )  # the next is read, and not in place yet
        assert len(model.stream._resident) <= 2


@torch.no_grad()
def test_gguf_is_dequantised_as_it_is_read(tmp_path):
    path = write_gguf(tiny_model("llama", Shape(layers=3)), tmp_path / "tiny.gguf")
    assert torch.equal(load(path, stream=True)(tokens(11)), load(path)(tokens(11)))


@torch.no_grad()
def test_hooks_caches_captures_and_other_settings(tmp_path):
    saved(tmp_path / "model", "qwen3")
    held, streamed = load(tmp_path / "model"), load(tmp_path / "model", stream=True)
    ids = tokens(31, batch=1)
    hooks = [("blocks.1.attn.hook_attn_scores", remove_sink(2))]
    assert torch.equal(streamed.run_with_hooks(ids, fwd_hooks=hooks), held.run_with_hooks(ids, fwd_hooks=hooks))
    _, one = streamed.run_with_cache(ids)
    _, other = held.run_with_cache(ids)
    assert all(torch.equal(one[name], other[name]) for name in other)
    changed = {"rope": RopeConfig(rope_theta=500.0)}
    assert torch.equal(streamed.with_config(**changed)(ids), held.with_config(**changed)(ids))
    caps = [capture(model, ids, tmp_path / f"{model is held}.capture") for model in (held, streamed)]
    for layer in range(4):
        for stage in caps[0].stages(layer):
            assert torch.equal(caps[0].q(layer, stage), caps[1].q(layer, stage))
        assert torch.equal(caps[0].constants(layer).w_o, caps[1].constants(layer).w_o)
        assert torch.equal(caps[0].constants(layer).gain_k, caps[1].constants(layer).gain_k)
    assert torch.equal(caps[0].loss, caps[1].loss)


@torch.no_grad()
def test_a_capture_in_memory_reads_everything_once(tmp_path):
    saved(tmp_path, "gemma3_text")
    model = load(tmp_path, stream=True)
    capture(model, tokens(12, batch=1))
    assert set(model.stream.reads.values()) == {1}


@pytest.mark.parametrize("options", [{}, {"loss": False, "layers": [0, 2]}])
@pytest.mark.parametrize("family", ["gemma3_text", "olmo2", "llama"])
def test_a_capture_on_disk_reads_everything_once_and_says_what_it_was(tmp_path, family, options):
    saved(tmp_path / "model", family)
    model, held = load(tmp_path / "model", stream=True), load(tmp_path / "model", stream=False)
    capture(model, tokens(12, batch=1), tmp_path / "a.capture", **options)
    assert set(model.stream.reads.values()) == {1}
    units = {}
    for name, parameter in sorted(held.named_parameters()):
        unit = ".".join(name.split(".")[:2]) if name.startswith("blocks.") else name.split(".")[0]
        content = parameter.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        told = f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode()
        units.setdefault("unembed" if unit == "ln_final" else unit, hashlib.sha256()).update(told + content)
    ran = [name for name in units if not options or name in ("embed", "blocks.0", "blocks.1", "blocks.2")]
    noted = read_manifest(tmp_path / "a.capture").extras["weights"]
    assert noted == {"optional": True, "sha256": {name: units[name].hexdigest() for name in ran}}


def test_a_capture_of_streamed_weights_that_was_stopped_notes_the_same(tmp_path, monkeypatch):
    saved(tmp_path / "model")
    ids, bytes_of = tokens(12, batch=1), lambda name: (tmp_path / name / "manifest.json").read_bytes()

    def stop(x, hook):
        raise KeyboardInterrupt

    capture(load(tmp_path / "model", stream=True), ids, tmp_path / "whole")
    model = load(tmp_path / "model", stream=True)
    with model.hooks(fwd_hooks=[("blocks.2.hook_resid_mid", stop)]), pytest.raises(KeyboardInterrupt):
        capture(model, ids, tmp_path / "cut")
    resume(tmp_path / "cut", load(tmp_path / "model", stream=True))
    assert bytes_of("cut") == bytes_of("whole")


@pytest.mark.parametrize("layers", [None, [0, 1]])
def test_a_capture_without_loss_reads_no_weight_behind_its_last_block(tmp_path, layers):
    saved(tmp_path)
    model = load(tmp_path, stream=True)
    capture(model, tokens(12, batch=1), loss=False, layers=layers)
    model.stream._reader.submit(int).result()  # what was to be read ahead has been
    last = 4 if layers is None else 2
    assert {streaming.unit_of(name) for name in model.stream.reads} == {"embed", *(f"blocks.{n}" for n in range(last))}
    assert set(model.stream.reads.values()) == {1}
    capture(model, tokens(12, batch=1))
    assert model.stream.reads["unembed.weight"] == 1


@torch.no_grad()
def test_a_tied_embedding_goes_where_no_head_asks_for_it_again(tmp_path):
    saved(tmp_path, tied=True)
    model, seen, ids = load(tmp_path, stream=True), {False: [], True: []}, tokens(12, batch=1)
    held = load(tmp_path, stream=False)
    for loss in (False, True):

        def look(x, hook, found=seen[loss]):
            found.append("embed.weight" in in_memory(model))

        with model.hooks(fwd_hooks=[("blocks.*.hook_resid_post", look)]):
            cap = capture(model, ids, loss=loss)
        assert torch.equal(cap.q(3), capture(held, ids).q(3))
    assert seen == {False: [False] * 4, True: [True] * 4}
    assert model.stream.reads["embed.weight"] == 2
    assert torch.equal(model(ids), held(ids))


def test_weights_are_there_inside_resident_alone(tmp_path):
    saved(tmp_path)
    held, model = load(tmp_path), load(tmp_path, stream=True)
    with pytest.raises(WeightError, match=r"with model\.resident"):
        _ = model.blocks[2].attn.W_Q
    for look in (lambda: model.W_K, lambda: model.W_E, lambda: model.W_U, lambda: model.blocks[0].mlp.W_in):
        with pytest.raises(WeightError, match="streamed"):
            look()
    with model.resident(2):
        assert torch.equal(model.blocks[2].attn.W_Q, held.blocks[2].attn.W_Q)
        assert torch.equal(model.blocks[2].mlp.W_out, held.blocks[2].mlp.W_out)
    with model.resident(1, ("attn.o_proj",)):
        assert torch.equal(model.blocks[1].attn.W_O, held.blocks[1].attn.W_O)
        with pytest.raises(WeightError):
            _ = model.blocks[1].attn.W_Q
    with held.resident(0):
        assert held.blocks[0].attn.W_Q.shape[0] == held.cfg.n_heads


def test_what_a_stream_cannot_do_is_refused(tmp_path):
    theirs = saved(tmp_path)
    model = load(tmp_path, stream=True)
    for refused in (
        model.half,
        lambda: model.to(torch.float64),
        lambda: copy.deepcopy(model),
        lambda: pickle.dumps(model),
    ):
        with pytest.raises(ConfigError, match="streamed"):
            refused()
    assert model.to("cpu") is model
    with pytest.raises(WeightError, match="state_dict"):
        model.state_dict()
    with pytest.raises(ConfigError, match="in memory"):
        load(theirs, stream=True)
    with pytest.raises(ConfigError, match="stream="):
        load(tmp_path, stream="yes")
    assert not any(p.requires_grad for name, p in model.named_parameters())


@torch.no_grad()
def test_a_model_that_does_not_fit_streams_and_says_so(tmp_path, monkeypatch):
    saved(tmp_path)
    whole = sum(p.numel() * 4 for p in load(tmp_path).parameters())
    monkeypatch.setattr(streaming, "free_bytes", lambda device: whole - 1)
    with pytest.warns(StreamingWarning, match="block by block"):
        model = load(tmp_path)
    assert model.stream is not None
    assert load(tmp_path, stream=False).stream is None
    monkeypatch.setattr(streaming, "free_bytes", lambda device: whole)
    assert load(tmp_path).stream is None


def shard_of(path, layer):
    """The file that holds a block's first projection."""
    index = json.loads((path / "model.safetensors.index.json").read_text())
    return path / index["weight_map"][f"model.layers.{layer}.self_attn.q_proj.weight"]


@pytest.mark.parametrize("what", ["removed", "cut short", "changed"])
def test_a_file_that_goes_wrong_is_named_and_what_was_captured_stays(tmp_path, what):
    saved(tmp_path / "model")
    model, path = load(tmp_path / "model", stream=True), tmp_path / "a.capture"
    ids, file = tokens(15, batch=1), shard_of(tmp_path / "model", 3)
    before, times = file.read_bytes(), os.stat(file)

    def spoil(x, hook):
        if what == "removed":
            file.unlink(missing_ok=True)
        else:
            file.write_bytes(before[:-64] if what == "cut short" else before[:-4] + b"\0\0\0\0")

    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", spoil)]), pytest.raises(WeightError, match=file.name):
        capture(model, ids, path)
    with pytest.warns(CaptureWarning, match="unfinished"):
        left = open_capture(path)
    assert not left.is_complete
    assert left.layers
    file.write_bytes(before)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    resume(path, load(tmp_path / "model", stream=True))
    whole = capture(load(tmp_path / "model"), ids)
    assert all(torch.equal(open_capture(path).q(n), whole.q(n)) for n in range(4))


@pytest.mark.parametrize("stream", [True, False])
def test_an_interrupted_capture_goes_on_from_its_directory_as_it_began(tmp_path, stream):
    saved(tmp_path / "model")
    model, path, ids = load(tmp_path / "model", stream=stream), tmp_path / "a.capture", tokens(15, batch=1)

    def stop(x, hook):
        raise KeyboardInterrupt

    with model.hooks(fwd_hooks=[("blocks.2.hook_resid_pre", stop)]), pytest.raises(KeyboardInterrupt):
        capture(model, ids, path)
    found, whole = resume(path), capture(load(tmp_path / "model"), ids)
    assert found.is_complete
    assert torch.equal(found.loss, whole.loss)
    assert all(torch.equal(found.q(n), whole.q(n)) for n in range(4))


def test_values_are_looked_at_when_their_block_is_read(tmp_path):
    from safetensors.torch import load_file, save_file

    saved(tmp_path)
    file = shard_of(tmp_path, 2)
    tensors = load_file(file)
    tensors["model.layers.2.self_attn.q_proj.weight"][3, 4] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    model = load(tmp_path, stream=True)
    with pytest.raises(WeightError, match=r"layers\.2\.self_attn\.q_proj.*NaN"):
        model(tokens(5))
    with pytest.raises(WeightError, match="NaN"):  # and again: nothing half-read is taken for good
        model(tokens(5))


@torch.no_grad()
def test_names_and_shapes_are_checked_before_anything_is_read(tmp_path):
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    with pytest.raises(WeightError, match="4"):
        load(tmp_path, stream=True)


@torch.no_grad()
def test_threads_share_a_stream(tmp_path):
    saved(tmp_path)
    model, ids = load(tmp_path, stream=True), tokens(17)
    expected, found = load(tmp_path)(ids), Counter()

    def run():
        for _ in range(5):
            found[bool(torch.equal(model(ids), expected))] += 1

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {True: 15}


def test_gradients_of_activations_pass_through(tmp_path):
    saved(tmp_path)
    held, streamed = load(tmp_path), load(tmp_path, stream=True)
    grads = []
    for model in (held, streamed):
        kept = []

        def keep(x, hook, kept=kept):
            kept.append(x.detach().requires_grad_())
            return kept[-1]

        model.run_with_hooks(tokens(8), "loss", fwd_hooks=[("blocks.1.hook_resid_pre", keep)]).backward()
        grads.append(kept[0].grad)
    assert torch.equal(*grads)
