"""Whatever an analysis returns, of however small a capture: the figure says what it is and draws something.

One rule over every shape: there is a title; a trace has numbers, or its panel a sentence; every axis is named, with
the unit of what it shows; nothing stands in the legend twice. Or `show` refuses in one sentence.
"""

import json

import numpy as np
import pytest
import xarray as xr
from tiny_hooked import random_tokens, tiny_model
from words import tokenizer_of_words

import interp
from hooks import RopeConfig
from hooks.errors import InputError, RopescopeError
from interp import plots
from interp.plots.base import heads_of

LINEAR = RopeConfig(rope_type="linear", factor=2.0, rope_theta=10_000.0)
ROPE = RopeConfig(rope_theta=10_000.0)
KINDS = ("sliding_attention", "full_attention")
CAPTURES = {
    "gqa, sliding": ({"layer_types": KINDS, "window_size": 13}, 70),
    "one head": ({"n_layers": 1, "n_heads": 1, "n_key_value_heads": 1}, 9),
    "two tokens": ({}, 2),
    "window of one": ({"layer_types": KINDS, "window_size": 1}, 9),
    "no norm": ({"qk_norm": None}, 9),
    "no rotation": ({"rope": None}, 9),
    "a layer without rotation": ({"layer_types": KINDS, "window_size": 4, "rope": {KINDS[0]: ROPE, KINDS[1]: None}}, 9),
    "alibi": ({"alibi_slopes": (2.0, 1.0, 0.5, 0.25)}, 9),
}


def swept(model, seed):
    """A needle sweep, of the same model with words."""
    texts = {"sentence": "w7 w8", "question": f"w{seed % 7}", "haystack": "w0 w1 w2 w3 " * 20}
    model = model.with_config()
    model.tokenizer = tokenizer_of_words()
    return interp.needle_sweep(model, [30, 40], [0, 0.5, 1], **texts)


GROUPS = ("rows", "keys", "distances", "map", "scores")
ANALYSES = {
    "attention_map": lambda cap, other, model: interp.attention_map(cap, 0, 0),
    "attention_pattern": lambda cap, other, model: interp.attention_pattern(cap, 0, 0),
    "bound_by_distance": lambda cap, other, model: interp.bound_by_distance(cap),
    "compare": lambda cap, other, model: interp.compare(cap, other),
    "coverage": lambda cap, other, model: interp.coverage(cap),
    "entropy_scaling": lambda cap, other, model: interp.entropy_scaling(cap, at_least=2),
    "find_sinks": lambda cap, other, model: interp.find_sinks(cap),
    "find_sinks, none": lambda cap, other, model: interp.find_sinks(cap, 1.0),
    "kv_precision": lambda cap, other, model: interp.kv_precision(cap),
    "pair_attainment": lambda cap, other, model: interp.pair_attainment(cap),
    "massive_values": lambda cap, other, model: interp.massive_values(cap),
    "rollout": lambda cap, other, model: interp.rollout(cap),
    "segment_mass": lambda cap, other, model: interp.segment_mass(cap, {"begin": 0}),
    "first_token_mass": lambda cap, other, model: interp.first_token_mass(cap),
    "frequency_bias": lambda cap, other, model: interp.frequency_bias(cap),
    "frequency_bias, binned": lambda cap, other, model: interp.frequency_bias(cap, distances="binned"),
    "head_summary": lambda cap, other, model: interp.head_summary(cap),
    "loss_by_position": lambda cap, other, model: interp.loss_by_position(cap),
    "needle_sweep": lambda cap, other, model: swept(model, len(cap.tokens)),
    "positional_bias": lambda cap, other, model: interp.positional_bias(cap),
    "precision_cost": lambda cap, other, model: interp.precision_cost(cap),
    "ranked": lambda cap, other, model: interp.ranked(interp.compare(cap, other), n=3),
    "received_by_position": lambda cap, other, model: interp.received_by_position(cap),
    "relativity_error": lambda cap, other, model: interp.relativity_error(cap, (1, 1000)),
    "score_ranges": lambda cap, other, model: interp.score_ranges(cap),
    "sink_rate": lambda cap, other, model: interp.sink_rate(cap),
    "statistics": lambda cap, other, model: cap.statistics(),
    "statistics of some queries": lambda cap, other, model: interp.attention_statistics(
        cap.q(0), cap.k(0), cap.spec(0), queries=2
    ),
    "top_keys": lambda cap, other, model: cap.top_keys(0, 0, query=-1),
    "typical_distance": lambda cap, other, model: interp.typical_distance(interp.positional_bias(cap)),
    "typical_heads": lambda cap, other, model: interp.typical_heads(interp.head_summary(cap), 2),
    "what_if_rope": lambda cap, other, model: interp.what_if_rope(cap, LINEAR),
    "what_if_rope, full": lambda cap, other, model: interp.what_if_rope(cap, LINEAR, model=model),
    "what_if_rope, rows": lambda cap, other, model: interp.what_if_rope(cap, LINEAR, groups="rows"),
} | {f"group {group}": lambda cap, other, model, group=group: cap.statistics(groups=group) for group in GROUPS}


