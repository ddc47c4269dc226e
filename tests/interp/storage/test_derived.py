"""What a capture does not store it derives: to the bit where it was so when it was recorded, said or refused if not."""

import hashlib
import json
import threading
import warnings

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tiny_hooked import random_tokens, tiny_model

from hooks import HookedTransformer, QKNormConfig, RopeConfig
from hooks.errors import CaptureDamagedError, DerivationWarning, OutputError
from interp import capture, open_capture, resume
from interp.storage import background, scratch, writing
from interp.storage.manifest import read_manifest
from interp.storage.reading import CaptureFiles
from interp.tensors import derivation
from interp.tensors.derivation import Derivation

N = 53
pytestmark = pytest.mark.filterwarnings(
    "ignore::hooks.errors.NarrowRotaryWarning", "ignore::hooks.errors.CaptureWarning"
)
LATER = ("q.pre_rope", "q.final", "k.pre_rope", "k.final")


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def cap(model, tmp_path):
    return capture(model, random_tokens(N)[0], tmp_path / "cap")


def derived(cap):
    """Names of the stages that are derived, by layer."""
    return {layer: cap._layers[layer].derived for layer in cap.layers}


def assert_as_in_memory(cap, kept):
    """The model's own tensors, to the bit."""
    for layer in kept.layers:
        for stage in kept.stages(layer):
            assert torch.equal(cap.q(layer, stage), kept.q(layer, stage)), (layer, stage)
            assert torch.equal(cap.k(layer, stage), kept.k(layer, stage)), (layer, stage)
        assert torch.equal(cap.v(layer), kept.v(layer))


