"""Whatever an analysis returns draws itself: a figure with the result's own numbers, light and dark."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from tiny_hooked import random_tokens, tiny_model
from words import tokenizer_of_words

import interp
from hooks import QKNormConfig, RopeConfig
from interp import plots

N = 70
LINEAR = RopeConfig(rope_type="linear", factor=2.0)


@pytest.fixture(scope="module")
def model():
    return tiny_model(
        qk_norm=QKNormConfig(position="after_rope"), layer_types=("sliding_attention", "full_attention"), window_size=13
    )


@pytest.fixture(scope="module")
def cap(model):
    return interp.capture(model, random_tokens(N)[0])


def swept(model):
    """A needle sweep, of a model that has words."""
    texts = {"sentence": "w7 w8", "question": "w2", "haystack": "w0 w1 w2 w3 " * 20}
    model = model.with_config()
    model.tokenizer = tokenizer_of_words()
    return interp.needle_sweep(model, [30, 40], [0, 1], **texts)


ANALYSES = {
    "attention_map": lambda cap, model: interp.attention_map(cap, 1, 0),
    "attention_pattern": lambda cap, model: interp.attention_pattern(cap, 1, 0),
    "attention_statistics": lambda cap, model: interp.attention_statistics(cap.q(1), cap.k(1), cap.spec(1)),
    "bound_by_distance": lambda cap, model: interp.bound_by_distance(cap),
    "compare": lambda cap, model: interp.compare(cap, interp.capture(model.with_config(rope=LINEAR), cap.tokens)),
    "frequency_bias": lambda cap, model: interp.frequency_bias(cap),
    "head_summary": lambda cap, model: interp.head_summary(cap),
    "loss_by_position": lambda cap, model: interp.loss_by_position(cap),
    "needle_sweep": lambda cap, model: swept(model),
    "positional_bias": lambda cap, model: interp.positional_bias(cap),
    "precision_cost": lambda cap, model: interp.precision_cost(cap),
    "ranked": lambda cap, model: interp.ranked(ANALYSES["compare"](cap, model), n=3),
    "received_by_position": lambda cap, model: interp.received_by_position(cap),
    "relativity_error": lambda cap, model: interp.relativity_error(cap),
    "score_ranges": lambda cap, model: interp.score_ranges(cap),
    "sink_rate": lambda cap, model: interp.sink_rate(cap),
    "statistics": lambda cap, model: cap.statistics(),
    "top_keys": lambda cap, model: cap.top_keys(1, 2, query=-1),
    "typical_heads": lambda cap, model: interp.typical_heads(interp.head_summary(cap), 2),
    "what_if_rope": lambda cap, model: interp.what_if_rope(cap, LINEAR),
    "what_if_rope, full": lambda cap, model: interp.what_if_rope(cap, LINEAR, model=model),
}


@pytest.mark.parametrize("name", ANALYSES)
def test_every_result_draws_itself(cap, model, name):
    result = ANALYSES[name](cap, model)
    assert plots.can_show(result)
    figure = plots.show(result)
    assert figure.data and figure.layout.title.text
    for drawn in (figure, plots.dark(figure)):
        json.loads(drawn.to_json())


@pytest.mark.parametrize(("name", "titles"), [("what_if_rope", 2), ("what_if_rope, full", 1)])
def test_the_titles_of_axes_side_by_side_do_not_meet(cap, model, name, titles):
    figure = plots.show(ANALYSES[name](cap, model))
    top = [axis for axis in figure.select_xaxes() if axis.title.text != "position [tokens]"]
    # CSS pixels: a narrow page less its margins and colour bar, a letter of a title, and what keeps two words apart.
    plot, letter, apart = 520 - 150, 6.6, 8
    spans = []
    for axis in top:
        if axis.title.text:
            middle, half = plot * sum(axis.domain) / 2, letter * len(axis.title.text) / 2
            spans.append((middle - half, middle + half))
    assert len(spans) == titles
    assert all(left[1] + apart < right[0] for left, right in itertools.pairwise(sorted(spans)))
    assert len({trace.legendgroup for trace in figure.data if trace.showlegend is None}) == (titles == 1) * 2


def test_the_loss_of_both_runs_stands_under_their_curves(cap, model):
    result = ANALYSES["what_if_rope, full"](cap, model)
    losses = [trace for trace in plots.show(result).data if str(trace.name).startswith("loss ")]
    assert [trace.name for trace in losses] == ["loss as run", "loss full"]
    for trace, variant in zip(losses, ("as_run", "full"), strict=True):
        np.testing.assert_array_equal(trace.y, result["loss_mean"].sel(variant=variant))


def test_bounds_are_drawn_with_the_share_that_was_used(cap):
    result = interp.bound_by_distance(cap)
    head = result.sel(layer=1, head=3)
    drawn = [trace for trace in plots.show(result).data if trace.name == "L1 H3"]
    np.testing.assert_allclose(drawn[0].y[:4], head["bound"].values[:4], rtol=1e-6)
    largest = np.maximum(-head["score_min"], head["score_max"]).values
    np.testing.assert_allclose(drawn[1].y[:4], (largest / head["bound"].values)[:4], rtol=1e-6)
    assert max(drawn[1].y) <= 1


def test_under_alibi_a_bound_is_drawn_from_above_only(model):
    slopes = (2.0, 1.0, 0.5, 0.25)
    both, above = (interp.capture(m, random_tokens(N)[0]) for m in (model, model.with_config(alibi_slopes=slopes)))
    for cap, lines in ((both, 2), (above, 1)):
        ranges = interp.score_ranges(cap).sel(variant=["as_run"])
        drawn = [trace for trace in plots.show(ranges).data if trace.name == "proven bound"]
        assert len(drawn) == lines
        used = [
            trace.y for trace in plots.show(interp.bound_by_distance(cap)).data if trace.yaxis == "y2" and trace.name
        ]
        assert len(used) == 8 and np.nanmax(np.concatenate(used)) <= 1


def test_shifts_and_sinks_are_maps_of_their_numbers(cap):
    error = interp.relativity_error(cap, (1, 1000))
    panels = plots.show(error).data
    assert len(panels) == 2
    np.testing.assert_allclose(panels[1].z, error["relativity_error"].sel(shift=1000), rtol=1e-6)
    sinks = interp.sink_rate(cap, epsilon=0.05)
    figure = plots.show(sinks)
    np.testing.assert_allclose(figure.data[0].z, sinks["sink_score"], rtol=1e-6)
    assert f"above 0.05 in {float(sinks['sink_rate']):.1%} of the heads" in figure.layout.title.text.replace(
        "<br>", " "
    )


def test_rankings_are_tables_and_their_texts_stay_texts(cap):
    cap = replace(cap, str_tokens=["<b>bold</b>"] * N)
    keys = cap.top_keys(1, 2, query=-1, k=4)
    cells = dict(zip(plots.show(keys).data[0].header.values, plots.show(keys).data[0].cells.values, strict=True))
    np.testing.assert_array_equal(cells["key"], keys["key"])
    assert list(cells["token"]) == ["&lt;b&gt;bold&lt;/b&gt;"] * 4
