"""One BOS, whoever brings it."""

import warnings

import pytest
import torch
from tiny_hooked import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hooks.errors import InputError, TokenizerError, TokenizerWarning
from hooks.loading.tokenizers import prepends_bos

WORDS = {"<bos>": 0, "a": 1, "b": 2, "<unk>": 3}


def tokenizer(*, adds):
    """A tokenizer of words that puts <bos> in front by itself, or does not."""
    inner = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if adds:
        inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", unk_token="<unk>")


@pytest.fixture
def model():
    return tiny_model()


@pytest.mark.parametrize(
    ("adds", "prepend_bos", "text", "expected", "warned"),
    [
        (True, None, "a b", [0, 1, 2], False),
        (True, None, "<bos> a", [0, 1], True),
        (True, None, "<bos> <bos> a", [0, 0, 1], True),
        (True, False, "<bos> a", [0, 1], False),
        (True, False, "a", [1], False),
        (True, True, "a", [0, 1], False),
        (True, True, "<bos> a", [0, 1], True),
        (False, None, "<bos> a", [0, 1], False),
        (False, None, "<bos> <bos> <bos> a", [0, 0, 0, 1], False),
        (False, None, "a", [1], False),
        (False, True, "<bos> a", [0, 1], True),
        (False, True, "a", [0, 1], False),
    ],
)
def test_one_bos(model, adds, prepend_bos, text, expected, warned):
    model.tokenizer = tokenizer(adds=adds)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert model.to_tokens(text, prepend_bos)[0].tolist() == expected
    assert [w.category for w in said] == [TokenizerWarning] * warned


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("default", [True, False])
def test_a_default_that_was_set_counts(model, adds, default):
    model.tokenizer = tokenizer(adds=adds)
    model.cfg.tokenizer_prepends_bos = adds
    model.cfg.default_prepend_bos = default
    assert model.to_tokens("a")[0].tolist() == ([0, 1] if default else [1])


@pytest.mark.parametrize("adds", [True, False])
def test_what_a_tokenizer_adds_is_found_out(adds):
    assert prepends_bos(tokenizer(adds=adds)) is adds


def test_a_tokenizer_without_bos(model):
    model.tokenizer = tokenizer(adds=False)
    model.tokenizer.bos_token = None
    with pytest.raises(TokenizerError, match="no BOS token"):
        model.to_tokens("a", prepend_bos=True)
    assert torch.equal(model.to_tokens("<bos> a"), torch.tensor([[0, 1]]))


def test_where_a_token_stands(model):
    model.tokenizer = tokenizer(adds=True)
    assert model.get_token_position("b", "a b a b") == 2
    assert model.get_token_position("b", "a b a b", mode="last") == 4
    assert model.get_token_position(1, "a b a b", prepend_bos=False) == 0
    ids = torch.tensor([2, 1, 2])
    assert model.get_token_position(2, ids, "last") == model.get_token_position("b", ids[None], "last") == 2
    with pytest.raises(InputError, match="token '<bos>' is not among the 3 tokens"):
        model.get_token_position("<bos>", ids)
    with pytest.raises(InputError, match="one text, not in a batch"):
        model.get_token_position(2, ids.expand(2, -1))
    with pytest.raises(InputError, match="mode='second'"):
        model.get_token_position(2, ids, "second")
    with pytest.raises(TokenizerError, match="2 tokens"):
        model.get_token_position("a b", ids)
