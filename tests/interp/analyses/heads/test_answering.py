"""Retrieval scores from generation against a loop over transformers' dense patterns, as their paper defines them."""

import numpy as np
import pytest
import torch
from tiny import tiny_model as transformers_model
from tiny_foreign import foreign_model
from words import tokenizer_of_words

from hooks import HookedTransformer, recipes
from hooks.errors import InputError
from interp import plant_needle, retrieval_score

SENTENCE = {"sentence": "w3 w7 w11 w4 " * 6, "question": "w2 w5", "haystack": "w0 w1 w2 w3 w9 w8 " * 20}
TEXTS = SENTENCE | {"answer": "w1"}
SAID = [3, 7]  # what the models are made to say: two words of the needle
NEW = 12


def loaded(name):
    """A model that says little else than the words of the needle."""
    model = transformers_model(name) if name in ("llama", "gemma3_text") else foreign_model(name)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head[SAID[0]] *= 8
        head[SAID[1]] = -head[SAID[0]]  # one of the two is likely
    return model


def ways(name):
    """The same model, native where the family has a row, and attached."""
    if name in ("llama", "gemma3_text"):
        ours = HookedTransformer.from_pretrained(loaded(name))
        ours.tokenizer = tokenizer_of_words(97)
        yield ours
    with HookedTransformer.attach(loaded(name), tokenizer_of_words()) as attached:
        yield attached


def by_hand(theirs, needle, new):
    """[layer head]: |g| / |k| of the paper's equation 1, with every pattern held and no cache."""
    said, g = needle.tokens[None, : needle.answer.start], {}
    places = range(needle.needle.start, needle.needle.stop)
    k = {int(needle.tokens[at]) for at in places}
    for _ in range(new):
        with torch.no_grad():
            out = theirs(said, use_cache=False, output_attentions=True)
        word = int(out.logits[0, -1].argmax())
        for layer, pattern in enumerate(out.attentions):
            for head in range(pattern.shape[1]):
                top = int(pattern[0, head, -1].argmax())
                if top in places and int(said[0, top]) == word:
                    g.setdefault((layer, head), set()).add(word)
        said = torch.cat([said, torch.tensor([[word]])], 1)
    scores = np.zeros((len(out.attentions), pattern.shape[1]))
    for at, words in g.items():
        scores[at] = len(words) / len(k)
    return scores


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3_moe", "gpt_oss"])
def test_scores_are_those_of_a_loop_over_dense_patterns(name):
    theirs = loaded(name)
    for ours in ways(name):
        needles = [plant_needle(ours, n, depth, **TEXTS) for n, depth in ((45, 0.2), (50, 0.9))]
        expected = [by_hand(theirs, needle, NEW) for needle in needles]
        assert np.max(expected) > 0, "no head copies anything, so that nothing is tested"
        for needle, scores in zip(needles, expected, strict=True):
            found = retrieval_score(ours, needle, max_new_tokens=NEW)["retrieval_score"]
            np.testing.assert_allclose(found, scores)
        both = retrieval_score(ours, needles, max_new_tokens=NEW)
        np.testing.assert_allclose(both["retrieval_score"], np.mean(expected, axis=0))
        assert both.attrs["n_texts"] == 2 and both["kv_head"].sizes == {"head": both.sizes["head"]}


def test_as_many_tokens_as_the_answer_has_and_never_after_the_end_of_the_text():
    ours = next(ways("llama"))
    needle = plant_needle(ours, 45, 0.2, answer="w1 w1 w1", **SENTENCE)
    np.testing.assert_allclose(retrieval_score(ours, needle)["retrieval_score"], by_hand(loaded("llama"), needle, 3))
    first = by_hand(loaded("llama"), needle, 1)
    said = ours.generate(needle.tokens[None, : needle.answer.start], 1)[0, -1]
    ours.tokenizer.eos_token = f"w{int(said)}"
    np.testing.assert_allclose(retrieval_score(ours, needle, max_new_tokens=NEW)["retrieval_score"], first)


@pytest.mark.parametrize("point", ["hook_attn_scores_rows", "hook_attn_scores"])
def test_hooks_that_are_set_are_at_work(point):
    ours = next(ways("llama"))
    needle = plant_needle(ours, 45, 0.2, **TEXTS)
    hide = recipes.knock_out(range(50), range(needle.needle.start, needle.needle.stop))
    assert retrieval_score(ours, needle, max_new_tokens=NEW)["retrieval_score"].max() > 0
    with ours.hooks(fwd_hooks=[(f"blocks.*.attn.{point}", hide)]):
        hidden = retrieval_score(ours, needle, max_new_tokens=1)
    assert float(hidden["retrieval_score"].max()) == 0


def test_what_is_no_needle_is_named():
    ours = next(ways("llama"))
    for needles in ([], "x", [1], None):
        with pytest.raises(InputError, match="needles="):
            retrieval_score(ours, needles)
    needle = plant_needle(ours, 45, 0.2, **TEXTS)
    with pytest.raises(InputError, match="max_new_tokens=0"):
        retrieval_score(ours, needle, max_new_tokens=0)
