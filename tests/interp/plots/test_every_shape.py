"""Whatever an analysis returns, of however small a capture: the figure says what it is and draws something.

One rule over every shape: there is a title; a trace has numbers, or its panel a sentence; every axis is named, with
the unit of what it shows; nothing stands in the legend twice. Or `show` refuses in one sentence.
"""

import pytest
import xarray as xr
from figure_audit import audit
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


METRIC = interp.metrics.logit_difference(3, 5)


def moved(cap, model):
    """The same text captured with a gradient."""
    return interp.capture(model, cap.tokens, gradient_of=METRIC)


def patched(cap, model, at, by):
    """Patches from the text read backwards."""
    return interp.activation_patching(model, cap.tokens.flip(0), cap.tokens, METRIC, at, by)


GROUPS = ("rows", "keys", "distances", "map", "scores")
ANALYSES = {
    "activation_patching": lambda cap, other, model: patched(cap, model, "z", "head"),
    "activation_patching, kv heads": lambda cap, other, model: patched(cap, model, "k", "head"),
    "activation_patching, positions": lambda cap, other, model: patched(cap, model, "residual", "position"),
    "activation_patching, blocks": lambda cap, other, model: patched(cap, model, "residual", "block"),
    "attention_map": lambda cap, other, model: interp.attention_map(cap, 0, 0),
    "attention_pattern": lambda cap, other, model: interp.attention_pattern(cap, 0, 0),
    "audit, heads": lambda cap, other, model: interp.audit(model).heads,
    "audit, layers": lambda cap, other, model: interp.audit(model).layers,
    "audit, one head": lambda cap, other, model: interp.audit(model).heads.sel(layer=0, head=0),
    "audit, rotations": lambda cap, other, model: interp.audit(model).rotations,
    "audit, schedules": lambda cap, other, model: interp.audit(model).schedules,
    "coverage": lambda cap, other, model: interp.coverage(cap),
    "attribution": lambda cap, other, model: interp.attribution(moved(cap, model)),
    "attribution_patching": lambda cap, other, model: interp.attribution_patching(moved(cap, model), other),
    "bound_by_distance": lambda cap, other, model: interp.bound_by_distance(cap),
    "compare": lambda cap, other, model: interp.compare(cap, other),
    "direct_logit_attribution": lambda cap, other, model: interp.direct_logit_attribution(cap, 3),
    "first_token_mass": lambda cap, other, model: interp.first_token_mass(cap),
    "frequency_bias": lambda cap, other, model: interp.frequency_bias(cap),
    "frequency_bias, binned": lambda cap, other, model: interp.frequency_bias(cap, distances="binned"),
    "head_summary": lambda cap, other, model: interp.head_summary(cap),
    "knock_out_sweep": lambda cap, other, model: interp.knock_out_sweep(model, cap.tokens, METRIC),
    "knock_out_sweep, segments": lambda cap, other, model: interp.knock_out_sweep(
        model, cap.tokens, METRIC, {"first": 0, "last": -1}
    ),
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
    "top_edges": lambda cap, other, model: interp.top_edges(moved(cap, model), 5),
    "top_keys": lambda cap, other, model: cap.top_keys(0, 0, query=-1),
    "top_tokens": lambda cap, other, model: interp.top_tokens(interp.attribution(moved(cap, model)), 5),
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
