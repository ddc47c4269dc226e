"""Generation and reading in parts against transformers: every family, native and attached, windows crossed."""

from contextlib import nullcontext

import pytest
import torch

from hooks import HookedTransformer, KeyValueCache
from hooks.errors import AttachError, InputError
from tests.support.tiny import CLASSES, tiny_model, tokens
from tests.support.tiny_foreign import FOREIGN, foreign_model, foreign_tokens

NEW = 9  # with prompts of 12 tokens, well past the windows of 5 and 7
LENGTHS = (12, 9, 5)
FAMILIES = [*CLASSES, *FOREIGN]
_MODELS = {}


def loaded(name):
    if name not in _MODELS:
        _MODELS[name] = tiny_model(name) if name in CLASSES else foreign_model(name)
    return _MODELS[name]


def ways(name):
    """The same model, native where the family has a row, and attached."""
    if name in CLASSES:
        yield HookedTransformer.from_pretrained(loaded(name))
    with HookedTransformer.attach(loaded(name)) as attached:
        yield attached


def prompts(name):
    """Three rows of unequal length, padded on the left, and their mask."""
    ids = tokens(12, batch=3) if name in CLASSES else foreign_tokens(12, batch=3)
    mask = torch.stack([(torch.arange(12) >= 12 - length).long() for length in LENGTHS])
    return ids * mask, mask


def theirs(name, ids, mask):
    """Greedy tokens and the logits of every step, from transformers' own generate."""
    out = loaded(name).generate(
        ids,
        attention_mask=mask,
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return out.sequences, torch.stack(out.logits, 1)


def close(got, expected, within=1e-5):
    got, expected = got.detach(), expected.detach()
    assert float((got - expected).abs().max()) < within * float(expected.max() - expected.min())


def agree_where_clear(got, expected, logits):
    """The same tokens up to the first step of each row whose two best logits are nearer than 1e-3."""
    best = logits.topk(2, dim=-1).values
    clear = ((best[..., 0] - best[..., 1]) > 1e-3).cumprod(1).bool()
    assert bool(clear.any())
    assert torch.equal(got[:, -NEW:][clear], expected[:, -NEW:][clear])


@pytest.mark.parametrize("name", FAMILIES)
def test_steps_of_a_batch_padded_on_the_left_are_those_of_transformers(name):
    ids, mask = prompts(name)
    sequences, logits = theirs(name, ids, mask)
    whole = torch.cat([mask, mask.new_ones(3, NEW)], 1)
    with torch.no_grad():
        for model in ways(name):
            past, read = KeyValueCache(model), 0
            for step in range(NEW):
                stop = 12 + step
                got = model(sequences[:, read:stop], attention_mask=whole[:, read:stop], past=past)[:, -1]
                close(got, logits[:, step])
                again = model(sequences[:, :stop], attention_mask=whole[:, :stop])[:, -1]
                close(again, logits[:, step])
                read = stop
            for cached in (True, False):
                got = model.generate(ids, NEW, attention_mask=mask, use_past_kv_cache=cached, stop_at_eos=False)
                assert torch.equal(got[:, :12], ids)
                agree_where_clear(got, sequences, logits)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [1, 5, 8])
def test_reading_in_parts_is_reading_at_once(name, size):
    ids = tokens(23) if name in CLASSES else foreign_tokens(23)
    with torch.no_grad():
        expected = loaded(name)(ids, use_cache=False).logits
        for model in ways(name):
            past = KeyValueCache(model)
            parts = [model(part, past=past) for part in ids.split(size, dim=1)]
            close(torch.cat(parts, 1), expected)
            assert len(past) == 23
            assert torch.equal(past.positions, torch.arange(23).expand(2, -1))


@pytest.mark.parametrize(
    ("name", "kind", "n"),
    [
        ("llama", "dynamic", 60),  # dynamic changes with every token past 64
        ("hunyuan_v1_dense", "dynamic", 60),
        ("llama", "longrope", 12),  # longrope changes once, past 16
        ("phi3", "longrope", 12),
    ],
)
def test_a_schedule_that_adapts_to_the_length_is_that_of_the_whole_text_at_every_step(name, kind, n):
    ids, n_new = tokens(n, batch=1), 8
    with torch.no_grad():
        for _ in range(n_new):
            fresh = tiny_model(name, rope_type=kind)  # transformers keeps the frequencies of longer texts
            ids = torch.cat([ids, fresh(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        model = HookedTransformer.from_pretrained(tiny_model(name, rope_type=kind))
        with pytest.warns(match="beyond the 64") if n == 60 else nullcontext():
            assert torch.equal(model.generate(ids[:, :n], n_new), ids)
        with HookedTransformer.attach(tiny_model(name, rope_type=kind)) as attached:
            proven = attached.cfg.rope is not None
            assert torch.equal(attached.generate(ids[:, :n], n_new, use_past_kv_cache=proven), ids)
            if not proven:
                with pytest.raises(AttachError, match="go stale unseen; use_past_kv_cache=False"):
                    KeyValueCache(attached)


@pytest.mark.parametrize("native", [True, False])
def test_parts_of_a_text_whose_frequencies_differ_are_refused(native):
    model, ids = tiny_model("llama", rope_type="longrope"), tokens(20)
    model = HookedTransformer.from_pretrained(model) if native else HookedTransformer.attach(model)
    past = KeyValueCache(model)
    model(ids[:, :10], past=past)
    with pytest.raises(InputError, match="frequencies of a text of 10 tokens, and those of 20 are others"):
        model(ids[:, 10:], past=past)
    if native:
        past, expected = KeyValueCache(model), model(ids)
        parts = [model(part, past=past, rope_length=20) for part in ids.split(10, dim=1)]
        close(torch.cat(parts, 1), expected)


@pytest.mark.parametrize(("name", "window"), [("gemma3_text", 7), ("mistral", 7), ("llama", None)])
def test_the_memory_of_a_cache_is_as_computed(name, window):
    for model in ways(name):
        past = KeyValueCache(model)
        for size in (9, 1, 6):
            model(tokens(size), past=past)
            kept = [len(past) if model.cfg.window(i) is None else min(len(past), window - 1) for i in range(3)]
            assert past.nbytes == sum(2 * 2 * n * 2 * 32 * 4 for n in kept)
            held = {
                t.untyped_storage().data_ptr(): t.untyped_storage()
                for x in past.layers.layers
                for t in (x.keys, x.values)
            }
            assert sum(s.nbytes() for s in held.values()) <= 2 * past.nbytes