@pytest.mark.parametrize("family", ["gemma3_text", "llama", "qwen3", "olmo2", "cohere", "phi3", "gptj", "olmo3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_later_stages_of_every_family_are_derived(tmp_path, family, dtype):
    loaded = HookedTransformer.from_pretrained(tiny.tiny_model(family)).to(dtype)
    ids = tiny.tokens(N, batch=1)[0]
    cap, kept = capture(loaded, ids, tmp_path / "cap"), capture(loaded, ids)
    for layer, names in derived(cap).items():
        stages = kept.stages(layer)
        assert names == tuple(f"{x}.{stage}" for x in "qk" for stage in stages[1:])
        assert (cap.n_bytes == cap.stored_bytes) is (len(stages) == 1)
    assert_as_in_memory(cap, kept)
    assert (cap.n_bytes, cap._layers[0].infos()) == (kept.n_bytes, kept._layers[0].infos())


@pytest.mark.parametrize(
    "changes",
    [
        {"clip_qkv": 0.7},
        {"clip_qkv": 0.4, "clip_position": "rope"},
        {"qk_norm": QKNormConfig(kind="layer", bias=True, scope="per_head", position="after_rope")},
        {"qk_norm": QKNormConfig(kind="l2", affine=False)},
        {"qk_norm": QKNormConfig(scope="full", scale_before_cast=True)},
        {"rope": RopeConfig(rope_type="dynamic", rope_theta=500.0, factor=4.0, max_position_embeddings=16)},
        {"rope": RopeConfig(rope_theta=500.0, rotary_dim=6, interleaved=True)},
        {"rope": RopeConfig(rope_theta=500.0, learnable=True)},
        {"rope_in_float32": True, "round_cos_sin": True, "dtype": torch.bfloat16},
    ],
)
def test_every_kind_of_step_is_derived(tmp_path, changes):
    loaded, ids = tiny_model(**changes), random_tokens(N)[0]
    stages = ("pre_clip", "pre_norm", "pre_rope") if "clip_qkv" in changes else ("pre_norm", "pre_rope")
    cap = capture(loaded, ids, tmp_path / "cap", stages=stages)
    assert all(len(names) == 2 * (len(cap.stages(layer)) - 1) for layer, names in derived(cap).items())
    assert_as_in_memory(cap, capture(loaded, ids, stages=stages))


def test_only_what_was_asked_for_is_kept(tmp_path, model):
    ids = random_tokens(N)[0]
    assert derived(capture(model, ids, tmp_path / "a", stages=())) == {0: (), 1: ()}
    from_rotation = capture(model, ids, tmp_path / "b", stages="pre_rope", layers=1)
    assert derived(from_rotation) == {1: ("q.final", "k.final")}
    assert_as_in_memory(from_rotation, capture(model, ids, stages="pre_rope", layers=1))


def test_packed_documents_rotate_from_their_own_beginning(tmp_path, model):
    ids, positions = random_tokens(N)[0], torch.cat([torch.arange(30), torch.arange(N - 30)])
    cap = capture(model, ids, tmp_path / "cap", positions=positions)
    assert derived(cap) == {0: LATER, 1: LATER}
    assert_as_in_memory(cap, capture(model, ids, positions=positions))


@pytest.mark.parametrize(
    ("point", "edit", "stored"),
    [
        ("blocks.1.attn.hook_q_normed", lambda x, hook: x * 1.5, ("q.pre_rope",)),
        ("blocks.1.attn.hook_rot_k", lambda x, hook: x + 1e-3, ("k.final",)),
        ("blocks.1.attn.k_norm.hook_scale", lambda x, hook: x * 2, ("k.pre_rope",)),
        (
            "blocks.1.attn.hook_q_normed",
            lambda x, hook: x[:, :, :, :].clone().index_fill_(1, torch.tensor(7), 0),
            ("q.pre_rope",),
        ),
    ],
)
def test_what_a_hook_edited_is_stored(tmp_path, model, point, edit, stored):
    ids = random_tokens(N)[0]
    with model.hooks(fwd_hooks=[(point, edit)]):
        cap, kept = capture(model, ids, tmp_path / "cap"), capture(model, ids)
    assert derived(cap) == {0: LATER, 1: tuple(name for name in LATER if name not in stored)}
    assert_as_in_memory(open_capture(cap.path), kept)


def test_an_edited_rotation_is_stored(tmp_path, model):
    ids = random_tokens(N)[0]
    with model.hooks(fwd_hooks=[("rotary.*.hook_cos", lambda x, hook: x * 1.25)]):
        cap, kept = capture(model, ids, tmp_path / "cap"), capture(model, ids)
    assert derived(cap) == dict.fromkeys((0, 1), ("q.pre_rope", "k.pre_rope"))
    assert_as_in_memory(cap, kept)


@pytest.mark.parametrize("choice", [3, -1, slice(2, 40, 3), slice(40, 2), [5, 1, 1], slice(None)])
@pytest.mark.parametrize("kept", [False, True])
def test_rows_of_a_derived_stage(cap, monkeypatch, choice, kept):
    whole, taken = capture(tiny_model(), random_tokens(N)[0]), []
    monkeypatch.setattr(scratch, "_FEWEST_BYTES", 0 if kept else 2**20)
    opened = open_capture(cap.path)
    opened._layers[0]._files.scratch = scratch.Scratch(fewest_bytes=scratch._FEWEST_BYTES)
    opened.q(0)
    rows = Derivation.rows
    monkeypatch.setattr(Derivation, "rows", lambda self, *a: taken.append(len(a[1])) or rows(self, *a))
    for heads in (None, 2, [3, 0]):
        part = opened.q(0, positions=choice, heads=heads)
        assert torch.equal(part, whole.q(0, positions=choice, heads=heads))
    assert sum(taken) == (0 if kept else 3 * len(part))


def test_changing_a_tensor_changes_no_other(cap, monkeypatch):
    opened = open_capture(cap.path)
    opened._layers[0]._files.scratch = scratch.Scratch(fewest_bytes=0)
    expected = opened.q(1).clone()
    opened.q(1).zero_()
    opened.q(1).numpy()[:] = 7
    assert torch.equal(opened.q(1), expected)
    assert opened._layers[0]._files.scratch.find((1, "q.final")) is not None


def test_what_is_kept_of_derived_stages_has_a_bound(cap):
    info = cap._layers[0].infos()["q.final"]
    held = scratch.Scratch(most_bytes=2 * info.n_bytes, fewest_bytes=0)
    for key in "abc":
        held.make(key, info, lambda out: out.fill_(1))
    assert held.find("a") is None and held.find("b") is not None and held.find("c") is not None
    small = scratch.Scratch(most_bytes=info.n_bytes - 1, fewest_bytes=0)
    assert float(small.make("a", info, lambda out: out.fill_(2)).min()) == 2 and small.find("a") is None


def other_last_bits(monkeypatch):
    """A processor whose cosine is the next number."""
    real = derivation.cos_and_sin

    def next_number(*arguments, **options):
        cos, sin = real(*arguments, **options)
        return torch.nextafter(cos, cos.new_tensor(2.0)), sin

    monkeypatch.setattr(derivation, "cos_and_sin", next_number)


def test_other_last_bits_are_said_once(cap, monkeypatch):
    expected = {layer: (cap.q(layer).clone(), cap.q(layer, "pre_rope").clone()) for layer in cap.layers}
    other_last_bits(monkeypatch)
    opened = open_capture(cap.path)
    with pytest.warns(DerivationWarning, match=r"recorded with torch .* and has other last bits here") as said:
        found = {layer: (opened.q(layer), opened.q(layer, "pre_rope")) for layer in opened.layers}
    assert len([w for w in said if w.category is DerivationWarning]) == 1
    for layer, (final, before) in found.items():
        assert not torch.equal(final, expected[layer][0])
        torch.testing.assert_close(final, expected[layer][0], rtol=1e-6, atol=1e-6)
        assert torch.equal(before, expected[layer][1])


def rewritten(directory, change, constants=None):
    """The capture with changed constants and a changed manifest, whose hashes are right."""
    path = directory / "manifest.json"
    body = json.loads(path.read_bytes())
    body.pop("sha256")
    change(body)
    if constants is not None:
        file = directory / "constants.safetensors"
        tensors = load_file(file)
        constants(tensors)
        save_file(tensors, file)
        content = file.read_bytes()
        body["files"][file.name] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    body["sha256"] = hashlib.sha256((json.dumps(body, indent=1) + "\n").encode()).hexdigest()
    path.write_text(json.dumps(body))


def larger(name, index):
    """A constant with one entry 1 % larger."""

    def change(tensors):
        tensors[name][index] *= 1.01

    return change


@pytest.mark.parametrize(
    ("change", "constants"),
    [
        (lambda body: None, larger("1.gain_q", (2, 5))),
        (lambda body: None, larger("1.inv_freq", 3)),
        (lambda body: body["config"]["qk_norm"].update(eps=0.1), None),
        (lambda body: body["layers"]["1"].update(attention_factor=1.1), None),
        (lambda body: body["config"]["qk_norm"].update(kind="l2"), None),
    ],
)
def test_a_constant_that_was_changed_is_found(cap, change, constants):
    rewritten(cap.path, change, constants)
    opened = open_capture(cap.path)
    for _ in range(2):
        with pytest.raises(CaptureDamagedError, match=r"q\.final of layer 1 .*a constant or a setting was changed"):
            opened.q(1)
        with pytest.raises(CaptureDamagedError):
            opened.q(1, positions=4)
    assert [line for line in CaptureFiles(cap.path, read_manifest(cap.path)).damaged() if "layer 1" in line]


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body["layers"]["0"]["derived"].update({"q.pre_norm": "0" * 64}),
        lambda body: body["layers"]["0"]["derived"].update({"v": "0" * 64}),
        lambda body: body["layers"]["0"]["derived"].pop("q.final"),
        lambda body: body["layers"]["0"].update(derived=["q.final"]),
        lambda body: body["layers"]["0"]["derived"].update({"q.final": 3}),
    ],
)
def test_what_no_layer_derives(cap, change):
    rewritten(cap.path, change)
    with pytest.raises(CaptureDamagedError):
        open_capture(cap.path)


