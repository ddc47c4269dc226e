"""Ids, masks and positions of a forward pass: the values that mean something, and an error by name for all others."""

import numpy as np
import pytest
import torch
from tiny_foreign import foreign_model
from tiny_hooked import random_tokens, tiny_model

from hooks import HookedTransformer
from hooks.errors import InputError, RopescopeError

IDS = random_tokens(8, batch=2)
ALONE = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]])


@pytest.fixture(params=["native", "attached"], scope="module")
def model(request):
    if request.param == "native":
        yield tiny_model()
    else:
        with HookedTransformer.attach(foreign_model("qwen3_moe")) as attached:
            yield attached


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (IDS > 3, r"torch.bool \(2, 8\)"),
        (IDS.to(torch.int8), r"torch.int8.*tokens.long\(\)"),
        (IDS.to(torch.uint8), "torch.uint8"),
        (IDS.float(), "torch.float32"),
        (IDS.to(torch.complex64), "torch.complex64"),
        (None, "tokens=None: give integer ids"),
        ([2**63], "tokens=.*give integer ids"),
        ([[1, 2], [3]], "tokens=.*give integer ids"),
        (["a text", 3], "give one text"),
        ([], r"\(1, 0\)"),
        (torch.tensor(3), r"\(\)"),
        (IDS[None], r"\(1, 2, 8\)"),
        (IDS - 99, "token id -9"),
        (IDS + 99, "outside this model's vocabulary"),
        (np.array(["x"], dtype=object), "tokens=ndarray"),
    ],
)
def test_what_is_no_ids_is_refused(model, tokens, says):
    with pytest.raises(InputError, match=says):
        model(tokens)


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (torch.tensor([[1, 1, 1, 1, 2, 2, 2, 2]] * 2), r"holds 2 \(torch.int64\).*packed"),
        (torch.where(ALONE == 0, -1e9, 0.0), r"additive"),
        (torch.zeros(2, 8), r"holds only 0.0 \(torch.float32\).*additive"),
        (ALONE * 0.5, r"holds 0.5"),
        (ALONE.float() * torch.nan, "holds nan"),
        (-ALONE, "holds -1"),
        (ALONE[:1], r"shape \(1, 8\)"),
        (ALONE.tolist(), "give a tensor"),
        ("x", "give a tensor"),
    ],
)
def test_what_is_no_mask_is_refused(model, mask, says):
    with pytest.raises(InputError, match=says):
        model(IDS, attention_mask=mask)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.int32, torch.uint8, torch.float32, torch.bfloat16])
def test_a_mask_of_any_type_hides_padding(model, dtype):
    with torch.no_grad():
        padded = model(IDS, attention_mask=ALONE.to(dtype))
        alone = model(IDS[:1, 3:])
    torch.testing.assert_close(padded[0, 3:], alone[0], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("positions", "says"),
    [
        ("x", "position_ids='x'"),
        (torch.arange(8.0), "torch.float32"),
        (torch.arange(8) > 3, "torch.bool"),
        (torch.arange(8).to(torch.complex64), "torch.complex64"),
        (torch.arange(8) - 1, "from -1"),
        (torch.arange(7), r"shape \(7,\)"),
        (torch.tensor([0, 1, 2, 4, 0, 1, 2, 3]), "go from 4 to 0 inside row 0.*from 2 to 4 inside row 0"),
    ],
)
def test_what_are_no_positions_is_refused(model, positions, says):
    with pytest.raises(InputError, match=says):
        model(IDS, position_ids=positions)


