"""What generate takes and gives: draws, stops, text, streams, caches that go on, and what is refused."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hooks import HookedTransformer, KeyValueCache
from hooks.errors import InputError, TokenizerError
from tests.support.tiny import tiny_model, tokens
from tests.support.tiny_hooked import tiny_model as tiny_hooked

WORDS = ["<pad>", "<eos>", "Ġ", *(chr(code) for code in range(33, 127))]  # GPT-2's bytes, one a token


@pytest.fixture(scope="module")
def foreign():
    return tiny_model("gemma3_text")


@pytest.fixture(scope="module")
def tokenizer():
    inner = Tokenizer(models.BPE({word: i for i, word in enumerate(WORDS)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture(params=["native", "attached"])
def model(request, foreign, tokenizer):
    if request.param == "native":
        made = HookedTransformer.from_pretrained(foreign)
        made.tokenizer = tokenizer
        yield made
        return
    with HookedTransformer.attach(foreign, tokenizer) as attached:
        yield attached


@pytest.mark.parametrize("draw", [{"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.6}, {"top_k": 9, "top_p": 0.8}])
def test_draws_are_those_of_transformers(model, foreign, draw):
    ids, settings = tokens(8), {"temperature": 1.3, **draw}
    torch.manual_seed(5)
    expected = foreign.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=10,
        do_sample=True,
        pad_token_id=0,
        eos_token_id=None,
        **{"top_k": 0, "top_p": 1.0, **settings},
    )
    generator = torch.Generator().manual_seed(5)
    before = torch.get_rng_state()
    got = model.generate(ids, 10, generator=generator, stop_at_eos=False, **settings)
    assert torch.equal(got, expected)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert torch.equal(model.generate(ids, 10, stop_at_eos=False, **settings), expected)


def test_a_row_stops_at_its_string_and_is_filled_up(model, foreign, tokenizer):
    ids = tokens(8)
    free = model.generate(ids, 12, stop_at_eos=False)
    stop = WORDS[free[0, 11]]  # row 0 completes it with its fourth new token, or before
    at = [next((i for i in range(8, 20) if WORDS[row[i]] == stop), 99) for row in free]
    got = model.generate(ids, 12, stop=stop)
    theirs = foreign.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=12,
        do_sample=False,
        stop_strings=[stop],
        tokenizer=tokenizer,
        pad_token_id=0,
        eos_token_id=1,  # without one, transformers lets finished rows go on
    )
    assert torch.equal(got, theirs)
    for row, end in enumerate(at):
        assert torch.equal(got[row, : end + 1], free[row, : got.shape[1]][: end + 1])
        assert not got[row, end + 1 :].any()
    assert torch.equal(model.generate(ids, 12, eos_token_id=int(free[0, 11])), got)


def test_a_finished_row_is_padding_to_what_comes_after(model):
    ids = tokens(8)
    free = model.generate(ids, 12, stop_at_eos=False)
    seen = []
    with model.hooks(
        fwd_hooks=[("blocks.0.attn.hook_pattern", lambda p, hook: seen.append(hook.ctx["query_positions"].clone()))]
    ):
        got = model.generate(ids, 12, eos_token_id=int(free[0, 9]))
    ends = [next((i for i in range(8, 20) if row[i] == free[0, 9]), 19) for row in got]
    for step, at in enumerate(seen[1:], start=8):
        for row, end in enumerate(ends):
            assert at.expand(2, 1)[row].tolist() == [min(step, end)]


def test_text_in_text_out(model, tokenizer):
    text = "b1 "
    ids = model.to_tokens(text)
    out = model.generate(text, 5, stop_at_eos=False)
    new = model.generate(ids, 5, stop_at_eos=False)
    assert isinstance(out, str)
    assert out == tokenizer.decode(new[0], skip_special_tokens=True)
    assert model.generate(ids, 5, stop_at_eos=False, return_type="str") == out
    assert torch.equal(model.generate(text, 5, stop_at_eos=False, return_type="tokens"), new)
    two = torch.cat([tokens(3, batch=1, seed=4), ids])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    texts = model.generate(two, 5, attention_mask=mask, stop_at_eos=False, return_type="str")
    assert texts == [model.generate(two[:1, 1:], 5, stop_at_eos=False, return_type="str"), out]
    assert model.generate([text, text], 5, stop_at_eos=False) == [out, out]


def test_a_stream_yields_each_token_when_it_is_chosen(model):
    ids, passes = tokens(6), []
    stream = model.generate_stream(ids, 5, stop_at_eos=False)
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda x, hook: passes.append(x.shape[1]))]):
        first = next(stream)
        assert passes == [6]
        rest = list(stream)
    assert passes == [6, 1, 1, 1, 1]
    assert torch.equal(torch.cat([ids, first, *rest], 1), model.generate(ids, 5, stop_at_eos=False))
    assert torch.is_grad_enabled()


def test_one_prefix_serves_many_continuations(model):
    prefix, questions = tokens(9, batch=1), [tokens(3, batch=1, seed=s) for s in (2, 3)]
    past = KeyValueCache(model)
    model(prefix, past=past)
    for question in questions:
        own = past.copy()
        got = model.generate(question, 4, past=own, stop_at_eos=False)
        expected = model.generate(torch.cat([prefix, question], 1), 4, stop_at_eos=False)
        assert torch.equal(got, expected[:, 9:])
        assert len(own) == 9 + 3 + 3
        assert torch.equal(
            model.generate(got[:, -1:], 2, past=own, stop_at_eos=False)[:, 1:],
            model.generate(expected, 2, stop_at_eos=False)[:, -2:],
        )
    assert len(past) == 9


def test_gradients_flow_through_what_was_read_before(model):
    ids = tokens(10)
    parameters = list((model if isinstance(model, HookedTransformer) else model.original_model).parameters())
    whole = torch.autograd.grad(model(ids)[:, -1].square().sum(), parameters)
    past = KeyValueCache(model)
    model(ids[:, :4], past=past), model(ids[:, 4:9], past=past)
    parts = torch.autograd.grad(model(ids[:, 9:], past=past)[:, -1].square().sum(), parameters)
    for one, other in zip(parts, whole, strict=True):
        assert float((one - other).abs().max()) <= 1e-4 * float(other.abs().max())


def test_positions_count_on_from_where_they_were(model):
    ids, at = tokens(10), torch.arange(30, 40).expand(2, -1)
    past, expected = KeyValueCache(model), model(ids, position_ids=at)
    parts = [model(ids[:, :4], past=past, position_ids=at[:, :4]), model(ids[:, 4:], past=past)]
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(past.positions, at)
    gaps = at.clone()
    gaps[:, 6:] += 5
    past = KeyValueCache(model)
    seen = []
    with model.hooks(
        fwd_hooks=[("blocks.*.attn.hook_pattern", lambda p, hook: seen.append(hook.ctx["key_positions"].tolist()))]
    ):
        for part in (slice(0, 4), slice(4, 7), slice(7, 10)):
            model(ids[:, part], past=past, position_ids=gaps[:, part])
    assert seen[-2][-10:] in (gaps[0].tolist()[-len(seen[-2]) :], gaps[0].tolist())
    with pytest.raises(InputError, match="they must rise from"):
        model(ids, past=past, position_ids=torch.arange(10))
    with pytest.raises(InputError, match="packed documents cannot be kept in a cache"):
        model(ids, past=KeyValueCache(model), position_ids=torch.arange(10) % 5)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"top_k": 5}, "top_k=5 changes nothing"),
        ({"top_p": 0.5}, r"top_p=0\.5 changes nothing"),
        ({"generator": torch.Generator()}, "generator=.* changes nothing"),
        ({"temperature": -1}, "temperature=-1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": 1, "top_k": 0}, "top_k=0"),
        ({"temperature": 1, "top_k": 2.5}, r"top_k=2\.5"),
        ({"temperature": 1, "top_p": 0}, "top_p=0"),
        ({"temperature": 1, "top_p": 1.5}, r"top_p=1\.5"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": True}, "max_new_tokens=True"),
        ({"stop": ""}, "stop="),
        ({"stop": []}, "stop is empty"),
        ({"stop": [3]}, "stop="),
        ({"eos_token_id": 97}, "eos_token_id=97"),
        ({"return_type": "text"}, "return_type='text'"),
        ({"use_past_kv_cache": 1}, "use_past_kv_cache=1"),
        ({"attention_mask": torch.tensor([[1] * 7 + [0]] * 2)}, "pad on the left"),
        ({"attention_mask": torch.tensor([[0, 1, 0, 1, 1, 1, 1, 1]] * 2)}, "pad on the left"),
        ({"attention_mask": torch.tensor([[1] * 8, [0] * 8])}, "row 1 of attention_mask"),
        ({"attention_mask": torch.ones(2, 3)}, "attention_mask has shape"),
    ],
)
def test_settings_that_are_none_are_refused(model, settings, says):
    with pytest.raises(InputError, match=says):
        model.generate(tokens(8), **{"max_new_tokens": 3, **settings})


def test_a_cache_that_would_give_wrong_numbers_is_refused(model, foreign):
    ids = tokens(6)
    past = KeyValueCache(model)
    with pytest.raises(InputError, match="use_past_kv_cache=False reads all tokens again"):
        model.generate(ids, 3, past=past, use_past_kv_cache=False)
    model(ids, past=past)
    with pytest.raises(InputError, match="past holds a batch of 2, tokens have 1 rows"):
        model(ids[:1], past=past)
    with pytest.raises(InputError, match="past needs a pass through all 3 layers"):
        model(ids, past=past, stop_at_layer=2)
    other = HookedTransformer.from_pretrained(foreign)
    with pytest.raises(InputError, match="past was made for another model"):
        other(ids, past=past)

    def fail(x, hook):
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        model.run_with_hooks(ids, past=past, fwd_hooks=[("blocks.1.attn.hook_z", fail)])
    with pytest.raises(InputError, match="the rest of a pass that failed"):
        model(ids, past=past)


def test_text_needs_a_tokenizer():
    model = tiny_hooked(n_ctx=64)
    with pytest.raises(TokenizerError, match=r"stop='\.' needs a tokenizer"):
        model.generate(tokens(4, vocab=61), 3, stop=".")
    with pytest.raises(TokenizerError, match="no tokenizer"):
        model.generate("a", 3)
    with pytest.raises(TokenizerError, match="no tokenizer"):
        model.generate(tokens(4, vocab=61), 3, return_type="str")


def test_a_model_that_looks_ahead_cannot_go_on():
    with pytest.raises(InputError, match="attends in both directions"):
        tiny_hooked(attention_dir="bidirectional").generate(tokens(4, vocab=61), 3)


def test_learned_sinks_alibi_and_a_window_of_one():
    for changes in ({"window_size": 1, "layer_types": ("sliding_attention", "full_attention")}, {"rope": None}):
        model = tiny_hooked(**changes)
        ids = tokens(15, vocab=61)
        past = KeyValueCache(model)
        parts = [model(part, past=past) for part in ids.split(4, dim=1)]
        torch.testing.assert_close(torch.cat(parts, 1), model(ids), rtol=1e-5, atol=1e-5)


def test_one_warning_when_a_text_passes_the_trained_length(recwarn):
    model = tiny_hooked(n_ctx=8)
    recwarn.clear()
    model.generate(tokens(6, vocab=61), 6)
    assert [str(w.message)[:10] for w in recwarn] == ["position 8"]


def test_a_model_whose_weights_are_streamed_generates_the_same(tmp_path, foreign):
    foreign.save_pretrained(tmp_path)
    held, streamed = (HookedTransformer.from_pretrained(str(tmp_path), stream=stream) for stream in (False, True))
    ids = tokens(9)
    assert torch.equal(streamed.generate(ids, 8), held.generate(ids, 8))
    with torch.no_grad():
        torch.testing.assert_close(streamed(ids, stop_at_layer=2), held(ids, stop_at_layer=2))
