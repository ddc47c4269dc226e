"""A capture on disk is the capture in memory, bit for bit; what is wrong with one has a name."""

import hashlib
import io
import json
import os
import warnings
from math import inf, nan

import pytest
import tiny
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_foreign import foreign_model, foreign_tokens
from tiny_hooked import random_tokens, tiny_model

from hooks import HookedTransformer, QKNormConfig, RopeConfig
from hooks.errors import (
    CaptureDamagedError,
    CaptureError,
    CaptureMismatchError,
    CaptureWarning,
    MaterializationError,
    OutputError,
    PositionError,
    StageError,
)
from interp import captures
from interp.analyses.scores.by_stage import stage_ranges
from interp.captures import capture, open_capture, resume
from interp.recording.plan import plan_capture
from interp.storage import manifest
from interp.storage.statistics_store import StatisticsStore
from interp.storage.tensor_files import write_tensors

N = 43
TYPES = ("sliding_attention", "full_attention")


@pytest.fixture(scope="module")
def model():
    return tiny_model(layer_types=TYPES, window_size=7)


@pytest.fixture(scope="module")
def tokens():
    return random_tokens(N)[0]


@pytest.fixture
def cap(model, tokens, tmp_path):
    return capture(model, tokens, tmp_path / "cap")


@st.composite
def models(draw):
    """Settings of a tiny model: every kind of step, layer and constant that a capture must carry."""
    kv_heads, group, d_head = draw(st.integers(1, 2)), draw(st.integers(1, 3)), 2 * draw(st.integers(2, 9))
    norm = st.builds(
        QKNormConfig,
        kind=st.sampled_from(["rms", "layer", "l2"]),
        position=st.sampled_from(["before_rope", "after_rope"]),
    )
    rope = st.sampled_from(
        [
            {"rope": None},
            {"rope": RopeConfig(rope_theta=500.0), "nope_layers": (1,)},
            {"rope": RopeConfig(rope_type="linear", rope_theta=900.0, factor=3.0)},
            {"rope": RopeConfig(rope_type="yarn", rope_theta=900.0, factor=4.0, original_max_position_embeddings=16)},
        ]
    )
    return {
        "n_heads": kv_heads * group,
        "n_key_value_heads": kv_heads,
        "d_head": d_head,
        "d_model": draw(st.integers(3, 40)),
        "qk_norm": draw(st.none() | norm),
        **draw(rope),
        "clip_qkv": draw(st.sampled_from([None, 0.7])),
        "layer_types": TYPES,
        "window_size": draw(st.integers(1, 50)),
        "learned_sinks": draw(st.booleans()),
        "alibi_slopes": draw(st.none() | st.just(tuple(0.5**h for h in range(kv_heads * group)))),
        "attn_scores_soft_cap": draw(st.sampled_from([-1.0, 4.0])),
        "dtype": draw(st.sampled_from([torch.float32, torch.bfloat16])),
        "seed": draw(st.integers(0, 99)),
    }


def assert_same(stored, kept):
    """Everything that two captures hold is equal, type and bits."""
    assert stored.layers == kept.layers
    for layer in kept.layers:
        assert (stored.stages(layer), stored.steps(layer)) == (kept.stages(layer), kept.steps(layer))
        assert stored.spec(layer) == kept.spec(layer)
        for stage in kept.stages(layer):
            assert_equal(stored.q(layer, stage), kept.q(layer, stage))
            assert_equal(stored.k(layer, stage), kept.k(layer, stage))
        assert_equal(stored.v(layer), kept.v(layer))
        for name in ("gain_q", "gain_k", "bias_q", "bias_k", "inv_freq", "w_o"):
            ours, theirs = (getattr(x.constants(layer), name) for x in (stored, kept))
            assert (ours is None) == (theirs is None)
            if theirs is not None:
                assert_equal(ours, theirs)
        assert stored.constants(layer).attention_factor == kept.constants(layer).attention_factor
    for name in ("tokens", "positions", "loss"):
        assert_equal(getattr(stored, name), getattr(kept, name))
    assert (stored.str_tokens, stored.provenance) == (kept.str_tokens, kept.provenance)
    assert (stored.cfg, stored.model_id, stored.n_bytes) == (kept.cfg, kept.model_id, kept.n_bytes)