@pytest.mark.parametrize(
    ("positions", "says"),
    [
        (torch.tensor([0, 1, 2, 3, 0, 1, 2, 3]), "go from 3 to 0 inside row 0.*attention_mask out"),
        (torch.stack([torch.arange(8), torch.arange(8) // 5 * -4 + torch.arange(8)]), "go from 4 to 1 inside row 1"),
    ],
)
def test_packed_documents_beside_a_mask_are_refused(model, positions, says):
    with pytest.raises(InputError, match=says):
        model(IDS, position_ids=positions, attention_mask=torch.ones_like(IDS))


def test_positions_of_padding_may_be_anything(model):
    given = (ALONE.cumsum(-1) - 1).masked_fill(ALONE == 0, 1)
    with torch.no_grad():
        ours = model(IDS, attention_mask=ALONE, position_ids=given)
        alone = model(IDS[:1, 3:])
    torch.testing.assert_close(ours[0, 3:], alone[0], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("return_type", ["loss", "both"])
def test_no_loss_where_no_token_is_predicted(model, return_type):
    with pytest.raises(InputError, match="no loss"):
        model(IDS[:, :1], return_type=return_type)
    lonely = torch.zeros_like(IDS).index_fill(1, torch.tensor([7]), 1)
    with pytest.raises(InputError, match="no loss"):
        model(IDS, return_type=return_type, attention_mask=lonely)
    assert model.loss_per_token(IDS[:, :1]).shape == (2, 0)


@pytest.mark.parametrize("window", ["x", 1.5, {}, (1, 2, 3, 4, 5)])
def test_a_slice_that_is_none_is_refused(model, window):
    with pytest.raises(InputError, match="pos_slice="):
        model.run_with_cache(IDS, pos_slice=window)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda model: model.embed_tokens("the"), "tokens="),
        (lambda model: model.embed_tokens(torch.tensor([[99]])), "outside this model's vocabulary"),
        (lambda model: model.embed_tokens(torch.ones(1, 3)), "tokens="),
        (lambda model: model.context(None), "tokens=None"),
        (lambda model: model.context(torch.ones(1, 3, dtype=torch.long), rope_length=0), "rope_length=0"),
        (lambda model: model.unembed_residual(torch.ones(1, 3, 5)), "resid="),
        (lambda model: model.unembed_residual(torch.ones(1, 3, 32, dtype=torch.float64)), "resid="),
        (
            lambda model: model.residual_loss(torch.ones(1, 3, 32), torch.ones(1, 4, dtype=torch.long)),
            "one vector each",
        ),
        (lambda model: model.logit_bias(99), "ids go from 0 to 60"),
        (lambda model: model.tokens_to_residual_directions(1.5), "tokens="),
        (lambda model: model.accumulated_bias(3), "layer=3"),
        (lambda model: model.accumulated_bias(1, mlp_input=1), "mlp_input=1"),
        (lambda model: model.attention_steps(0, "x"), "tensor='x'"),
        (lambda model: model.attention_spec(1.0), r"layer=1\.0"),
        (lambda model: model(torch.ones(1, 3, dtype=torch.long), return_type=["logits"]), "return_type"),
        (lambda model: model(torch.ones(1, 3, dtype=torch.long), loss_per_token=1), "loss_per_token=1"),
        (lambda model: model.run_with_hooks(torch.ones(1, 3), fwd_hooks=[None]), "fwd_hooks=None"),
        (lambda model: model.run_with_hooks(torch.ones(1, 3), fwd_hooks=torch.tensor(1)), "fwd_hooks="),
        (lambda model: model.add_hook("blocks.0.hook_resid_pre", print, level="x"), "level='x'"),
        (lambda model: model.add_hook("blocks.0.hook_resid_pre", print, is_permanent=2), "is_permanent=2"),
        (lambda model: model.run_with_cache(torch.ones(1, 3, dtype=torch.long), names_filter=3), "names_filter=3"),
        (lambda model: model.run_with_cache(torch.ones(1, 3, dtype=torch.long), pos_slice=True), "pos_slice=True"),
        (lambda model: model.run_with_cache(torch.ones(1, 3, dtype=torch.long), pos_slice=9), "no such position"),
        (lambda model: model.run_with_cache(IDS, pos_slice=slice(0, 5, 0)), r"pos_slice=slice\(0, 5, 0\)"),
        (lambda model: model.run_with_cache(IDS, pos_slice=(5, 0, -1)), r"pos_slice=\(5, 0, -1\)"),
        (lambda model: model.run_with_cache(IDS, pos_slice=[slice(0, 5)]), r"pos_slice=\[slice"),
    ],
)
def test_what_a_method_is_given_is_named(ask, said):
    with pytest.raises(RopescopeError, match=said):
        ask(tiny_model())


def test_one_id_of_any_whole_kind_and_none_at_all():
    model = tiny_model()
    expected = model.unembed.weight[7]
    for token in (7, torch.tensor(7), np.int64(7), [7]):
        assert torch.equal(model.tokens_to_residual_directions(token), expected)
    assert model.tokens_to_residual_directions(torch.tensor([], dtype=torch.long)).shape == (0, 32)