def test_a_layer_that_lacks_what_it_derives_from_is_named(cap):
    rewritten(cap.path, lambda body: body["config"].update(qk_norm=None))
    with pytest.raises(CaptureDamagedError, match=r"q\.pre_rope of layer 0 .*lacks what it follows from"):
        open_capture(cap.path).q(0, "pre_rope")


def test_what_is_stored_and_derived_is_shown(cap):
    row = 4 * 16 * N
    assert cap.stored_bytes == 2 * row * (4 + 2 + 2)
    assert cap.n_bytes == 2 * row * (3 * (4 + 2) + 2)
    table = cap.holdings()
    assert table["stored"].sum() == cap.stored_bytes
    assert table["derived"].tolist() == [", ".join(LATER)] * 2
    assert f"{cap.stored_bytes / 1e6:,.1f} MB stored" in repr(cap)
    on_disk = sum(path.stat().st_size for path in cap.path.glob("layer_*"))
    assert cap.stored_bytes < on_disk < cap.stored_bytes + 20_000


def test_the_bytes_of_gemma_at_32768_tokens(tmp_path):
    """Its shape with fewer layers and tokens: 1 of 3 stages of q and k, and v, come to less than 4 GB."""
    shape = {"n_heads": 4, "n_key_value_heads": 1, "d_head": 256, "d_model": 16, "d_mlp": 16}
    cap = capture(tiny_model(n_layers=1, **shape), random_tokens(64)[0], tmp_path / "cap")
    assert derived(cap) == {0: LATER}
    file = (tmp_path / "cap" / "layer_000.safetensors").stat().st_size
    last_rows = 2 * (4 + 1) * 256 * 4
    per_token = (file - last_rows - 2_048) / 64
    assert per_token <= 4 * 256 * (4 + 1 + 1)
    assert 18 * 32_768 * 4 * 256 * (4 + 1 + 1) < 3.7e9