@pytest.fixture(scope="module", params=CAPTURES)
def results(request):
    """Every result of one capture, and of the same model on another text; what an analysis refuses is left out."""
    changes, n = CAPTURES[request.param]
    model = tiny_model(**changes)
    caps = [interp.capture(model, random_tokens(n, seed=seed)[0]) for seed in (0, 3)]
    found = {}
    for name, analysis in ANALYSES.items():
        try:
            found[name] = [analysis(cap, interp.capture(model, cap.tokens), model) for cap in caps]
        except RopescopeError:
            continue
    assert len(found) > len(ANALYSES) / 2
    return found


def panels_with_a_sentence(figure):
    """The places, as (x axis, y axis) in parts of the page, in whose middle a sentence stands."""
    notes = [note for note in figure.layout.annotations if note.yanchor == "middle" and note.yref == "paper"]
    return [(note.x, note.y) for note in notes]


def is_said(places, *domains):
    """Whether a sentence stands in the middle of these domains, an axis or both of a panel."""
    return any(all(abs(sum(domain or (0, 1)) / 2 - place[at]) < 1e-6 for at, domain in domains) for place in places)


def panel_of(drawn, axis):
    """Where the panel of an x axis stands from bottom to top."""
    return drawn.get((axis.get("anchor") or "y").replace("y", "yaxis", 1), {}).get("domain")


def is_key(trace):
    """Whether a trace is there for its colour bar only."""
    return trace.type == "scatter" and trace.marker.colorbar.title.text == "layer"