def assert_equal(a, b):
    """Same type, shape and bits."""
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert torch.equal(a, b)


@given(models(), st.integers(2, 60))
@settings(max_examples=25)
@pytest.mark.filterwarnings("ignore::hooks.model.ContextLengthWarning")
def test_every_kind_of_model_goes_there_and_back(tmp_path_factory, changes, n):
    model, ids = tiny_model(**changes), random_tokens(n, seed=n)[0]
    directory = tmp_path_factory.mktemp("any") / "cap"
    written = capture(model, ids, directory)
    assert_same(written, capture(model, ids))
    assert_same(open_capture(directory), written)
    assert_same(capture(model, ids, directory), written)


@pytest.mark.parametrize("family", ["gemma3_text", "olmo3", "mistral"])
def test_an_attached_model_goes_there_and_back(tmp_path, family):
    attached = HookedTransformer.attach(tiny.tiny_model(family))
    ids = tiny.tokens(N, batch=1)[0]
    written = capture(attached, ids, tmp_path / "cap")
    assert_same(open_capture(tmp_path / "cap"), capture(attached, ids))
    assert_same(capture(attached, ids, tmp_path / "cap"), written)


def test_what_an_attached_model_does_is_part_of_which_it_is(tmp_path):
    """Its weights and its attention stay the same; what its experts do with them does not."""
    model, ids = foreign_model("mixtral"), foreign_tokens(N)[0]
    capture(HookedTransformer.attach(model), ids, tmp_path / "cap")
    again = foreign_model("mixtral")
    assert capture(HookedTransformer.attach(again), ids, tmp_path / "cap").is_complete
    again.config.num_experts_per_tok = 1
    with pytest.raises(CaptureMismatchError, match="other weights"):
        capture(HookedTransformer.attach(again), ids, tmp_path / "cap")
    again = foreign_model("mixtral")
    again.register_buffer("bias_of_the_router", torch.ones(3))
    with pytest.raises(CaptureMismatchError, match="other weights"):
        capture(HookedTransformer.attach(again), ids, tmp_path / "cap")


def test_a_model_without_its_head_is_told_before_it_runs(tmp_path):
    attached = HookedTransformer.attach(foreign_model("mixtral").model)
    with pytest.raises(StageError, match="loss=False"):
        capture(attached, foreign_tokens(N)[0], tmp_path / "cap")
    assert not (tmp_path / "cap").exists()
    assert capture(attached, foreign_tokens(N)[0], tmp_path / "cap", loss=False).is_complete


def test_analyses_give_the_same_bits_without_the_model(cap, model, tokens):
    kept, stored = capture(model, tokens), open_capture(cap.path)
    for found, expected in ((cap.statistics(), kept.statistics()), (stored.statistics(), kept.statistics())):
        xr.testing.assert_identical(found, expected)
        assert {n: v.dtype for n, v in found.variables.items()} == {n: v.dtype for n, v in expected.variables.items()}
    xr.testing.assert_identical(stage_ranges(stored), stage_ranges(kept))
    stored.report(cap.path.parent / "r.html")


def test_without_loss_it_is_complete_after_its_last_layer(model, tokens, tmp_path):
    written = capture(model, tokens, tmp_path / "cap", layers=0, loss=False)
    assert_same(written, capture(model, tokens, layers=0, loss=False))
    assert_same(resume(tmp_path / "cap", model), written)
    assert manifest.read_manifest(tmp_path / "cap").blocks_run == 1
    with pytest.raises(CaptureMismatchError, match="without its loss there, with it here"):
        capture(model, tokens, tmp_path / "cap", layers=0)


def test_a_capture_of_before_the_loss_could_be_left_out_has_one(cap, model, tokens):
    assert_same(open_capture(rewritten(cap, lambda body: body.pop("loss"))), capture(model, tokens))