def test_the_next_block_runs_while_one_is_written(tmp_path, model, monkeypatch):
    """The write of block 0 ends only once block 1 has begun, and that of block 1 waits for no other block."""
    begun, write = threading.Event(), writing.CaptureWriter._put

    def waits(self, layer, *rest):
        assert layer > 0 or begun.wait(20)
        write(self, layer, *rest)

    monkeypatch.setattr(writing.CaptureWriter, "_put", waits)
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", lambda x, hook: begun.set())]):
        cap = capture(model, random_tokens(N)[0], tmp_path / "cap")
    assert_as_in_memory(cap, capture(tiny_model(), random_tokens(N)[0]))


def test_no_more_than_one_block_waits_to_be_written():
    running, most = [], []

    def work(n):
        running.append(n)
        most.append(len(running))
        running.remove(n)

    with background.Background() as writer:
        for n in range(20):
            writer.run(work, n)
            assert len(running) <= 1
    assert most == [1] * 20


def test_what_goes_wrong_in_writing_surfaces_and_nothing_is_written_after_it(tmp_path, monkeypatch):
    model, ids, seen = tiny_model(n_layers=4), random_tokens(N)[0], []
    write = writing.CaptureWriter._put

    def full(self, layer, *rest):
        seen.append(layer)
        if layer == 1:
            raise OSError(28, "No space left on device")
        write(self, layer, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(writing.CaptureWriter, "_put", full)
        with pytest.raises(OutputError, match="the disk is full"):
            capture(model, ids, tmp_path / "cap")
    assert seen == [0, 1]
    assert read_manifest(tmp_path / "cap").blocks_run == 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ropescope-writing")]
    assert_as_in_memory(resume(tmp_path / "cap", model), capture(model, ids))


def test_a_hook_that_edits_in_place_does_not_reach_into_what_is_written(tmp_path):
    model, ids = tiny_model(n_layers=3), random_tokens(N)[0]

    def double(x, hook):
        x.mul_(2)

    def stop(x, hook):
        raise KeyboardInterrupt

    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", double)]):
        whole = capture(model, ids, tmp_path / "whole")
        with (
            model.hooks(fwd_hooks=[("blocks.1.hook_resid_mid", stop)]),
            pytest.raises(KeyboardInterrupt),
        ):
            capture(model, ids, tmp_path / "cap")
        assert read_manifest(tmp_path / "cap").blocks_run == 1
        gone_on = capture(model, ids, tmp_path / "cap")
    assert_as_in_memory(gone_on, whole)
    for name in ("layer_001.safetensors", "layer_002.safetensors", "loss.safetensors", "manifest.json"):
        assert (tmp_path / "cap" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_unfinished_capture_derives_and_measures_too(tmp_path, model, monkeypatch):
    monkeypatch.setattr(type(model), "residual_loss", None)
    ids = random_tokens(N)[0]
    with pytest.raises(TypeError):
        capture(model, ids, tmp_path / "cap")
    assert not (tmp_path / "cap" / "constants.safetensors").exists()
    left = open_capture(tmp_path / "cap")
    assert derived(left) == {0: LATER, 1: LATER}
    kept = capture(model, ids, loss=False)
    assert_as_in_memory(left, kept)
    assert torch.equal(left.constants(1).w_o, kept.constants(1).w_o)
    late = open_capture(tmp_path / "cap")  # and has not looked at the constants when another process ends it
    monkeypatch.undo()
    resume(tmp_path / "cap", model)
    assert torch.equal(late.constants(0).w_o, kept.constants(0).w_o)
    assert torch.equal(late.q(0), kept.q(0))


def test_nothing_is_said_where_the_bits_are_the_same(cap):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = open_capture(cap.path)
        for layer in opened.layers:
            opened.k(layer)
    assert CaptureFiles(cap.path, read_manifest(cap.path)).damaged() == []
