"""A needle sweep against transformers' own logits and attentions, and against patterns that hooks edited."""

import numpy as np
import pytest
import torch
import xarray as xr
from tiny import tiny_model as transformers_model
from tiny_foreign import foreign_model
from tiny_hooked import tiny_model
from words import tokenizer_of_words

from hooks import HookedTransformer, recipes
from hooks.errors import InputError, TextError
from interp import capture, head_summary, needle_sweep, plant_needle, plots
from interp.analyses.heads.retrieval import share_copied

TEXTS = {"sentence": "w3 w7 w11 w4", "question": "w2 w5", "haystack": "w0 w1 w2 w3 w9 w8 " * 20}
NATIVE = ("llama", "gemma3_text")
FOREIGN = ("mixtral", "gpt_oss")


def loaded(name):
    model = transformers_model(name) if name in NATIVE else foreign_model(name)
    model.set_attn_implementation("eager")
    return model


def ways(name):
    """The same model, native where the family has a row, and attached."""
    if name in NATIVE:
        ours = HookedTransformer.from_pretrained(loaded(name))
        ours.tokenizer = tokenizer_of_words(97)
        yield ours
    with HookedTransformer.attach(loaded(name), tokenizer_of_words()) as attached:
        yield attached


def words(ids):
    return "".join(f" w{i}" for i in ids)


def by_hand(theirs, needle):
    """Loss of the answer, mass on the needle and whether greedy decoding gives the answer, from transformers alone."""
    ids, start, stop = needle.tokens[None], needle.answer.start, needle.answer.stop
    with torch.no_grad():
        out = theirs(ids, use_cache=False, output_attentions=True)
        log_p = out.logits[0].log_softmax(-1)
        loss = -torch.stack([log_p[i - 1, ids[0, i]] for i in range(start, stop)]).mean()
        rows = torch.stack([pattern[0, :, start - 1 : stop - 1, needle.needle] for pattern in out.attentions])
        said = ids[:, :start]
        for _ in range(stop - start):
            following = theirs(said, use_cache=False).logits[:, -1:].argmax(-1)
            said = torch.cat([said, following], 1)
    return float(loss), float(rows.sum(-1).mean()), torch.equal(said, ids)


@pytest.mark.parametrize("name", [*NATIVE, *FOREIGN])
def test_a_sweep_is_what_transformers_gives(name):
    theirs, cells = loaded(name), [(n, d) for n in (24, 40) for d in (0.0, 0.7)]
    for ours in ways(name):
        for answer in (None, "w7 w11"):
            sweep = needle_sweep(ours, (40, 24), (0.7, 0.0), answer=answer, **TEXTS)
            assert sweep["length"].values.tolist() == [24, 40] and sweep["depth"].values.tolist() == [0.0, 0.7]
            for n, d in cells:
                loss, mass, found = by_hand(theirs, plant_needle(ours, n, d, answer=answer, **TEXTS))
                cell = sweep.sel(length=n, depth=d)
                assert float(cell["answer_loss"]) == pytest.approx(loss, rel=1e-4)
                assert float(cell["needle_mass"]) == pytest.approx(mass, rel=1e-4, abs=1e-9)
                assert bool(cell["found"]) == found