def audit(figure):
    """Everything that is wrong with a figure, in words."""
    layout, wrong = figure.layout, []
    if not layout.title.text:
        wrong.append("no title")
    traces = [trace for trace in figure.data if not is_key(trace)]
    said, drawn = panels_with_a_sentence(figure), json.loads(figure.to_json())["layout"]
    if not traces and not said:
        wrong.append("neither a trace nor a sentence")
    for trace in traces:
        if trace.type == "table":
            continue
        numbers = np.asarray(trace.z if trace.type == "heatmap" else trace.y, dtype=float)
        at = [(trace[f"{letter}axis"] or letter).replace(letter, f"{letter}axis") for letter in "xy"]
        panel = enumerate(layout[name].domain for name in at)
        if not np.isfinite(numbers).any() and not is_said(said, *panel):
            wrong.append(f"{trace.type} {trace.name} is empty and nothing says so")
    for letter in "xy" if traces and traces[0].type != "table" else "":
        axes = {name: axis for name, axis in drawn.items() if name.startswith(f"{letter}axis")}
        for name, axis in axes.items():
            # Panels of a row or column share the title of the outermost.
            beside = [other for other in axes.values() if other.get("domain") == axis.get("domain")]
            # Three or more in a row with one scale share the title of the one in the middle.
            row = [other for other in axes.values() if panel_of(drawn, other) == panel_of(drawn, axis)]
            scales = {json.dumps({key: other.get(key) for key in ("type", "range", "tickvals")}) for other in row}
            if letter == "x" and len(row) > 2 and len(scales) == 1:
                beside.append(sorted(row, key=lambda other: other["domain"])[(len(row) - 1) // 2])
            spoken = is_said(said, ("xy".index(letter), axis.get("domain")))
            if not any(other.get("title", {}).get("text") for other in beside) and not spoken:
                wrong.append(f"{name} has no title")
    entries = [trace.name for trace in figure.data if trace.type != "table" and trace.showlegend is not False]
    entries = [name for name in entries if name]
    if len(entries) != len(set(entries)):
        wrong.append(f"legend entries twice: {entries}")
    return wrong


def words_of(figure):
    """Every text that names an axis, a colour bar or a panel."""
    texts = [axis.title.text for axis in (*figure.select_xaxes(), *figure.select_yaxes())]
    texts += [note.text for note in figure.layout.annotations]
    texts += [trace.colorbar.title.text for trace in figure.data if trace.type == "heatmap"]
    return " ".join(text for text in texts if text)


def shown(result, named="", **options):
    """The figure, or None where `show` refuses in one sentence, which names what it refuses."""
    try:
        return plots.show(result, **options)
    except InputError as error:
        sentence = str(error)
    assert "\n" not in sentence and "None" not in sentence and len(sentence) > 20, sentence
    assert named in sentence
    return None


def test_every_result_is_a_figure_that_says_what_it_is(results):
    for name, (result, _) in results.items():
        figure = shown(result)
        if figure is None:
            assert name in ("group scores", "group map"), name
            continue
        assert audit(figure) == [], name


@pytest.mark.slow
def test_parts_of_a_result_are_drawn_too(results):
    for name, (result, _) in results.items():
        for dim in ("layer", "head"):
            if dim in result.dims:
                for part in (result.sel({dim: 0}), result.sel({dim: [0]})):
                    figure = shown(part)
                    assert figure is not None or name in ("group scores", "group map"), name
                    assert figure is None or audit(figure) == [], (name, dim)


@pytest.mark.slow
def test_every_variable_is_drawn_with_its_unit_or_refused_by_name(results):
    drawn = 0
    for name, (result, _) in results.items():
        for variable in result.data_vars if isinstance(result, xr.Dataset) else ():
            values = result[variable]
            figure = shown(values, f"'{variable}'")
            if figure is None:
                continue
            drawn += 1
            assert audit(figure) == [], (name, variable)
            unit = values.attrs.get("units", "")
            # A map of heads without a number has a sentence in place of its colours.
            assert unit in ("", "1") or f"[{unit}]" in words_of(figure) or unit in words_of(figure), (name, variable)
    assert drawn > 20


@pytest.mark.slow
@pytest.mark.parametrize("dim", ["text", "capture", "anything"])
def test_several_results_are_a_mean_that_is_said_or_are_refused(results, dim):
    for name, both in results.items():
        if name in ("compare", "ranked") and dim == "capture":
            continue  # a dimension of their own
        if dim == "capture" and set(both[0].dims) == {"layer", "head"} and isinstance(both[0], xr.DataArray):
            continue  # a map for each capture
        figure = shown(xr.concat(both, dim, combine_attrs="override"))
        if figure is not None:
            assert audit(figure) == [], name
            assert f"mean over {dim} (2)" in (figure.layout.title.subtitle.text or ""), name


@pytest.mark.slow
def test_heads_are_picked_out_in_every_figure_that_draws_many(results):
    for name, (result, _) in results.items():
        if not {"layer", "head"} <= set(result.dims) or "group" in name:
            continue
        layer, head = heads_of(result)[-1]
        figure = shown(result, highlight={(layer, head): "induction"})
        assert figure is not None and audit(figure) == [], name
        assert f"L{layer} H{head} induction" in figure.to_json(), name
        with pytest.raises(InputError, match="L99 H0 is not in this figure"):
            plots.show(result, highlight=[(99, 0)])
