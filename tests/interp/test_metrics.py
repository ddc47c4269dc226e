"""Metrics: numbers made of logits at known positions, looked up in a model and a text."""

import functools

import numpy as np
import pytest
import torch
from called import model as tiny_with_words
from torch.nn import functional

from hooks.errors import InputError, MaterializationError, PositionError, TokenizerError
from interp import metrics

TOKENS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
LOGITS = torch.randn(8, 14, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    return tiny_with_words()


def at(asked, read=None):
    """The logits at some positions, which are noted."""
    if read is not None:
        read.append(asked.tolist())
    return LOGITS.clone().requires_grad_()[asked]


def test_each_reads_the_logits_at_its_own_positions_and_no_others(model):
    losses = functional.cross_entropy(LOGITS[:-1].double(), TOKENS[1:], reduction="none")
    made = {
        metrics.logit(5): (LOGITS[-1, 5], [[7]]),
        metrics.logit(" dog", position=2): (LOGITS[2, 9], [[2]]),
        metrics.logit_difference("cat", 3, position=-3): (LOGITS[5, 1] - LOGITS[5, 3], [[5]]),
        metrics.loss(): (losses.mean(), [list(range(7))]),
        metrics.loss([6, 2]): (losses[[6, 2]].mean(), [[6, 2]]),
        metrics.custom(lambda x: x[0].sum() - x[1, 4], [-1, 0], "mine"): (LOGITS[7].sum() - LOGITS[0, 4], [[7, 0]]),
    }
    for metric, (expected, positions) in made.items():
        read = []
        found = metric.resolve(model, TOKENS).of(lambda asked, read=read: at(asked, read))
        torch.testing.assert_close(found.detach().double(), expected.double(), msg=metric.name)
        assert read == positions


def test_a_loss_over_many_positions_holds_a_part_of_the_logits_at_a_time(model, monkeypatch):
    monkeypatch.setattr(metrics, "LOGIT_BYTES", 3 * 4 * model.cfg.d_vocab)
    read = []
    logits = LOGITS.clone().requires_grad_()

    def some(asked):
        read.append(len(asked))
        return logits[asked]

    found = metrics.loss().resolve(model, TOKENS).of(some)
    (gradient,) = torch.autograd.grad(found, logits)
    expected = functional.cross_entropy(logits[:-1], TOKENS[1:])
    assert max(read) == 3 and len(read) == 6  # three parts, each once more for the gradient
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])


def test_packed_documents_predict_nothing_across_their_borders(model):
    places = torch.tensor([0, 1, 2, 0, 1, 0, 1, 2])
    assert metrics.loss().resolve(model, TOKENS, places).positions.tolist() == [0, 1, 3, 5, 6]
    with pytest.raises(PositionError, match="position 2 predicts"):
        metrics.loss([0, 2]).resolve(model, TOKENS, places)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda m: metrics.logit("the cat").resolve(m, TOKENS), TokenizerError, "'the cat' is 2 tokens"),
        (lambda m: metrics.logit(99).resolve(m, TOKENS), InputError, "99 is outside the vocabulary"),
        (lambda m: metrics.logit(1, position=8).resolve(m, TOKENS), PositionError, "no position 8 in a text of 8"),
        (lambda m: metrics.logit(1, position=-9).resolve(m, TOKENS), PositionError, "no position -9"),
        (lambda m: metrics.loss(7).resolve(m, TOKENS), PositionError, "position 7 predicts"),
        (lambda m: metrics.logit(""), InputError, "give the text of a token"),
        (lambda m: metrics.logit(1.5), InputError, "token=1.5"),
        (lambda m: metrics.logit(1, position=True), InputError, "position=True"),
        (lambda m: metrics.logit_difference(2, 2), InputError, "always 0"),
        (lambda m: metrics.loss([]), InputError, "at least one"),
        (lambda m: metrics.custom(3, 1, "x"), InputError, "fn=3"),
        (lambda m: metrics.custom(torch.sum, 1, " "), InputError, "a name"),
        (lambda m: metrics.custom(lambda x: x, 1, "wide").resolve(m, TOKENS).of(at), InputError, "one number"),
        (lambda m: metrics.custom(lambda x: 3.0, 1, "flat").resolve(m, TOKENS).of(at), InputError, "flat gave 3.0"),
    ],
)
def test_what_cannot_be_is_refused_by_name(model, make, error, says):
    with pytest.raises(error, match=says):
        make(model)


def test_a_custom_metric_that_leaves_the_graph_or_memory_is_refused(model, monkeypatch):
    cut = metrics.custom(lambda x: x.detach().sum(), 1, "cut off").resolve(model, TOKENS)
    with pytest.raises(InputError, match="cut off does not depend on the logits"):
        cut.of(lambda asked: LOGITS.clone().requires_grad_()[asked])
    monkeypatch.setattr(metrics, "free_bytes", lambda: 100)
    with pytest.raises(MaterializationError, match="100 are free"):
        metrics.custom(torch.sum, 1, "large").resolve(model, TOKENS).of(at)


def test_a_description_tells_metrics_apart_and_gives_them_back(model):
    asked = [metrics.logit(5), metrics.logit(5, 2), metrics.logit_difference("cat", 3), metrics.loss(), metrics.loss(2)]
    said = [m.resolve(model, TOKENS).description() for m in asked]
    for i, one in enumerate(said):
        assert [j for j, other in enumerate(said) if other == one] == [i]
        again = metrics.from_description(one).resolve(model, TOKENS)
        assert again.description() == one
    with pytest.raises(InputError, match="which no file holds"):
        metrics.from_description({"kind": "custom", "name": "mine", "positions": [1], "tokens": []})
    with pytest.raises(InputError, match="describes no metric"):
        metrics.from_description({"kind": "logit"})


def code(model, function):
    return metrics.custom(function, 1, "mine").resolve(model, TOKENS).description()["code"]


def closing_over(value):
    return lambda logits: (logits * value).sum()


def test_the_code_of_a_custom_metric_is_what_it_does_and_holds(model):
    alike = [code(model, closing_over(x)) for x in (2, 2)]
    assert alike[0] == alike[1]
    others = [closing_over(3), closing_over(torch.ones(14)), closing_over(np.ones(14)), lambda logits: logits.mean()]
    others.append(lambda logits, by=2: (logits * by).sum())
    others.append(lambda logits: sum(row.sum() for row in logits if {"a", "b"}))
    found = [alike[0], *(code(model, other) for other in others)]
    assert len({*found}) == len(found)
    assert code(model, closing_over(torch.ones(14))) == found[2]
    with pytest.raises(InputError, match="cannot be compared"):
        code(model, closing_over(object()))
    with pytest.raises(InputError, match="cannot be compared"):
        code(model, functools.partial(torch.sum, dim=None))