def test_what_greedy_decoding_says_is_found_and_nothing_else():
    theirs = loaded("llama")
    ours = next(ways("llama"))
    asked = plant_needle(ours, 30, 0.4, answer="w1 w1 w1", **TEXTS)
    said = asked.tokens[None, : asked.answer.start]
    with torch.no_grad():
        for _ in range(3):
            said = torch.cat([said, theirs(said, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    right = said[0, -3:].tolist()
    for at in (None, 0, 1, 2):
        wrong = [(token + 1) % 97 if place == at else token for place, token in enumerate(right)]
        sweep = needle_sweep(ours, 30, 0.4, answer=words(wrong), **TEXTS)
        assert bool(sweep["found"].item()) == (at is None)


@pytest.mark.parametrize("point", ["hook_attn_scores_rows", "hook_attn_scores", "hook_pattern", "hook_pattern_rows"])
def test_mass_is_that_of_the_pattern_that_hooks_left(point):
    model = tiny_model(layer_types=("sliding_attention", "full_attention"), window_size=12)
    model.tokenizer = tokenizer_of_words()
    needle = plant_needle(model, 90, 0.9, **TEXTS)

    def halve_needle(pattern, hook):
        return pattern * (1 - 0.5 * torch.isin(hook.ctx["key_positions"], torch.arange(90)[needle.needle]).float())

    edit = recipes.remove_sink(70) if "scores" in point else halve_needle
    hooks = [(f"blocks.1.attn.{point}", edit), ("blocks.0.attn.hook_z", recipes.ablate_heads([(0, 1)]))]
    whole = [(name.replace("_rows", ""), hook) for name, hook in hooks]
    with model.hooks(fwd_hooks=whole):
        _, cache = model.run_with_cache(needle.tokens[None], names_filter="blocks.*.attn.hook_pattern")
        loss = model.loss_per_token(needle.tokens[None])
    rows = [cache["pattern", layer][0, :, needle.predicting, needle.needle].sum(-1).mean() for layer in range(2)]
    with model.hooks(fwd_hooks=hooks):
        sweep = needle_sweep(model, 90, 0.9, **TEXTS)
    assert sweep["needle_mass"].item() == pytest.approx(float(sum(rows)) / 2, rel=1e-4)
    assert sweep["answer_loss"].item() == pytest.approx(needle.answer_loss(loss), rel=1e-4)
    assert sweep["needle_mass"].item() != pytest.approx(needle_sweep(model, 90, 0.9, **TEXTS)["needle_mass"].item())


def test_the_loss_of_an_answer_needs_no_slices():
    model = tiny_model()
    model.tokenizer = tokenizer_of_words()
    needle = plant_needle(model, 50, 0.5, answer="w7 w11", **TEXTS)
    assert needle.tokens[needle.answer].tolist() == [7, 11] and needle.tokens[needle.needle].tolist() == [3, 7, 11, 4]
    loss, cap = model.loss_per_token(needle.tokens[None]), capture(model, needle.tokens)
    log_p = model(needle.tokens[None])[0].log_softmax(-1).detach()
    expected = -(log_p[47, 7] + log_p[48, 11]) / 2
    for given in (loss, loss[0], cap.loss):
        assert needle.answer_loss(given) == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(InputError, match=r"shape \(50,\), and the needle's 50 tokens have 49 predicted"):
        needle.answer_loss(torch.zeros(50))
    with pytest.raises(InputError, match="answer='' has no tokens"):
        plant_needle(model, 50, answer="", **TEXTS)
    scored = head_summary(cap, needle=needle)
    assert scored["needle_mass"].shape == scored["retrieval"].shape == (2, 4)


def test_retrieval_counts_what_of_the_answer_was_looked_up():
    model = tiny_model()
    model.tokenizer = tokenizer_of_words()
    needle = plant_needle(model, 40, 0.5, answer="w11 w4 w9", **TEXTS)
    start = needle.needle.start
    looked = np.zeros((4, 40), dtype=int)
    looked[0, needle.predicting] = [start + 2, start + 3, start]  # two of the needle's four, where they stand
    looked[1, needle.predicting] = [start + 2, start + 2, 0]  # one; the second is another token
    looked[2, needle.predicting] = needle.answer.start  # outside the needle
    looked[3, needle.predicting] = [start + 1, start, start]
    np.testing.assert_allclose(share_copied(needle, looked), [1 / 2, 1 / 4, 0, 0])


def test_wrong_sweeps_are_named():
    model = tiny_model()
    model.tokenizer = tokenizer_of_words()
    for lengths, depths, error, message in (
        ([], 0.5, InputError, r"lengths=\[\]"),
        (40, [], InputError, r"depths=\[\]: give at least one of each"),
        (40, [0.5, 1.5], InputError, "depths=1.5: give a number"),
        (40.5, 0.5, InputError, "lengths=40.5: give a whole number"),
        ([40, 11], 0.5, InputError, "n_tokens=11: needle, question and answer alone take 10"),
        (900, 0.5, TextError, "the haystack has 120 tokens"),
    ):
        with pytest.raises(error, match=message):
            needle_sweep(model, lengths, depths, **TEXTS)


def test_the_grid_shows_the_numbers_and_what_was_found():
    values = {"answer_loss": [[0.5, 1.25], [2.0, 3.0]], "needle_mass": [[0.5, 0.25], [0.0, 1.0]]}
    coords = {"length": [1024, 2048], "depth": [0.0, 1.0]}
    sweep = xr.Dataset({name: (("length", "depth"), number) for name, number in values.items()}, coords=coords)
    sweep["found"] = ("length", "depth"), [[True, False], [False, True]]
    sweep.attrs["analysis"] = "needle_sweep"
    figure = plots.show(sweep)
    trace = figure.data[0]
    assert trace.x == ("1,024", "2,048") and trace.y == ("0", "1")
    np.testing.assert_array_equal(trace.z, [[0.5, 2.0], [1.25, 3.0]])
    assert np.asarray(trace.text).tolist() == [["✓ 0.5", "2"], ["1.25", "✓ 3"]]
    assert "found (✓) in 2 of 4 texts" in figure.layout.title.text
    np.testing.assert_array_equal(plots.show(sweep["needle_mass"]).data[0].z, [[0.5, 0.0], [0.25, 1.0]])
    np.testing.assert_array_equal(plots.show(sweep.sel(length=2048)).data[0].z, [[2.0], [3.0]])
    both = xr.concat([sweep, sweep.assign(found=~sweep["found"])], "text", combine_attrs="override")
    assert "found (✓) in 50% of the" in plots.show(both).layout.title.text


@pytest.mark.slow
def test_gemma_finds_a_number_at_2048_tokens():
    model = HookedTransformer.from_pretrained("gemma3-270m", dtype=torch.float32)
    text = {
        "sentence": "\nThe secret code of the archive is 48153.\n",
        "question": "\n\nQuestion: what is the secret code of the archive?\nAnswer: the secret code of the archive is",
        "answer": " 48153",
    }
    sweep = needle_sweep(model, 2048, [0.2, 0.9], **text)
    assert sweep["found"].values.all() and float(sweep["answer_loss"].max()) < 0.5
    needle = plant_needle(model, 2048, 0.2, **text)
    loss = needle.answer_loss(model.loss_per_token(needle.tokens))
    assert sweep["answer_loss"].sel(depth=0.2).item() == pytest.approx(loss, rel=1e-3)
    summary = head_summary(capture(model, needle.tokens), needle=needle)
    assert sweep["needle_mass"].sel(depth=0.2).item() == pytest.approx(float(summary["needle_mass"].mean()), rel=1e-3)
