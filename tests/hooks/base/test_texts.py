"""Several texts at once: padding, its mask, what each text gives alone; conversations; native and attached alike."""

import warnings

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from hooks import HookedTransformer, KeyValueCache
from hooks.errors import InputError, TokenizerError, TokenizerWarning
from tests.support.tiny import CLASSES, tiny_model

TEXTS = ["w5 w6 w7 w8 w9 w10 w11 w12 w13 w14", "w20 w21 w22", "w30 w31 w32 w33 w34 w35"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    " w40 {{ m.content }} w41{% endfor %}{% if add_generation_prompt %} w42{% endif %}"
)


def tokenizer(*, bos=True, **more):
    """Words w4 … w96 are 4 … 96; 1 is BOS, put in front, 2 EOS, 3 padding."""
    special = ["<unk>", "<bos>", "<eos>", "<pad>"]
    words = special + [f"w{i}" for i in range(len(special), 97)]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    given = {"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"} | more
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, **{name: token for name, token in given.items() if token is not None}
    )


def ways(family, **more):
    """The same model, native and attached, that reads words."""
    foreign = tiny_model(family, **more)
    for make in (lambda: HookedTransformer.from_pretrained(foreign), lambda: HookedTransformer.attach(foreign)):
        model = make()
        model.tokenizer = tokenizer()
        model.cfg.default_prepend_bos = model.cfg.tokenizer_prepends_bos = True
        yield model
        if hasattr(model, "detach"):
            model.detach()


@pytest.fixture(params=["native", "attached"])
def model(request):
    pair = ways("gemma3_text")
    native = next(pair)
    yield native if request.param == "native" else next(pair)
    pair.close()


@pytest.mark.parametrize("side", ["left", "right", None])
@pytest.mark.parametrize("prepend_bos", [True, False])
def test_ids_and_mask_are_those_of_the_tokenizer(model, side, prepend_bos):
    theirs = tokenizer(bos=prepend_bos, padding_side="left")
    want = theirs(TEXTS, padding=True, return_tensors="pt", **({} if side is None else {"padding_side": side}))
    model.tokenizer = tokenizer(padding_side="left")
    ids, mask = model.to_batch(TEXTS, prepend_bos, side)
    assert torch.equal(ids, want["input_ids"]) and torch.equal(mask, want["attention_mask"])
    assert torch.equal(model.to_tokens(TEXTS, prepend_bos, padding_side=side), ids)
    assert torch.equal(model.to_tokens(TEXTS[1:2], prepend_bos, side), ids[1:2][mask[1:2] == 1][None])


def test_a_text_is_cut_only_where_that_is_asked_for(model):
    long = " ".join(["w9"] * 100)
    assert model.to_tokens(long).shape == (1, 101)
    cut = model.to_tokens([long, "w5"], truncate=True)
    assert cut.shape == (2, model.cfg.n_ctx) and cut[0, :2].tolist() == [1, 9]
    with pytest.raises(InputError, match="truncate=1: give True or False"):
        model.to_tokens(long, truncate=1)


def test_what_cannot_be_padded(model):
    with pytest.raises(InputError, match="padding_side='both'"):
        model.to_tokens(TEXTS, padding_side="both")
    with pytest.raises(InputError, match="text 1 of 2 has no tokens"):
        model.to_tokens(["w5", ""], prepend_bos=False)
    with pytest.raises(InputError, match="text=\\['w5', 5\\]"):
        model.to_tokens(["w5", 5])
    model.tokenizer = tokenizer(pad_token=None)
    assert model.to_tokens(["w5", "w6 w7"], padding_side="right")[0].tolist() == [1, 5, 2]
    model.tokenizer = tokenizer(pad_token=None, eos_token=None)
    with pytest.raises(TokenizerError, match="neither a padding nor an EOS token"):
        model.to_tokens(["w5", "w6 w7"])


def alone(foreign, ids):
    """transformers' logits of one text, and the loss of each of its tokens after the first, in float64."""
    logits = foreign(ids, use_cache=False).logits[0]
    return logits, functional.cross_entropy(logits[:-1].double(), ids[0, 1:], reduction="none")


