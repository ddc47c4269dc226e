"""Generation on SmolLM2 135M and Gemma 3 270M against transformers: steps, recipes, and 8,192 tokens in parts."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from hooks import HookedTransformer, KeyValueCache, recipes
from hooks.loading.prepared import KNOWN_MODELS, prepared_model
from interp.texts.texts import standard_text

pytestmark = pytest.mark.slow
NEW, SHORTER, LONGEST = 8, (25, 8), {"gemma3-270m": 515, "smollm2-135m": 40}  # Gemma's window is 512
ROWS = (0, 700, 4095, 8191)
RECIPES = {
    "remove_sink": recipes.remove_sink(),
    "knock_out": recipes.knock_out(range(20, 999), range(5, 9)),
    "limit_distance": recipes.limit_distance(16),
}


@pytest.fixture(scope="module", params=sorted(KNOWN_MODELS))
def trio(request):
    """Our model and transformers' own, with three texts padded on the left and their mask, and a long text."""
    theirs = AutoModelForCausalLM.from_pretrained(prepared_model(request.param), dtype=torch.float32).eval()
    native = HookedTransformer.from_pretrained(request.param)
    long = native.to_tokens(standard_text().content)[:, :8192]
    lengths = (LONGEST[request.param], *SHORTER)
    mask = torch.stack([(torch.arange(lengths[0]) >= lengths[0] - length).long() for length in lengths])
    ids = torch.zeros_like(mask)
    for row, length in enumerate(lengths):
        ids[row, lengths[0] - length :] = long[0, 100 * row : 100 * row + length]
    return native, theirs, ids, mask, long


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
    _, theirs, ids, mask, _ = trio
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


def test_8192_tokens_in_parts_of_1000_are_those_at_once(trio):
    """Every layer's q, k and z at some positions, the last one's at all, rows of three layers' patterns, and logits."""
    tokens, last = trio[4], trio[0].cfg.n_layers - 1
    at_once = read_in_parts(trio[0], tokens, 8192)
    assert len(at_once) == 3 * (last + 1) + 3 * len(ROWS) + 1
    for model in ways(trio):
        in_parts = read_in_parts(model, tokens, 1000)
        assert in_parts.keys() == at_once.keys()
        for name, expected in at_once.items():
            if isinstance(name, tuple):
                assert float((in_parts[name] - expected).abs().max()) < 1e-5, name
            else:
                close(in_parts[name], expected)
        residual = f"blocks.{last}.hook_resid_post"
        with torch.no_grad():
            close(*(model.unembed_residual(read[residual][:, ::64]) for read in (in_parts, at_once)))


def read_in_parts(model, tokens, size):
    """{point: what it saw at every 64th position, in the last layer at each}, and {(point, row): row of a pattern}."""
    last, past = model.cfg.n_layers - 1, KeyValueCache(model)
    kept, rows = {}, {}

    def keep(x, hook):
        step = 1 if hook.layer() == last else 64
        kept.setdefault(hook.name, []).append(x[:, -start % step :: step].clone())

    def note(pattern, hook):
        queries = hook.ctx["query_positions"].tolist()
        for row in set(ROWS) & set(queries):
            rows[hook.name, row] = line = torch.zeros(pattern.shape[1], tokens.shape[1])
            line[:, hook.ctx["key_positions"]] = pattern[0, :, queries.index(row)]

    points = ["blocks.*.attn.hook_q_final", "blocks.*.attn.hook_k_final", "blocks.*.attn.hook_z"]
    hooks = [(point, keep) for point in [*points, f"blocks.{last}.hook_resid_post"]]
    hooks += [(f"blocks.{layer}.attn.hook_pattern_rows", note) for layer in (0, last // 2, last)]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        for start in range(0, tokens.shape[1], size):
            model(tokens[:, start : start + size], return_type=None, past=past if size < tokens.shape[1] else None)
    return {name: torch.cat(parts, 1) for name, parts in kept.items()} | rows
