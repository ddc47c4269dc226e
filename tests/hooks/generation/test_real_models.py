"""Generation on SmolLM2 135M and Gemma 3 270M against transformers: steps, recipes, and 8,192 tokens in parts."""

import pytest
import torch
from reading_parts import same_in_parts
from transformers import AutoConfig, AutoModelForCausalLM

from hooks import HookedTransformer, KeyValueCache, recipes
from hooks.loading.prepared import KNOWN_MODELS, prepared_model
from interp.texts.texts import standard_text

pytestmark = pytest.mark.slow
NEW, SHORTER, LONGEST = 8, (25, 8), {"gemma3-270m": 515, "smollm2-135m": 40}  # Gemma's window is 512
RECIPES = {
    "remove_sink": recipes.remove_sink(),
    "knock_out": recipes.knock_out(range(20, 999), range(5, 9)),
    "limit_distance": recipes.limit_distance(16),
}


@pytest.fixture(scope="module", params=sorted(KNOWN_MODELS))
def trio(request):
    """Our model and transformers' own, with three texts padded on the left and their mask."""
    theirs = AutoModelForCausalLM.from_pretrained(prepared_model(request.param), dtype=torch.float32).eval()
    native = HookedTransformer.from_pretrained(request.param)
    long = native.to_tokens(standard_text().content)
    lengths = (LONGEST[request.param], *SHORTER)
    mask = torch.stack([(torch.arange(lengths[0]) >= lengths[0] - length).long() for length in lengths])
    ids = torch.zeros_like(mask)
    for row, length in enumerate(lengths):
        ids[row, lengths[0] - length :] = long[0, 100 * row : 100 * row + length]
    return native, theirs, ids, mask


def ways(trio):
    yield trio[0]
    with HookedTransformer.attach(trio[1], trio[0].tokenizer) as attached:
        yield attached


def close(got, expected, within=1e-5):
    assert float((got - expected).abs().max()) < within * float(expected.max() - expected.min())


def steps(model, sequences, mask, n):
    """Logits after each token from the n-th on, read with a cache one by one."""
    past, read = KeyValueCache(model), 0
    for stop in range(n, n + NEW):
        yield model.next_logits(sequences[:, read:stop], attention_mask=mask[:, read:stop], past=past)
        read = stop


def test_steps_and_greedy_tokens_are_those_of_transformers(trio):
    _, theirs, ids, mask = trio
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "attention_mask": mask}
    out = theirs.generate(ids, max_new_tokens=NEW, output_logits=True, return_dict_in_generate=True, **options)
    logits, n = torch.stack(out.logits, 1), ids.shape[1]
    best = logits.topk(2, dim=-1).values
    clear = ((best[..., 0] - best[..., 1]) > 1e-3).cumprod(1).bool()
    whole = torch.cat([mask, mask.new_ones(3, NEW)], 1)
    with torch.no_grad():
        for model in ways(trio):
            for step, got in enumerate(steps(model, out.sequences, whole, n)):
                close(got, logits[:, step])
            generated = model.generate(ids, NEW, attention_mask=mask, stop_at_eos=False)
            assert torch.equal(generated[:, n:][clear], out.sequences[:, n:][clear])


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_step_is_the_same_hooks_on_the_whole_text_again(trio, recipe):
    ids, mask = trio[2], trio[3]
    n, whole = ids.shape[1], torch.cat([mask, mask.new_ones(3, NEW)], 1)
    with torch.no_grad():
        for model in ways(trio):
            with model.hooks(fwd_hooks=[("blocks.*.attn.hook_attn_scores_rows", RECIPES[recipe])]):
                out = model.generate(ids, NEW, attention_mask=mask, stop_at_eos=False)
                resid = model(out, attention_mask=whole, stop_at_layer=model.cfg.n_layers)
                expected = model.unembed_residual(resid[:, n - 1 :])
                for step, got in enumerate(steps(model, out, whole, n)):
                    close(got, expected[:, step])


@pytest.mark.parametrize("name", sorted(KNOWN_MODELS))
def test_8192_tokens_in_parts_of_1000_are_those_at_once(name):
    """The first six layers, Gemma's first full one among them; tests/benchmarks/reading_in_parts.py takes all."""
    config = AutoConfig.from_pretrained(prepared_model(name))
    config.num_hidden_layers = 6
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:6]
    theirs = AutoModelForCausalLM.from_pretrained(prepared_model(name), config=config, dtype=torch.float32).eval()
    tokens = HookedTransformer.from_pretrained(name).to_tokens(standard_text().content)[:, :8192]
    same_in_parts(HookedTransformer.from_pretrained(theirs), theirs, tokens)
