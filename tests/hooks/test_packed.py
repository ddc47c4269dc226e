"""Documents packed into one row: as transformers runs them, and as each document alone."""

import pytest
import torch
from tiny import tiny_model, tokens
from tiny_foreign import foreign_model
from transformers import GPT2Config, GPT2LMHeadModel

from hooks import HookedTransformer, recipes
from hooks.errors import AttachError

NATIVE = ("llama", "qwen3", "gemma2", "gemma3_text", "gpt_neox")
FOREIGN = ("mixtral", "qwen3_moe", "deepseek_v3")
LENGTHS = ([5, 1, 8], [9, 5])
POSITIONS = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in LENGTHS])


def loaded(name):
    return tiny_model(name) if name in NATIVE else foreign_model(name)


def ways(model, name):
    """The same model, native where the family has a row, and attached."""
    if name in NATIVE:
        yield HookedTransformer.from_pretrained(model)
    with HookedTransformer.attach(model) as attached:
        yield attached


def parts():
    """Row, and where each of its documents lies."""
    for row, lengths in enumerate(LENGTHS):
        ends = torch.tensor(lengths).cumsum(0).tolist()
        for start, stop in zip([0, *ends], ends, strict=False):
            yield row, slice(start, stop)


def close(got, expected, within=2e-5):
    assert float((got - expected).abs().max()) < within * float(expected.abs().max())


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", [*NATIVE, *FOREIGN])
def test_logits_are_those_of_transformers_and_of_each_document_alone(name, implementation):
    model, ids = loaded(name), tokens(14)
    if name != "gemma2":  # whose soft-cap runs eagerly only
        model.set_attn_implementation(implementation)
    with torch.no_grad():
        theirs = model(ids, position_ids=POSITIONS, use_cache=False).logits
        for ours in ways(model, name):
            logits = ours(ids, position_ids=POSITIONS)
            close(logits, theirs)
            for row, part in parts():
                close(logits[row, part], ours(ids[row : row + 1, part])[0])


@pytest.mark.parametrize("name", ["gemma3_text", "mixtral"])
def test_no_loss_across_a_border(name):
    model, ids = loaded(name), tokens(14)
    with torch.no_grad():
        for ours in ways(model, name):
            per_token = ours.loss_per_token(ids, position_ids=POSITIONS)
            alone = {(row, part.start): ours.loss_per_token(ids[row : row + 1, part])[0] for row, part in parts()}
            for row, part in parts():
                torch.testing.assert_close(
                    per_token[row, part.start : part.stop - 1], alone[row, part.start], rtol=1e-4, atol=1e-4
                )
            borders = torch.zeros_like(per_token, dtype=torch.bool)
            borders[0, [4, 5]] = borders[1, 8] = True
            assert torch.equal(per_token.isnan(), borders)
            mean = torch.cat(list(alone.values())).mean()
            torch.testing.assert_close(ours(ids, "loss", position_ids=POSITIONS), mean)
            torch.testing.assert_close(ours(ids, "both", position_ids=POSITIONS)[1], mean)


@pytest.mark.parametrize("name", ["gemma3_text", "mixtral"])
def test_patterns_are_block_diagonal_and_rows_are_the_same(name):
    model, ids = loaded(name), tokens(14)
    document = torch.stack([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in LENGTHS])
    apart = document[:, :, None] != document[:, None, :]
    with torch.no_grad():
        for ours in ways(model, name):
            full, by_rows = {}, {}

            def keep(pattern, hook, into=full):
                into[hook.name] = pattern.clone()

            def gather(block, hook, into=by_rows):
                if block.shape[-2:] == (14, 14):
                    into[hook.name.removesuffix("_rows")] = block.clone()

            ours.run_with_hooks(ids, fwd_hooks=[("blocks.*.attn.hook_pattern", keep)], position_ids=POSITIONS)
            ours.run_with_hooks(ids, fwd_hooks=[("blocks.*.attn.hook_pattern_rows", gather)], position_ids=POSITIONS)
            assert full.keys() == by_rows.keys() and len(full) == ours.cfg.n_layers
            for point, pattern in full.items():
                assert float(pattern.sum(1)[apart].abs().max()) == 0
                torch.testing.assert_close(by_rows[point], pattern)
                torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]))


@pytest.mark.parametrize("point", ["hook_attn_scores_rows", "hook_attn_scores"])
@pytest.mark.parametrize(
    "recipe",
    [
        recipes.remove_sink(2),
        recipes.limit_distance(3),
        recipes.keep_top_k(2),
        recipes.knock_out([3, 4], [1]),
        recipes.boost_keys([1], 3.0),
        recipes.distance_temperature(lambda d: 1 + 0.3 * d),
    ],
    ids=["remove_sink", "limit_distance", "keep_top_k", "knock_out", "boost_keys", "distance_temperature"],
)
def test_a_recipe_does_to_each_document_what_it_does_to_it_alone(recipe, point):
    model, ids, hooks = loaded("gemma3_text"), tokens(14), [(f"blocks.*.attn.{point}", recipe)]
    with torch.no_grad():
        for ours in ways(model, "gemma3_text"):
            edited = ours.run_with_hooks(ids, fwd_hooks=hooks, position_ids=POSITIONS)
            assert float((edited - ours(ids, position_ids=POSITIONS)).abs().max()) > 1e-2
            for row, part in parts():
                close(edited[row, part], ours.run_with_hooks(ids[row : row + 1, part], fwd_hooks=hooks)[0])


def learned_positions():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()


@pytest.mark.parametrize("name", ["gemma3_text", "mixtral", "gpt2"])
def test_one_block_at_a_time_is_the_whole_model(name):
    model, ids = learned_positions() if name == "gpt2" else loaded(name), tokens(14)
    with torch.no_grad():
        theirs = model(ids, position_ids=POSITIONS, use_cache=False).logits
        for ours in ways(model, name):
            context = ours.context(ids, position_ids=POSITIONS)
            resid = ours.embed_tokens(ids, position_ids=POSITIONS)
            for block in ours.blocks:
                resid = block(resid, context)
            close(ours.unembed_residual(resid), theirs)


def test_gradients_are_those_of_each_document_alone():
    model = tiny_model("qwen3", dtype=torch.float64)
    ids, weights = tokens(14), list(model.parameters())
    for ours in ways(model, "qwen3"):
        parameters = weights if not isinstance(ours, HookedTransformer) else list(ours.parameters())
        together = torch.autograd.grad(ours(ids, "loss", position_ids=POSITIONS), parameters)
        nll = [ours(ids[row : row + 1, part], "loss", loss_per_token=True)[0] for row, part in parts()]
        alone = torch.autograd.grad(torch.cat(nll).mean(), parameters)
        torch.testing.assert_close(together, alone, rtol=1e-8, atol=1e-10)


def test_a_model_whose_mask_knows_no_documents_is_refused():
    model, ids = foreign_model("gpt_oss"), tokens(14)
    with torch.no_grad():
        theirs = model(ids, position_ids=POSITIONS, use_cache=False).logits
        alone = model(ids[:1, 6:], use_cache=False).logits
    assert float((theirs[0, 6:] - alone[0]).abs().max()) > 1e-2, "transformers lets its documents see each other"
    with HookedTransformer.attach(model) as attached, pytest.raises(AttachError, match="packed documents see each"):
        attached(ids, position_ids=POSITIONS)
