"""Captures of packed documents: each document as it is captured alone, in memory, on disk, resumed and from a cache."""

from dataclasses import replace

import crashing
import pytest
import torch
from tiny import tiny_model as foreign
from tiny import tokens
from tiny_hooked import random_tokens, tiny_model
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from hooks import HookedTransformer, RopeConfig
from hooks.errors import CaptureDamagedError, CaptureMismatchError, InputError
from interp import Capture, capture, open_capture, resume
from interp.cli.command import app
from interp.storage.manifest import read_manifest, write_manifest

LENGTHS = [7, 1, 12, 5]
STARTS = [0, 7, 8, 20]
POSITIONS = torch.cat([torch.arange(n) for n in LENGTHS])
PARTS = [slice(start, start + n) for start, n in zip(STARTS, LENGTHS, strict=True)]


def close(got, expected, within=2e-5):
    torch.testing.assert_close(got, expected, rtol=within, atol=within * float(expected.abs().max()))


def check(cap, model, ids):
    """Every tensor and loss as in a capture of the document alone."""
    assert cap.documents.tolist() == STARTS and torch.equal(cap.positions, POSITIONS)
    for part in (part for part in PARTS if part.stop - part.start > 1):
        alone = capture(model, ids[part])
        for layer in cap.layers:
            for stage in cap.stages(layer):
                close(cap.q(layer, stage)[part], alone.q(layer, stage))
                close(cap.k(layer, stage)[part], alone.k(layer, stage))
            close(cap.v(layer)[part], alone.v(layer))
        if len(cap.loss):
            close(cap.loss[part.start : part.stop - 1], alone.loss, 1e-4)
    if len(cap.loss):
        assert cap.loss.isnan().nonzero()[:, 0].tolist() == [start - 1 for start in STARTS[1:]]
        assert not bool(cap.predicted_loss.isnan().any()) and len(cap.predicted_loss) == sum(LENGTHS) - len(LENGTHS)


def learned_positions():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()


@pytest.mark.parametrize("name", ["native", "sliding", "gemma3_text", "gpt2"])
def test_each_document_is_captured_as_it_is_alone(name, tmp_path):
    if name in ("native", "sliding"):
        window = {"layer_types": ("sliding_attention", "full_attention"), "window_size": 4} if name == "sliding" else {}
        model, ids = tiny_model(**window), random_tokens(25)[0]
    else:
        source = learned_positions() if name == "gpt2" else foreign(name)
        model, ids = HookedTransformer.attach(source), tokens(25, batch=1, vocab=61)[0]
    check(capture(model, ids, positions=POSITIONS), model, ids)
    cap = capture(model, ids, tmp_path / "packed.capture", positions=POSITIONS.tolist())
    check(cap, model, ids)
    check(open_capture(cap.path), model, ids)
    assert read_manifest(cap.path).documents == tuple(STARTS)
    _, cache = model.run_with_cache(ids[None], position_ids=POSITIONS)
    check(Capture.from_cache(cache), model, ids)


def test_a_row_of_a_batch_keeps_its_own_positions():
    model, ids = tiny_model(), random_tokens(25)
    both = torch.stack([torch.arange(25), POSITIONS])
    _, cache = model.run_with_cache(ids.expand(2, -1), position_ids=both)
    check(Capture.from_cache(cache.apply_slice_to_batch_dim(1)), model, ids[0])
    assert Capture.from_cache(cache.apply_slice_to_batch_dim(0)).documents is None


def test_a_schedule_adapts_to_the_longest_document():
    rope = RopeConfig(rope_type="dynamic", rope_theta=1e4, factor=4.0, max_position_embeddings=8)
    model, ids = tiny_model(rope=rope), random_tokens(25)[0]
    long = capture(model, ids, positions=POSITIONS).constants(0).inv_freq
    torch.testing.assert_close(long, capture(model, ids[PARTS[2]]).constants(0).inv_freq)


def test_a_packed_capture_that_was_killed_goes_on_to_the_same(tmp_path):
    options = {"positions": torch.cat([torch.arange(20), torch.arange(17)])}
    whole = crashing.small_capture(tmp_path / "whole.capture", **options)
    assert crashing.killed_at(tmp_path / "cut.capture", 40, **options) == -9
    cap = resume(tmp_path / "cut.capture", crashing.small_model())
    assert cap.documents.tolist() == [0, 20]
    assert torch.equal(cap.loss.nan_to_num(-1), whole.loss.nan_to_num(-1))
    for layer in cap.layers:
        assert torch.equal(cap.q(layer), whole.q(layer)) and torch.equal(cap.v(layer), whole.v(layer))
    with pytest.raises(CaptureMismatchError, match=r"other documents packed into its row \(2 there, 1 here"):
        crashing.small_capture(tmp_path / "cut.capture")


def test_it_says_how_many_documents_there_are(tmp_path):
    cap = capture(tiny_model(), random_tokens(25)[0], tmp_path / "packed.capture", positions=POSITIONS)
    said = CliRunner().invoke(app, ["info", str(cap.path)]).output
    assert "25 tokens in 4 documents" in said and "nan" not in said
    assert "25 tokens in 4 documents" in repr(cap) and "25 in 4 documents" in cap._repr_html_()
    assert "nan" not in cap._repr_html_()
    assert cap.provenance["settings"]["documents"] == "4 packed into one row"


@pytest.mark.parametrize(
    ("positions", "says"),
    [
        (torch.arange(25) + 1, "begin with .1.: a capture counts each document from 0"),
        (POSITIONS + (POSITIONS > 4), "go from 4 to 6 at token 5"),
        (torch.cat([torch.arange(20), torch.arange(2, 7)]), "go from 19 to 2 at token 20"),
        (POSITIONS[:-1], r"positions has shape \(24,\)"),
        (POSITIONS.float(), "positions must be integers"),
        ("x", "positions='x'"),
    ],
)
def test_positions_that_count_no_documents_are_refused(positions, says):
    with pytest.raises(InputError, match=says):
        capture(tiny_model(), random_tokens(25)[0], positions=positions)


def test_positions_from_0_to_the_end_are_one_text():
    model, ids = tiny_model(), random_tokens(25)[0]
    cap, plain = capture(model, ids, positions=torch.arange(25)), capture(model, ids)
    assert cap.documents is None and "documents" not in cap.provenance["settings"]
    assert torch.equal(cap.loss, plain.loss) and torch.equal(cap.q(1), plain.q(1))


def test_a_manifest_whose_documents_are_not_its_positions_is_damaged(tmp_path):
    cap = capture(tiny_model(), random_tokens(25)[0], tmp_path / "packed.capture", positions=POSITIONS)
    for documents in (None, (0, 7), (0, 7, 8, 21)):
        write_manifest(cap.path, replace(read_manifest(cap.path), documents=documents))
        with pytest.raises(CaptureDamagedError, match="count from 0 in each document"):
            open_capture(cap.path)
