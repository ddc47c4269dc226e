"""Captures of several texts: each is that of the text alone, padding is never measured, runs go on one by one."""

import numpy as np
import pytest
import torch
import xarray as xr

from hooks import HookedTransformer
from hooks.errors import CaptureError, CaptureMismatchError, InputError, OutputError, TextError
from interp import attention_statistics, capture, open_capture, resume
from tests.support.tiny import tiny_model, tokens
from tests.support.words import tokenizer_of_words

TEXTS = ["w5 w6 w7 w8 w9 w10 w11 w12 w13 w14", "w20 w21 w22", "w30 w31 w32 w33 w34 w35"]
LENGTHS = (10, 3, 6)


@pytest.fixture(params=["native", "attached"])
def model(request):
    foreign = tiny_model("gemma3_text")
    if request.param == "native":
        yield HookedTransformer.from_pretrained(foreign)
        return
    with HookedTransformer.attach(foreign) as attached:
        yield attached


def batch(side):
    """Three rows of ids padded on a side with token 3, and their mask."""
    mask = torch.zeros(3, 10, dtype=torch.long)
    for row, n in enumerate(LENGTHS):
        mask[row, slice(10 - n, None) if side == "left" else slice(n)] = 1
    return torch.where(mask == 1, tokens(10, batch=3) % 90 + 4, 3), mask


def close(got, expected):
    got, expected = torch.as_tensor(got), torch.as_tensor(expected)
    assert float((got - expected).abs().max()) < 1e-5 * float(expected.max() - expected.min())


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_rows_of_a_padded_batch_are_what_the_model_computed_without_the_padding(model, side):
    ids, mask = batch(side)
    caps = capture(model, ids, attention_mask=mask)
    names = ["hook_q", "hook_rot_q", "hook_rot_k", "hook_v"]
    _, cache = model.run_with_cache(ids, attention_mask=mask, names_filter=[f"blocks.*.attn.{n}" for n in names])
    nll = model.loss_per_token(ids, attention_mask=mask)
    assert len(caps) == 3
    for row, cap in enumerate(caps):
        real = mask[row] == 1
        assert torch.equal(cap.tokens, ids[row][real])
        assert torch.equal(cap.positions, torch.arange(LENGTHS[row]))
        for layer in range(3):
            close(cap.q(layer), cache["rot_q", layer][row][real])
            close(cap.k(layer), cache["rot_k", layer][row][real])
            close(cap.v(layer), cache["hook_v", layer][row][real])
        close(cap.loss, nll[row][~nll[row].isnan()])
        one = capture(model, ids[row][real])
        xr.testing.assert_identical(cap.statistics(), one.statistics())
        q, k = (cache[name, 1][row] for name in ("rot_q", "rot_k"))
        if side == "right":  # padding behind a text is seen by none of its queries
            rows = attention_statistics(
                q[real], k, model.attention_spec(1), groups="rows", key_mask=real, query_start=0
            )
            np.testing.assert_allclose(cap.statistics().entropy.sel(layer=1), rows.entropy, rtol=1e-4, atol=1e-5)


def test_texts_and_rows_of_ids_give_a_capture_each(model):
    model.tokenizer = tokenizer_of_words(97)
    rows = [[int(word[1:]) for word in text.split()] for text in TEXTS]
    for given in (TEXTS, tuple(TEXTS), rows, [torch.tensor(row) for row in rows], [np.array(row) for row in rows]):
        caps = capture(model, given)
        assert [cap.tokens.tolist() for cap in caps] == rows
        for cap, text in zip(caps, TEXTS, strict=True):
            xr.testing.assert_identical(cap.statistics(groups="rows"), capture(model, text).statistics(groups="rows"))
    assert [len(cap.tokens) for cap in capture(model, TEXTS, n_tokens=4)] == [4, 3, 4]
    assert [len(cap.tokens) for cap in capture(model, TEXTS[:1])] == [10]
    assert len(capture(model, tokens(9, batch=2))) == 2


def test_one_row_is_one_capture(model):
    for one in (tokens(9)[0], tokens(9)[:1], tokens(9)[0].tolist(), tokens(9)[:1].tolist()):
        assert torch.equal(capture(model, one).tokens, tokens(9)[0])
    real = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1]])
    for mask in (real, real[0], real.bool()):
        assert torch.equal(capture(model, tokens(9)[:1], attention_mask=mask).tokens, tokens(9)[0, 2:])


def test_packed_rows_have_their_own_positions(model):
    ids = tokens(8, batch=2)
    at = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4], list(range(8))])
    first, second = capture(model, ids, positions=at)
    assert torch.equal(first.positions, at[0]) and torch.equal(second.positions, at[1])
    both = capture(model, ids, positions=at[0])
    assert all(torch.equal(cap.positions, at[0]) for cap in both)
    for wrong in (at[:1], [at[0], at[1], at[1]], "x"):
        with pytest.raises(InputError, match="positions="):
            capture(model, ids, positions=wrong)


def test_a_directory_each_that_goes_on_where_it_stopped(model, tmp_path):
    ids, mask = batch("left")
    where = tmp_path / "texts"
    made = capture(model, ids, where, attention_mask=mask)
    assert sorted(each.name for each in where.iterdir()) == ["000", "001", "002"]
    before = {path: path.stat().st_mtime_ns for path in where.rglob("*.safetensors")}
    for path in (where / "001").iterdir():
        path.unlink()
    (where / "001").rmdir()
    again = capture(model, ids, where, attention_mask=mask)
    for number, (one, other) in enumerate(zip(made, again, strict=True)):
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(open_capture(where / f"{number:03d}").q(2), other.q(2))
    assert all(path.stat().st_mtime_ns == at for path, at in before.items() if "001" not in path.parts)
    assert torch.equal(resume(where / "002", model).tokens, made[2].tokens)
    with pytest.raises(CaptureMismatchError, match="another text"):
        capture(model, ids.flip(0), where, attention_mask=mask.flip(0))
    with pytest.raises(CaptureError, match="holds the capture of one text, and these are 3"):
        capture(model, ids, where / "000", attention_mask=mask)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="cannot write"):
        capture(model, ids, tmp_path / "file", attention_mask=mask)
    assert (tmp_path / "file").read_text() == "mine"


def test_what_is_wrong_with_one_text_is_said_before_any_is_run(model, tmp_path):
    model.tokenizer = tokenizer_of_words(97)
    with pytest.raises(TextError, match=r"text 1 of 2: .*empty"):
        capture(model, ["w5 w6", " "], tmp_path / "texts")
    assert not (tmp_path / "texts").exists()
    with pytest.raises(InputError, match="text 1 of 2: token id 999"):
        capture(model, [[5, 6], [5, 999]])
    with pytest.raises(TextError, match="nothing to read"):
        capture(model, [])
    ids, mask = batch("left")
    with pytest.raises(InputError, match="attention_mask is for token ids"):
        capture(model, TEXTS, attention_mask=mask)
    with pytest.raises(InputError, match="attention_mask holds 2"):
        capture(model, ids, attention_mask=mask * 2)
    with pytest.raises(InputError, match="those of a padded batch count from"):
        capture(model, ids, attention_mask=mask, positions=torch.arange(10))
    with pytest.raises(TextError, match="text 1 of 3: 1 token to read"):
        capture(
            model, ids, attention_mask=torch.where(torch.arange(10) == 9, mask, mask * torch.tensor([[1], [0], [1]]))
        )
