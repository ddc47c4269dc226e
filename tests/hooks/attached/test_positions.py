"""Under the model's own generate, hooks and recipes see true positions: each step equals the whole text at once."""

import pytest
import torch
from tiny import tiny_model, tokens
from tiny_foreign import foreign_model, foreign_tokens
from transformers import DynamicCache
from transformers.masking_utils import sliding_window_causal_mask_function

from hooks import HookedTransformer, recipes
from hooks.attached.masks import mask_rules
from hooks.attached.positions import true_positions
from hooks.errors import AttachError

NEW = 9
MODELS = ("qwen3", "gemma3_text", "mixtral", "gpt_oss", "deepseek_v3")
PADS = {"none": [0, 0], "left": [5, 0]}


def loaded(name):
    """A tiny model; those of `foreign_model` have windows of 5, Gemma's has one too."""
    return tiny_model(name) if name in ("qwen3", "gemma3_text") else foreign_model(name)


def generated(model, ids, mask, **options):
    """Greedy tokens and the logits of each step."""
    fixed = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.no_grad():
        found = model.generate(
            ids, attention_mask=mask, output_logits=True, return_dict_in_generate=True, **fixed, **options
        )
    return found.sequences, torch.stack(found.logits, 1)


@pytest.mark.parametrize("point", ["hook_attn_scores_rows", "hook_attn_scores"])
@pytest.mark.parametrize("pads", PADS)
@pytest.mark.parametrize("name", MODELS)
def test_each_step_of_generate_equals_the_whole_text(name, pads, point):
    model, ids = loaded(name), foreign_tokens(14)
    mask = (torch.arange(14) >= torch.tensor(PADS[pads])[:, None]).long()
    recipe = recipes.distance_temperature(lambda d: 1 + 0.3 * d)
    hooks = [(f"blocks.*.attn.{point}", hook) for hook in (recipes.remove_sink(2), recipe)]
    with HookedTransformer.attach(model) as attached, torch.no_grad():
        with attached.hooks(fwd_hooks=hooks):
            sequences, logits = generated(model, ids, mask)
            whole = attached(sequences, attention_mask=torch.cat([mask, mask.new_ones(2, NEW)], 1))[:, 13:-1]
        plain = attached(sequences, attention_mask=torch.cat([mask, mask.new_ones(2, NEW)], 1))[:, 13:-1]
    assert float((whole - plain).abs().max()) > 1e-2 * float(whole.abs().max()), "the recipes do something"
    assert float((logits - whole).abs().max()) < 1e-5 * float(whole.abs().max())


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("name", ["qwen3", "gemma3_text", "mixtral"])
def test_a_hook_finds_the_position_of_every_query_and_key(name, cache):
    model, ids, seen = loaded(name), foreign_tokens(14), []
    pads = torch.tensor(PADS["left"])
    mask = (torch.arange(14) >= pads[:, None]).long()

    def look(scores, hook):
        queries, keys = (hook.ctx[f"{what}_positions"].expand(2, -1) for what in ("query", "key"))
        seen.append((hook.name, queries, keys, scores > -torch.inf))

    with (
        HookedTransformer.attach(model) as attached,
        attached.hooks(fwd_hooks=[("blocks.*.attn.hook_attn_scores", look)]),
    ):
        generated(model, ids, mask, **({} if cache is None else {"cache_implementation": cache}))
        windows = {
            f"blocks.{i}.attn.hook_attn_scores": attached.attention_spec(i).window for i in range(len(attached.blocks))
        }
    assert len(seen) == NEW * len(attached.blocks)
    for step in range(NEW):
        for hook, queries, keys, visible in seen[step * len(attached.blocks) :][: len(attached.blocks)]:
            for row in range(2):
                n = 14 + step - int(pads[row])  # tokens of this row so far
                at = torch.arange(n) if step == 0 else torch.tensor([n - 1])
                assert torch.equal(queries[row, -len(at) :], at)
                for query in range(len(at)):
                    window = windows[hook]
                    first = 0 if window is None else max(0, int(at[query]) + 1 - window)
                    found = keys[row][visible[row, 0, query - len(at)]]
                    assert torch.equal(found, torch.arange(first, int(at[query]) + 1)), (hook, step, row)


@pytest.mark.parametrize("pads", [[0, 0], [4, 0]])
def test_positions_follow_from_the_mask_where_the_model_hands_none_on(pads):
    """A cache of the last 6 of 11 tokens and one new one: 7 keys, the first of them the text's sixth."""
    mask = torch.arange(12) >= torch.tensor(pads)[:, None]
    where = {"q_length": 1, "kv_length": 7, "q_offset": 11, "kv_offset": 5, "batch_size": 2}
    rules = mask_rules(**where, attention_mask=mask, mask_function=sliding_window_causal_mask_function(7), local_size=7)
    queries, keys = true_positions(rules, 7, 1, None, torch.device("cpu"))
    expected = torch.arange(5, 12)[None] - torch.tensor(pads)[:, None]
    assert torch.equal(keys.expand(2, -1), expected) and torch.equal(queries.expand(2, -1), expected[:, -1:])


@pytest.mark.parametrize("shift", [0, 3])
def test_positions_that_start_elsewhere_shift_those_of_the_cache(shift):
    model, ids, seen = loaded("qwen3"), tokens(8), []
    look = ("blocks.0.attn.hook_pattern_rows", lambda x, hook: seen.append(dict(hook.ctx)))
    with HookedTransformer.attach(model) as attached, attached.hooks(fwd_hooks=[look]), torch.no_grad():
        cache = DynamicCache()
        model(ids[:, :6], past_key_values=cache, position_ids=torch.arange(6)[None] + shift)
        model(ids[:, 6:], past_key_values=cache, position_ids=torch.arange(6, 8)[None] + shift)
        assert torch.equal(seen[-1]["query_positions"], torch.arange(6, 8) + shift)
        assert torch.equal(seen[-1]["key_positions"], torch.arange(8) + shift)
        gap = torch.tensor([[20, 24]])
        with pytest.raises(AttachError, match="gaps that the cache does not show"):
            model(ids[:, 6:], past_key_values=cache, position_ids=gap)
    with HookedTransformer.attach(model), torch.no_grad():
        model(ids[:, 6:], past_key_values=cache, position_ids=gap)
