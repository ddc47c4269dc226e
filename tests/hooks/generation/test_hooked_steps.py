"""Hooks in every step of generation: true positions, and what the same hooks do to the whole text."""

import pytest
import torch

from hooks import HookedTransformer, KeyValueCache, recipes
from interp import capture
from tests.support.tiny import CLASSES, tiny_model
from tests.support.tiny_foreign import foreign_model, foreign_tokens

NEW, LENGTHS = 9, (12, 9, 5)
RECIPES = {
    "remove_sink": recipes.remove_sink(2),
    "knock_out": recipes.knock_out(range(6, 40), [1, 3, 7, 11]),
    "limit_distance": recipes.limit_distance(3),
    "keep_top_k": recipes.keep_top_k(2),
    "boost_keys": recipes.boost_keys([2, 10], 3.0),
    "distance_temperature": recipes.distance_temperature(lambda distance: 1 + 0.3 * distance),
}
NAMES = ["gemma3_text", "llama", "mistral", "gptj", "mixtral", "gpt_oss"]


def ways(name):
    foreign = name not in CLASSES
    model = foreign_model(name) if foreign else tiny_model(name)
    if not foreign:
        yield HookedTransformer.from_pretrained(model)
    with HookedTransformer.attach(model) as attached:
        yield attached


def prompts():
    mask = torch.stack([(torch.arange(12) >= 12 - length).long() for length in LENGTHS])
    return foreign_tokens(12, batch=3) * mask, mask


def close(got, expected, within=1e-5):
    assert float((got - expected).abs().max()) < within * float(expected.max() - expected.min())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("point", ["hook_attn_scores_rows", "hook_attn_scores"])
def test_each_step_is_the_same_hooks_on_the_whole_text_again(name, recipe, point):
    ids, mask = prompts()
    hooks = [(f"blocks.*.attn.{point}", RECIPES[recipe])]
    with torch.no_grad():
        for model in ways(name):
            with model.hooks(fwd_hooks=hooks):
                out = model.generate(ids, NEW, attention_mask=mask, stop_at_eos=False)
                whole = torch.cat([mask, mask.new_ones(3, NEW)], 1)
                expected = model(out, attention_mask=whole)
                past, read = KeyValueCache(model), 0
                for stop in range(12, 12 + NEW):
                    got = model(out[:, read:stop], attention_mask=whole[:, read:stop], past=past)
                    close(got[:, -1], expected[:, stop - 1])
                    read = stop
            plain = model(out, attention_mask=whole)
            assert float((plain - expected)[:, 11:].abs().max()) > 1e-2, "the recipe changes something"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("point", ["hook_pattern_rows", "hook_pattern"])
def test_positions_in_every_step_are_those_in_the_text(name, point):
    ids, mask = prompts()
    for model in ways(name):
        seen = []

        def note(pattern, hook, seen=seen):
            seen.append((hook.ctx["query_positions"].clone(), hook.ctx["key_positions"].clone(), pattern.shape))

        with model.hooks(fwd_hooks=[(f"blocks.0.attn.{point}", note)]):
            model.generate(ids, NEW, attention_mask=mask, stop_at_eos=False)
        assert len(seen) == NEW
        window = model.attention_spec(0).window
        for step, (queries, keys, shape) in enumerate(seen[1:], start=1):
            for row, length in enumerate(LENGTHS):
                assert queries.expand(3, 1)[row].tolist() == [length + step - 1]
                n_keys = 12 + step if window is None else min(12 + step, window)
                expected = [max(length + step - n_keys + i, 0) for i in range(n_keys)]
                assert keys[row].tolist() == expected
            assert shape[2:] == (1, n_keys)


@pytest.mark.parametrize("name", ["gemma3_text", "mixtral"])
def test_patterns_and_tensors_of_a_text_read_in_parts_are_those_of_one_pass(name):
    ids, size = foreign_tokens(23), 5
    names = ["hook_q", "hook_k", "hook_v", "hook_z", "hook_rot_q", "hook_pattern"]
    with torch.no_grad():
        for model in ways(name):
            filters = [f"blocks.*.attn.{each}" for each in names] + ["blocks.*.hook_resid_post"]
            if not isinstance(model, HookedTransformer):
                filters = [each for each in filters if any(n in model.hook_names() for n in [each.replace("*", "0")])]
            _, whole = model.run_with_cache(ids, names_filter=filters)
            past, parts = KeyValueCache(model), []
            for part in ids.split(size, dim=1):
                parts.append(model.run_with_cache(part, past=past, names_filter=filters)[1])
            for key, expected in whole.items():
                if not key.endswith("hook_pattern"):
                    close(torch.cat([part[key] for part in parts], 1), expected)
                    continue
                for start, part in zip(range(0, 23, size), parts, strict=True):
                    block = part[key]
                    stop = start + block.shape[2]
                    rows = expected[:, :, start:stop, :stop]
                    close(block, rows[..., -block.shape[-1] :])
                    assert float(rows[..., : -block.shape[-1]].abs().sum()) == 0, "what was let go is not seen"


@pytest.mark.parametrize("name", ["gemma3_text", "mixtral"])
def test_a_generated_text_is_captured_as_any_other(name):
    ids = foreign_tokens(7, batch=1)
    for model in ways(name):
        out = model.generate(ids, 8, stop_at_eos=False)
        _, cache = model.run_with_cache(out, names_filter="blocks.0.attn.hook_rot_k")
        past, keys = KeyValueCache(model), []
        keep = ("blocks.0.attn.hook_rot_k", lambda k, hook, keys=keys: keys.append(k.clone()))
        with model.hooks(fwd_hooks=[keep]):
            assert torch.equal(model.generate(ids, 8, past=past, stop_at_eos=False), out)
        k = capture(model, out).k(0)
        close(k, cache["blocks.0.attn.hook_rot_k"][0])
        close(torch.cat(keys, 1)[0], k[:-1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tensor", ["k", "v"])
def test_an_edited_key_or_value_stays_edited(name, tensor):
    ids = foreign_tokens(10)
    for model in ways(name):
        point = model.registry.canonical(f"hook_{tensor}_final" if tensor == "k" else "hook_v", 0)

        def halve(x, hook):
            assert x.shape[1] in (10, 4, 3), "new tokens alone"
            return x * torch.where(torch.arange(x.shape[-1]) % 2 == 0, 0.5, 2.0)

        with torch.no_grad(), model.hooks(fwd_hooks=[(point, halve)]):
            past, expected = KeyValueCache(model), model(ids)
            parts = [model(part, past=past) for part in ids.split((4, 3, 3), dim=1)]
        close(torch.cat(parts, 1), expected)
        assert float((model(ids) - expected).detach().abs().max()) > 1e-2