def test_the_directory_says_nothing_of_time_and_place(cap, model, tokens, tmp_path):
    again = capture(model, tokens, tmp_path / "again")
    for name in os.listdir(cap.path):
        content = (cap.path / name).read_bytes()
        assert content == (again.path / name).read_bytes(), name
        assert str(tmp_path).encode() not in content
    assert sorted(os.listdir(cap.path)) == [
        ".lock",
        "constants.safetensors",
        "layer_000.safetensors",
        "layer_001.safetensors",
        "loss.safetensors",
        "manifest.json",
        "tokens.json",
        "tokens.safetensors",
    ]


def test_its_files_are_safetensors_that_anyone_can_read(cap):
    read = load_file(cap.path / "layer_001.safetensors")
    rows = [f"{x}.{stage}.last" for x in "kq" for stage in ("final", "pre_rope")]
    assert sorted(read) == sorted(["k.pre_norm", "q.pre_norm", "v", *rows])
    assert torch.equal(read["q.pre_norm"], cap.q(1, "pre_norm"))
    assert torch.equal(read["q.pre_rope.last"], cap.q(1, "pre_rope", positions=-1))


def test_parts_are_views_of_the_file(cap):
    whole, part = cap.q(1), cap.q(1, positions=slice(5, 11), heads=[2, 3])
    assert torch.equal(part, whole[5:11, 2:4])
    assert part.untyped_storage().nbytes() > part.nbytes
    assert torch.equal(cap.k(0, positions=[3, 1], heads=1), cap.k(0)[[3, 1]][:, 1:2])
    assert cap.v(0, positions=-1).shape == (1, 2, 16)
    whole.zero_()
    assert cap.q(1).any()
    for wrong in ({"positions": N}, {"heads": [0, 4]}):
        with pytest.raises(PositionError, match="the capture holds"):
            cap.q(0, **wrong)


def test_some_layers_of_a_capture(cap):
    one = cap.select(1)
    assert one.layers == (1,)
    assert one.statistics()["layer"].values.tolist() == [1]
    assert cap.select([1, 0]).layers == (0, 1)
    with pytest.raises(StageError, match="layer 2 is not in this capture"):
        cap.select(2)


def test_it_prints_what_it_holds(cap):
    assert f"{N} tokens" in repr(cap)
    assert "'" + str(cap.path) + "'" in repr(cap)
    table = cap.holdings()
    assert table["bytes"].sum() == cap.n_bytes
    assert table.loc[0, ["type", "window", "stages", "dtype"]].tolist() == [
        "sliding_attention",
        7,
        "pre_norm, pre_rope, final",
        "float32",
    ]
    assert "<table" in cap._repr_html_()


def test_patterns_and_top_keys_of_a_capture(cap):
    pattern = cap.pattern[1, 2, 10:12]
    assert pattern.shape == (2, N)
    assert cap.top_keys(1, 2, 10, k=3)["attention"][0] == pytest.approx(float(pattern[0].max()), rel=1e-5)


def test_statistics_are_kept_and_used_by_the_next(cap, monkeypatch):
    first = cap.statistics(groups="keys")
    assert "received" in first
    assert "lse" not in first
    monkeypatch.setattr("interp.tensors.capture_data.attention_statistics", None)
    xr.testing.assert_identical(open_capture(cap.path).statistics([0, 1], groups=["keys"]), first)
    with pytest.raises(TypeError):
        open_capture(cap.path).statistics(groups="keys", map_size=5)
    monkeypatch.setattr("interp.storage.statistics_store.VERSION", 2)
    with pytest.raises(TypeError):
        open_capture(cap.path).statistics(groups="keys")


def test_damaged_statistics_are_made_again(cap):
    expected = cap.statistics(0, "keys")
    (path,) = (cap.path / "statistics").iterdir()
    flip(path, -1)
    with pytest.warns(CaptureWarning, match="computing them again"):
        xr.testing.assert_identical(open_capture(cap.path).statistics(0, "keys"), expected)
    xr.testing.assert_identical(open_capture(cap.path).statistics(0, "keys"), expected)