def close(got, expected):
    assert float((got - expected).abs().max()) < 1e-5 * float(expected.max() - expected.min())


@pytest.mark.parametrize("family", CLASSES)
@torch.no_grad()
def test_a_padded_batch_is_each_text_alone(family):
    foreign = tiny_model(family)
    for model in ways(family):
        rows = [model.to_tokens(text) for text in TEXTS]
        want = [alone(foreign, row) for row in rows]
        for side in ("left", "right"):
            model.tokenizer.padding_side = side
            ids, mask = model.to_batch(TEXTS)
            logits, nll = model(TEXTS), model.loss_per_token(TEXTS)
            assert torch.equal(logits, model(ids, attention_mask=mask))
            both, mean = model(TEXTS, return_type="both")
            assert torch.equal(both, logits)
            predicted = (mask[:, 1:] * mask[:, :-1]) == 1
            assert torch.equal(nll.isnan(), ~predicted)
            for row, (their_logits, their_nll) in enumerate(want):
                close(logits[row][mask[row] == 1], their_logits)
                torch.testing.assert_close(nll[row][predicted[row]].double(), their_nll, rtol=1e-5, atol=1e-5)
            every = torch.cat([found for _, found in want]).mean()
            torch.testing.assert_close(mean.double(), every, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(model(TEXTS, return_type="loss"), mean)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_what_a_hook_sees_of_a_padded_batch_is_what_it_sees_of_each_text(model, side):
    model.tokenizer.padding_side = side
    names = ["hook_q", "hook_k", "hook_rot_q", "hook_rot_k", "hook_v", "hook_z", "hook_pattern"]
    filters = [f"blocks.*.attn.{name}" for name in names]
    _, batch = model.run_with_cache(TEXTS, names_filter=filters)
    _, mask = model.to_batch(TEXTS)
    for row, text in enumerate(TEXTS):
        real = mask[row] == 1
        _, one = model.run_with_cache(text, names_filter=filters)
        for name, expected in one.items():
            got = batch[name][row]
            got = got[:, real][:, :, real] if name.endswith("pattern") else got[real]
            close(got, expected[0])
    zero = model.run_with_hooks(TEXTS, fwd_hooks=[("blocks.1.hook_resid_pre", lambda x, hook: x * 0)])
    assert zero.shape == (3, 11, 97)


@torch.no_grad()
def test_what_is_written_after_texts_of_unequal_length_is_what_is_written_after_each(model):
    for text, got in zip(TEXTS, model.generate(TEXTS, 5, stop_at_eos=False, return_type="tokens"), strict=True):
        one = model.generate(text, 5, stop_at_eos=False, return_type="tokens")[0]
        assert torch.equal(got[-len(one) :], one), "padded on the left, whatever the tokenizer's side"
    words = model.generate(TEXTS, 5, stop_at_eos=False)
    assert words == [model.generate(text, 5, stop_at_eos=False) for text in TEXTS]


@torch.no_grad()
def test_a_text_that_goes_on_gets_no_second_bos(model):
    past = KeyValueCache(model)
    model("w5 w6", past=past)
    got = model("w7 w8", past=past)
    close(got, model("w5 w6 w7 w8")[:, -2:])
    past = KeyValueCache(model)
    model("w5 w6", past=past)
    written = model.generate("w7 w8", 4, past=past, stop_at_eos=False, return_type="tokens")
    whole = model.generate("w5 w6 w7 w8", 4, stop_at_eos=False, return_type="tokens")
    assert torch.equal(written, whole[:, 3:])


def test_padding_without_a_mask_is_said(model):
    ids, mask = model.to_batch(TEXTS)
    with pytest.warns(TokenizerWarning, match="begin or end with the padding token '<pad>'"):
        model(ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(ids, attention_mask=mask)
        model(TEXTS)
        model(torch.tensor([[1, 5, 3, 6]]))  # in the middle of a text it is a word of it
        model.tokenizer = tokenizer(pad_token="<eos>")
        model(torch.tensor([[1, 5, 2]]))  # EOS, which ends a text
    with pytest.raises(InputError, match="texts of unequal length bring their own padding"):
        model(TEXTS, attention_mask=mask)
    equal = ["w5 w6", "w7 w8"]
    one = torch.tensor([[1, 1, 1], [1, 1, 0]])
    torch.testing.assert_close(model(equal, attention_mask=one), model(model.to_tokens(equal), attention_mask=one))


def test_strings_of_several_texts(model):
    assert model.to_str_tokens(TEXTS[1:], prepend_bos=False) == [text.split() for text in TEXTS[1:]]
    assert model.to_string([[5, 6, 7], torch.tensor([8])]) == ["w5 w6 w7", "w8"]
    assert model.to_string(model.to_tokens(["w5 w6", "w7 w8"])) == ["<bos> w5 w6", "<bos> w7 w8"]


@pytest.mark.parametrize(("side", "first", "last"), [("right", [1, 2], [1, 4]), ("left", [3, 2], [3, 4])])
def test_where_a_token_stands_in_each_of_several_texts(model, side, first, last):
    texts = ["w9 w8", "w7 w9 <pad> w9"]
    ids = model.to_tokens(texts, padding_side=side)
    for mode, want in (("first", first), ("last", last)):
        found = model.get_token_position("w9", texts, mode, padding_side=side)
        assert found == want
        assert all(int(row[at]) == 9 for row, at in zip(ids, found, strict=True))
    assert model.get_token_position(9, texts, prepend_bos=False, padding_side="right") == [0, 1]
    with pytest.raises(InputError, match="token '<pad>' is not among the 3 tokens of text 0"):
        model.get_token_position("<pad>", texts, padding_side=side)


TALK = [{"role": "user", "content": "w50 w51"}, {"role": "assistant", "content": "w60"}]


@pytest.mark.parametrize("going_on", [True, False])
def test_a_conversation_is_what_its_template_writes_with_one_bos(model, going_on):
    model.tokenizer.chat_template = TEMPLATE
    ids = model.chat(TALK, add_generation_prompt=going_on)
    assert ids.tolist() == [[1, 40, 50, 51, 41, 40, 60, 41, *[42] * going_on]]
    text = model.tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=going_on)
    assert torch.equal(model.to_tokens(text, prepend_bos=False), ids)
    assert model(ids).shape == (1, ids.shape[1], 97)


def test_what_is_no_conversation(model):
    with pytest.raises(TokenizerError, match="no chat template"):
        model.chat(TALK)
    model.tokenizer.chat_template = TEMPLATE
    for wrong in ([], "w5", ["w5"], TALK[0], [TALK], [{"content": "w5"}], None, torch.ones(2)):
        with pytest.raises(InputError, match="give one conversation"):
            model.chat(wrong)
    with pytest.raises(InputError, match="template refuses them: no tools"):
        model.chat([{"role": "tool", "content": "w5"}])
    with pytest.raises(InputError, match="add_generation_prompt=1"):
        model.chat(TALK, add_generation_prompt=1)
    model.tokenizer = None
    for call in (lambda: model.chat(TALK), lambda: model(TEXTS), lambda: model.to_batch(TEXTS)):
        with pytest.raises(TokenizerError, match="has no tokenizer"):
            call()


@pytest.mark.slow
def test_the_chat_of_a_real_model_is_that_of_its_tokenizer():
    model = HookedTransformer.from_pretrained("smollm2-135m")
    talk = [{"role": "user", "content": "Who wrote Middlemarch?"}]
    want = model.tokenizer(model.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True))
    assert model.chat(talk)[0].tolist() == want["input_ids"]
    with pytest.raises(TokenizerError, match="no chat template"):
        HookedTransformer.from_pretrained("gemma3-270m").chat(talk)


def test_a_past_a_generator_and_a_tokenizer_that_cannot_serve_are_named(model):
    for wrong in ("x", [], 3, torch.ones(2)):
        with pytest.raises(InputError, match=r"past=.*: give a KeyValueCache"):
            model(TEXTS, past=wrong)
        with pytest.raises(InputError, match=r"generator=.*: give a torch.Generator"):
            model.generate("w5", temperature=1.0, generator=wrong)
    with pytest.raises(TokenizerError, match="cannot look for strings in the tokens of this tokenizer"):
        model.generate("w5 w6", stop="w7")  # words without the spaces between them
