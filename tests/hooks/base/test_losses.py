"""Losses of native and attached models against log-softmax of whole logits in float64, in the width of the model."""

import pytest
import tiny
import torch

import hooks.base.losses
from hooks import HookedTransformer
from hooks.base.inputs import predicted_tokens
from hooks.base.losses import mean_loss, next_token_nll, where_predicted
from interp.captures import capture

IDS = tiny.tokens(29)


def by_definition(logits, ids):
    """−log p of each next token, by log-softmax of whole logits in float64."""
    return -logits.double().log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]


def ways(model):
    """The same model, native and attached."""
    yield HookedTransformer.from_pretrained(model)
    with HookedTransformer.attach(model) as attached:
        yield attached


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize(
    ("dtype", "wide", "rtol", "theirs_within"),
    [
        (torch.float64, torch.float64, 1e-13, 1e-5),
        (torch.float32, torch.float32, 2e-6, 1e-5),
        (torch.bfloat16, torch.float32, 2e-6, 0.2),
    ],
)
@torch.no_grad()
def test_a_loss_is_as_wide_as_its_model_and_never_narrower_than_float32(family, dtype, wide, rtol, theirs_within):
    model = tiny.tiny_model(family, dtype=dtype)
    for ours in ways(model):
        want = by_definition(ours(IDS), IDS)
        nll = ours.loss_per_token(IDS)
        assert nll.dtype == ours(IDS, return_type="loss").dtype == wide
        torch.testing.assert_close(nll.double(), want, rtol=rtol, atol=rtol)
        assert ours.loss_per_token(IDS[:, :1]).shape == (2, 0)
        assert ours.loss_per_token(IDS[:, :1]).dtype == wide
        cap = capture(ours, IDS[0])
        torch.testing.assert_close(cap.loss.double(), want[0], rtol=rtol, atol=rtol)
        assert cap.loss.dtype == wide
    # Norms and angles of transformers are float32 whatever the model's type.
    theirs = by_definition(model(input_ids=IDS, use_cache=False).logits, IDS)
    torch.testing.assert_close(nll.double(), theirs, rtol=theirs_within, atol=theirs_within)


@torch.no_grad()
def test_a_few_positions_at_a_time_are_all_of_them(monkeypatch):
    model = tiny.tiny_model("llama", dtype=torch.float64)
    sizes = []
    monkeypatch.setattr(hooks.base.losses, "LOGIT_BYTES", 5 * 8 * 97 * 2)  # five positions of two texts in float64
    for ours in ways(model):
        torch.testing.assert_close(ours.loss_per_token(IDS), by_definition(ours(IDS), IDS))
    table = torch.randn(2, 29, 97)

    def logits(start, stop):
        sizes.append(stop - start)
        return table[:, start:stop]

    next_token_nll(logits, IDS, d_vocab=97, dtype=torch.float64)
    assert sizes == [5, 5, 5, 5, 5, 3]


@torch.no_grad()
def test_the_loss_of_a_few_rows_at_a_time_is_that_of_all_to_the_bit(monkeypatch):
    table = torch.randn(2, 29, 97)
    bits = []
    for piece in (2**24, 3 * 4 * 97, 1):
        monkeypatch.setattr(hooks.base.losses, "_PIECE_BYTES", piece)
        bits.append(next_token_nll(lambda a, b: table[:, a:b], IDS, d_vocab=97, dtype=torch.float32))
    torch.testing.assert_close(bits[0].double(), by_definition(table.double(), IDS), rtol=1e-6, atol=1e-6)
    assert torch.equal(bits[0], bits[1])
    assert torch.equal(bits[0], bits[2])


def test_logits_that_are_computed_again_give_the_same_gradient(monkeypatch):
    model = tiny.tiny_model("llama", dtype=torch.float64)
    monkeypatch.setattr(hooks.base.losses, "_PIECE_BYTES", 3 * 8 * 97)
    monkeypatch.setattr(hooks.base.losses, "LOGIT_BYTES", 5 * 8 * 97 * 2)
    for ours in ways(model):
        parameters = list((ours if isinstance(ours, HookedTransformer) else model).parameters())
        want = torch.autograd.grad(by_definition(ours(IDS), IDS).mean(), parameters)
        got = torch.autograd.grad(ours(IDS, return_type="loss"), parameters)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_a_pair_with_padding_on_either_side_does_not_count():
    nll = torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
    assert mean_loss(nll, None) == 277.75
    ids, real = torch.arange(5)[None], torch.tensor([[False, False, True, True, True]])
    assert mean_loss(nll, predicted_tokens(ids, real)) == 550  # the first token after padding is not predicted
    assert mean_loss(nll, predicted_tokens(ids, torch.tensor([[True, True, True, True, False]]))) == 37


def test_the_first_token_of_a_document_is_predicted_from_nothing():
    nll = torch.tensor([[1.0, 10.0, 100.0, 1000.0], [1.0, 10.0, 100.0, 1000.0]])
    ids, documents = torch.zeros(2, 5, dtype=torch.long), torch.tensor([[0, 2, 4], [0, 1, 5]])
    kept = torch.tensor([[1, torch.nan, 100, torch.nan], [torch.nan, 10, 100, 1000]])
    torch.testing.assert_close(where_predicted(nll, predicted_tokens(ids, None, documents)), kept, equal_nan=True)
    assert mean_loss(nll, predicted_tokens(ids, None, documents)) == torch.tensor([1.0, 100, 10, 100, 1000]).mean()
    padding = torch.tensor([[True, True, True, True, False], [True] * 5])
    assert mean_loss(nll, predicted_tokens(ids, padding, documents)) == torch.tensor([1.0, 100, 10, 100, 1000]).mean()


def test_another_return_type_is_refused_by_both():
    model = tiny.tiny_model("llama")
    for ours in ways(model):
        with pytest.raises(hooks.errors.InputError, match="return_type 'logit'"):
            ours(IDS, return_type="logit")