def test_statistics_that_cannot_be_kept_are_given_all_the_same(cap, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("interp.storage.statistics_store.write_dataset", full)
    with pytest.warns(CaptureWarning, match="not kept beside the capture") as said:
        assert "received" in cap.statistics(groups="keys")
    assert len(said) == 1


def test_what_a_killed_process_left_among_the_statistics_goes_once_it_is_old(cap):
    folder = cap.path / "statistics"
    cap.statistics(0, "rows")
    (kept,) = folder.iterdir()
    begun = kept.read_bytes()[:100]
    old, new, mine = folder / ".ropescope-abcd_123.tmp", folder / ".ropescope-abcd_124.tmp", folder / ".ropescope-1.tmp"
    for path, content in ((old, begun), (new, begun), (mine, b"mine")):
        path.write_bytes(content)
    for path in (old, mine):
        os.utime(path, (0, 0))
    cap.statistics(0, "keys")
    assert not old.exists() and new.exists()
    assert mine.read_bytes() == b"mine"


def flip(path, at):
    """Change one byte of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_is_found_when_the_layer_is_read(cap):
    flip(cap.path / "layer_001.safetensors", -100)
    opened = open_capture(cap.path)
    opened.q(0)
    for _ in range(2):
        with pytest.raises(CaptureDamagedError, match=r"layer_001\.safetensors was changed after it was written"):
            opened.k(1, "pre_rope")


@pytest.mark.parametrize("name", ["tokens.safetensors", "tokens.json", "constants.safetensors", "loss.safetensors"])
def test_a_flipped_byte_elsewhere_is_found_at_once(cap, name):
    flip(cap.path / name, -1)
    with pytest.raises(CaptureDamagedError, match=name):
        open_capture(cap.path).spec(0)


@pytest.mark.parametrize("name", ["layer_000.safetensors", "tokens.json", "loss.safetensors"])
def test_missing_and_truncated_files(cap, name):
    content = (cap.path / name).read_bytes()
    (cap.path / name).write_bytes(content[:-8])
    with pytest.raises(CaptureDamagedError, match=f"{name} has .* bytes and was written with {len(content):,}"):
        open_capture(cap.path)
    (cap.path / name).unlink()
    with pytest.raises(CaptureDamagedError, match=f"{name} is missing"):
        open_capture(cap.path)


def test_a_header_of_the_right_size_with_other_shapes(cap):
    path = cap.path / "layer_000.safetensors"
    path.write_bytes(path.read_bytes().replace(b"[43,2,16]", b"[43,1,32]"))
    with pytest.raises(CaptureDamagedError, match="does not hold the tensors"):
        open_capture(cap.path)


def rewritten(cap, change):
    """The capture with a changed manifest whose signature is right."""
    path = cap.path / "manifest.json"
    body = json.loads(path.read_bytes())
    body.pop("sha256")
    change(body)
    body["sha256"] = hashlib.sha256((json.dumps(body, indent=1) + "\n").encode()).hexdigest()
    path.write_text(json.dumps(body))
    return cap.path


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body["files"].update({"../../etc/passwd": body["files"]["tokens.json"]}),
        lambda body: body["files"].update({"/etc/passwd": body["files"]["tokens.json"]}),
        lambda body: body["files"].pop("layer_001.safetensors"),
        lambda body: body["config"].update(n_layers=10**15),
        lambda body: body["config"].update(n_layers="2"),
        lambda body: body.update(n_tokens=10**12),
        lambda body: body.update(n_tokens=True),
        lambda body: body.update(layers={"7": body["layers"]["0"]}),
        lambda body: body.update(blocks_run=1),
        lambda body: body["layers"]["0"].update(stages=["final", "pre_everything"]),
        lambda body: body["layers"]["0"].update(stages=[]),
        lambda body: body["layers"]["0"]["spec"].update(window="all"),
        lambda body: body["layers"]["0"]["spec"].update(scale=[1]),
        lambda body: body["files"]["tokens.json"].update(bytes=-1),
        lambda body: body["files"]["layer_000.safetensors"]["tensors"].update(
            {"v": "F32 [99999999999, 9999999999, 9]"}
        ),
        lambda body: body["files"]["layer_000.safetensors"]["tensors"].update({"v": "PICKLE [1]"}),
        lambda body: body.update(files=[]),
        lambda body: body.update(provenance="x"),
        lambda body: body.update(format=0),
        lambda body: body.update(loss="yes"),
        lambda body: body.pop("tokens"),
        *(
            lambda body, x=x: body["layers"]["0"]["spec"].update(scale=x)
            for x in (nan, inf, -inf, 0, -1, 10**400, True)
        ),
        *(lambda body, x=x: body["layers"]["0"]["spec"].update(softcap=x) for x in (nan, inf, 0, -3.0, "2")),
        *(lambda body, x=x: body["layers"]["0"]["spec"].update(window=x) for x in (0, -7, 1.5, nan, True)),
        *(lambda body, x=x: body["layers"]["0"]["spec"].update(causal=x) for x in ("no", 1, None)),
        *(lambda body, x=x: body["layers"]["0"]["spec"].update(alibi_slopes=x) for x in ([1.0], [nan] * 4, "abcd", 3)),
        *(lambda body, x=x: body["layers"]["0"].update(attention_factor=x) for x in (nan, inf, 0, -1, 10**400, None)),
        lambda body: body["layers"]["0"].update(stages=["final", "final"]),
        lambda body: body.update(layers={}),
        lambda body: body["config"].update(eps=nan),
        lambda body: body["config"].update(n_heads=8),
        lambda body: body["config"].update(d_head=32),
        lambda body: body["files"]["layer_000.safetensors"]["tensors"].update({"v": "I64 [43, 2, 16]"}),
        lambda body: body["files"]["loss.safetensors"]["tensors"].update({"loss": "F32 [43]"}),
        lambda body: body["files"]["tokens.safetensors"]["tensors"].update({"positions": "I64 [44]"}),
        lambda body: body["files"]["constants.safetensors"]["tensors"].update({"0.gain_q": "F32 [2, 16]"}),
        lambda body: body["parts"]["0"].remove("v"),
        lambda body: body["parts"].pop("0"),
        lambda body: body.pop("documents"),
        *(lambda body, x=x: body.update(documents=x) for x in ([0, 17], [0], [1, 5], [0, 9, 9], [0, 99], [0, 1.5], 3)),
        lambda body: body.update(extras=[1]),
    ],
)
def test_a_manifest_that_no_capture_has(cap, change):
    with pytest.raises(CaptureDamagedError):
        open_capture(rewritten(cap, change))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"[" * 100_000, b'"text"', b'{"format": 1}'])
def test_a_manifest_that_is_none(cap, content):
    (cap.path / "manifest.json").write_bytes(content)
    with pytest.raises(CaptureDamagedError, match="damaged"):
        open_capture(cap.path)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda body: body["parts"]["1"].append("grad.z"), r"grad\.z"),
        (lambda body: body.update(padding=[0] * N), "padding"),
        (lambda body: body["extras"].update(gradients={"optional": False}), "gradients"),
        (lambda body: body["extras"].update(gradients={}), "gradients"),
        (lambda body: body.update(masks=[1]), "masks"),
    ],
)
def test_what_this_version_would_not_see_is_refused_by_name(cap, change, what):
    with pytest.raises(CaptureError, match=f"holds {what}, which this version of ropescope does not read: update"):
        open_capture(rewritten(cap, change))


def test_what_may_be_passed_over_is_and_is_kept(cap, model, tokens):
    extra = {"notes": {"optional": True, "lines": ["a", "b"]}}
    directory = rewritten(cap, lambda body: body.update(extras=extra))
    assert_same(open_capture(directory), capture(model, tokens))
    found = manifest.read_manifest(directory)
    manifest.write_manifest(directory, found)
    assert manifest.read_manifest(directory) == found
    assert found.extras == extra


NAMES = ("manifest.json", "tokens.json", "tokens.safetensors", "constants.safetensors", "layer_000.safetensors")


def fifo(path):
    os.mkfifo(path)


def endless(path):
    path.symlink_to("/dev/zero")


def huge(path):
    with path.open("wb") as file:
        file.truncate(2**40)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", [fifo, endless, huge, os.mkdir])
@pytest.mark.parametrize("name", [*NAMES, "loss.safetensors"])
def test_what_is_no_file_is_refused_and_not_waited_for(cap, name, kind):
    (cap.path / name).unlink()
    kind(cap.path / name)
    with pytest.raises(CaptureError, match=name):
        open_capture(cap.path).q(0)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", [fifo, endless, huge, os.mkdir])
def test_statistics_that_are_no_file_are_computed_and_left(cap, kind):
    expected = cap.statistics(0, "keys")
    (path,) = (cap.path / "statistics").iterdir()
    path.unlink()
    kind(path)
    before = os.lstat(path)
    with pytest.warns(CaptureWarning):
        xr.testing.assert_identical(open_capture(cap.path).statistics(0, "keys"), expected)
    assert os.lstat(path).st_ino == before.st_ino


@pytest.mark.parametrize("note", ["[" * 100_000, '{"key": ' * 100_000, "null", "{}", '{"variables": [{}]}', ""])
def test_statistics_of_nonsense_are_made_again(cap, note):
    expected = cap.statistics(0, "keys")
    (path,) = (cap.path / "statistics").iterdir()
    write_tensors(path, {"a": torch.zeros(1)}, note, kind="statistics")
    assert StatisticsStore(cap.path, {}).damaged() != []
    with pytest.warns(CaptureWarning, match="computing them again"):
        xr.testing.assert_identical(open_capture(cap.path).statistics(0, "keys"), expected)
    assert StatisticsStore(cap.path, {}).damaged() == []


@pytest.mark.parametrize("name", [*NAMES, "loss.safetensors"])
def test_what_may_not_be_read_is_not_called_damaged(cap, name, monkeypatch):
    opened, path = io.open, cap.path / name

    def denied(file, *arguments, **options):
        if isinstance(file, os.PathLike | str) and os.path.realpath(file) == os.path.realpath(path):
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, *arguments, **options)

    monkeypatch.setattr(io, "open", denied)
    with pytest.raises(CaptureError, match=f"cannot read .*{name}: Permission denied") as said:
        open_capture(cap.path).q(0)
    assert not isinstance(said.value, CaptureDamagedError)


def test_a_manifest_of_somebody_else(cap):
    (cap.path / "manifest.json").write_text('{"name": "my app", "icons": []}')
    with pytest.raises(CaptureError, match=r"no capture in .*ropescope did not write its manifest\.json"):
        open_capture(cap.path)


def test_no_advice_costs_anything(cap, model, tokens):
    """What is damaged, or of another model, may be all that there is."""
    said = []
    for path in sorted(cap.path.iterdir()):
        before = path.read_bytes()
        for content in (before[:-1], before[:-1] + bytes([before[-1] ^ 1]) if before else b"x"):
            path.write_bytes(content)
            try:
                open_capture(cap.path).q(0)
                open_capture(cap.path).q(1)
            except CaptureError as error:
                said.append(str(error))
        path.write_bytes(before)
    for other, ids in ((tiny_model(1, layer_types=TYPES, window_size=7), tokens), (model, tokens[:9])):
        with pytest.raises(CaptureMismatchError) as error:
            capture(other, ids, cap.path)
        said.append(str(error.value))
    assert len(said) >= 12
    assert not [line for line in said if "delete" in line or "remove" in line]


def test_a_flipped_byte_in_the_manifest(cap):
    content = (cap.path / "manifest.json").read_bytes()
    (cap.path / "manifest.json").write_bytes(content.replace(b"10000.0", b"10001.0"))
    with pytest.raises(CaptureDamagedError, match="changed after it was written"):
        open_capture(cap.path)


def test_a_newer_version(cap):
    newer = manifest.FORMAT + 1
    with pytest.raises(CaptureError, match=rf"format {newer}.*update ropescope"):
        open_capture(rewritten(cap, lambda body: body.update(format=newer)))
    with pytest.raises(CaptureError, match=r"does not read.*update ropescope"):
        open_capture(rewritten(cap, lambda body: body.update(format=1) or body["config"].update(time_travel=True)))


def test_another_capture_at_the_path(cap, model, tokens):
    before = {name: (cap.path / name).read_bytes() for name in os.listdir(cap.path)}
    for said, other, ids, options in (
        ("rope .* there, .* here", model.with_config(rope=RopeConfig(rope_theta=9.0)), tokens, {}),
        ("other weights", tiny_model(1, layer_types=TYPES, window_size=7), tokens, {}),
        (f"another text \\({N} tokens there, 7 here\\)", model, tokens[:7], {}),
        ("stages .* there, pre_norm here", model, tokens, {"stages": "pre_norm"}),
        ("layers 0, 1 there, 1 here", model, tokens, {"layers": 1}),
    ):
        with pytest.raises(CaptureMismatchError, match=said):
            capture(other, ids, cap.path, **options)
    assert {name: (cap.path / name).read_bytes() for name in os.listdir(cap.path)} == before


def test_what_is_no_capture_is_never_written_over(model, tokens, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("42")
    with pytest.raises(CaptureError, match=r"is no capture and not empty \(it holds thesis\.tex\)"):
        capture(model, tokens, tmp_path / "thesis")
    with pytest.raises(CaptureError, match="is a file"):
        capture(model, tokens, tmp_path / "thesis" / "thesis.tex")
    with pytest.raises(OutputError, match="there is no directory"):
        capture(model, tokens, tmp_path / "no" / "such")
    with pytest.raises(CaptureError, match=r"no capture in .*thesis'"):
        open_capture(tmp_path / "thesis")
    assert os.listdir(tmp_path / "thesis") == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    assert capture(model, tokens, tmp_path / "empty").is_complete


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_may_not_be_written(model, tokens, tmp_path):
    (tmp_path / "cap").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        capture(model, tokens, tmp_path / "cap")


def test_what_does_not_fit_in_memory_says_where_to_put_it(model, tokens, monkeypatch, tmp_path):
    class Memory:
        available = 1_000

    monkeypatch.setattr("psutil.virtual_memory", Memory)
    with pytest.raises(MaterializationError, match="capture to disk with path="):
        capture(model, tokens)
    assert capture(model, tokens, tmp_path / "cap").is_complete


def test_the_estimate_is_exact(model, tokens, cap):
    assert plan_capture(model, tokens).n_bytes == cap.n_bytes == captures.capture(model, tokens).n_bytes


def test_resumed_from_the_directory_alone(tmp_path, monkeypatch):
    tiny.tiny_model("llama").save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    model, path, tokens = HookedTransformer.from_pretrained("model"), tmp_path / "cap", tiny.tokens(N, batch=1)[0]
    changed = model.with_config(rope=RopeConfig(rope_theta=77.0))
    whole = capture(changed, tokens, tmp_path / "whole")

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(model), "residual_loss", interrupt)
        with pytest.raises(KeyboardInterrupt):
            capture(changed, tokens, path)
    assert manifest.read_manifest(path).blocks_run == model.cfg.n_layers
    monkeypatch.chdir("/")
    assert_same(resume(path), whole)
    assert sorted(os.listdir(path)) == sorted(os.listdir(whole.path))


def test_resumed_after_the_model_was_cast(tmp_path, monkeypatch):
    """The configuration of a model that was cast still has the type that it was loaded in."""
    tiny.tiny_model("llama").save_pretrained(tmp_path / "model")
    model, tokens = HookedTransformer.from_pretrained(tmp_path / "model"), tiny.tokens(N, batch=1)[0]
    path, cast = tmp_path / "cap", HookedTransformer.from_pretrained(tmp_path / "model").to(torch.bfloat16)
    whole = capture(cast, tokens, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "residual_loss", None)
        with pytest.raises(TypeError):
            capture(cast, tokens, path)
    with pytest.raises(CaptureMismatchError, match="weights of bfloat16 there, of float32 here; choose another path"):
        resume(path, model)
    assert_same(resume(path), whole)
    assert whole.q(0).dtype == torch.bfloat16


def test_an_unfinished_capture_says_so(model, tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(type(model), "residual_loss", None)
    with pytest.raises(TypeError):
        capture(model, tokens, tmp_path / "cap")
    with pytest.warns(CaptureWarning, match=f"2 of 2 layers have run.*ropescope resume {tmp_path / 'cap'}"):
        cap = open_capture(tmp_path / "cap")
    assert (cap.layers, len(cap.loss)) == ((0, 1), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cap.statistics(1)["layer"].values.tolist() == [1]
