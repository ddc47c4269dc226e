"""What every variable of every analysis says of itself is what its table says, and no row of a table is dead."""

import inspect
import re
from collections.abc import Iterator

import numpy as np
import pytest
import xarray as xr
from tiny_hooked import random_tokens, tiny_model
from words import tokenizer_of_words

import interp
from hooks import RopeConfig
from interp import capture
from interp.analyses.heads.schema import KINDS, SCORES
from interp.analyses.patterns.windows import top_keys
from interp.analyses.position.frequencies import frequency_scores
from interp.analyses.scores.by_stage import stage_ranges
from interp.analyses.weights.audit_data import DATASETS
from interp.common.binning import bin_distances
from interp.common.labels import labelled
from interp.common.schema import COORDINATES, Variable, digest
from interp.measure.schema import GROUPS, STANDARD_ERRORS, VARIABLES
from interp.reporting.catalogue import CATALOGUE
from interp.storage.statistics_store import StatisticsStore
from interp.texts.needles import Needle

SAID = ("units", "description", "formula", "source")
N = 90
AUDIT = {f"audit_{name}" for name in DATASETS}
BINNED = {"distance": "distance_bin"}


@pytest.fixture(scope="module")
def results():
    """Each analysis with its results; a result comes with the settings in its words, and with its own dimensions."""
    model, tokens = tiny_model(), random_tokens(N)[0]
    cap = capture(model, tokens)
    cap_b = capture(model.with_config(rope=RopeConfig(rope_theta=500.0)), tokens)
    needle = Needle(tokens, slice(10, 14), slice(80, 84))
    q, k, spec, constants = cap.q(0), cap.k(0), cap.spec(0), cap.constants(0)
    statistics, bias = cap.statistics(), interp.positional_bias(cap)
    summary, comparison = interp.head_summary(cap, needle=needle), interp.compare(cap, cap_b, ("ours", "theirs"))
    pair = {"a": "ours", "b": "theirs"}
    with interp.watch_scores(model) as watch:
        model(tokens[None])
        watch.step()
    audit, audited = interp.audit(model, factor=3), {"factor": "3", "n_tokens": f"{model.cfg.d_vocab}"}
    return {
        **{f"audit_{name}": [(result, audited, {})] for name, result in audit.datasets.items()},
        "attention_statistics": [
            (interp.attention_statistics(q, k, spec, v=cap.v(0), w_o=constants.w_o, queries=20), {}, {}),
            (statistics, {}, {"": ("layer",)}),
        ],
        "score_quantile": [(interp.score_quantile(statistics.isel(layer=0), [0.1, 0.5]), {}, {})],
        "positional_bias": [(bias, {}, {}), (bin_distances(bias).drop_vars("window"), {}, BINNED)],
        "typical_distance": [(interp.typical_distance(bias, 0.9), {"percent": "90%", "share": "0.9"}, {})],
        "frequency_bias": [
            (interp.frequency_bias(cap), {}, {}),
            (interp.frequency_bias(cap, distances="binned"), {}, BINNED),
            (frequency_scores(q, k, spec, constants.inv_freq), {}, {"layer": ()}),
        ],
        "received_by_position": [(interp.received_by_position(cap), {}, {})],
        "first_token_mass": [(interp.first_token_mass(cap), {}, {})],
        "sink_rate": [(interp.sink_rate(cap, 2, 0.25), {"k": 2, "epsilon": "0.25"}, {})],
        "loss_by_position": [(interp.loss_by_position(cap), {}, {})],
        "attention_pattern": [(interp.attention_pattern(cap, 0, 1), {"head": "layer 0, head 1"}, {})],
        "attention_map": [
            (interp.attention_map(cap, 1, 2), {"head": "layer 1, head 2", "reduce": "mean"}, {}),
            (interp.attention_map(cap, 1, 3, 8, "max"), {"head": "layer 1, head 3", "reduce": "max"}, {}),
        ],
        "top_keys": [(top_keys(cap, 0, 1, 50), {}, {})],
        "coverage": [(interp.coverage(cap), {}, {})],
        "what_if_rope": [(interp.what_if_rope(cap, RopeConfig(rope_theta=500.0), model=model), {}, {})],
        "relativity_error": [(interp.relativity_error(cap), {}, {})],
        "score_ranges": [(interp.score_ranges(cap), {}, {})],
        "stage_ranges": [(stage_ranges(cap), {}, {})],
        "bound_by_distance": [(interp.bound_by_distance(cap), {}, {})],
        "precision_cost": [(interp.precision_cost(cap, queries=16), {}, {})],
        "watch_scores": [(watch.dataset(), {}, {})],
        "head_summary": [(summary, {}, {})],
        "typical_heads": [(interp.typical_heads(summary), {}, {})],
        "needle_sweep": [(swept(), {}, {})],
        **causes(model, tokens),
        "compare": [(comparison, pair, {})],
        "ranked": [(interp.ranked(comparison), pair, {})],
    }


def causes(model, tokens):
    """What attributes, patches and knocks out, by every part."""
    metric = interp.metrics.logit(3)
    cap, other = interp.capture(model, tokens, gradient_of=metric), interp.capture(model, tokens.flip(0))
    effects = interp.attribution(cap)
    patched = [
        (interp.activation_patching(model, tokens, tokens.flip(0), metric, at, by, layers=1), {}, {"head": own})
        for at, by, own in (("z", "head", "head"), ("k", "head", "kv_head"), ("residual", "block", ()))
    ]
    estimated = [
        (interp.attribution_patching(cap, other, "v", by=by), {}, {"head": own})
        for by, own in (("head", "kv_head"), ("position", "position"), ("block", ()))
    ]
    cut = interp.knock_out_sweep(model, tokens, metric, {"first": 0}, layers=0)
    return {
        "attribution": [(effects, {}, {})],
        "top_edges": [(interp.top_edges(cap), {}, {})],
        "top_tokens": [(interp.top_tokens(effects), {}, {})],
        "activation_patching": patched,
        "attribution_patching": estimated,
        "knock_out_sweep": [
            (interp.knock_out_sweep(model, tokens, metric, layers=0), {}, {}),
            (cut, {}, {"head": ("head", "segment")}),
        ],
        "direct_logit_attribution": [(interp.direct_logit_attribution(cap, 3), {}, {})],
    }


def swept():
    """A needle sweep of a model that has words."""
    model = tiny_model()
    model.tokenizer = tokenizer_of_words()
    haystack = "w0 w1 w2 w3 " * 20
    return interp.needle_sweep(model, [30, 40], [0, 1], sentence="w7 w8", question="w2", haystack=haystack)


def variables_of(analysis: str, result: xr.Dataset | xr.DataArray) -> Iterator[tuple[str, xr.DataArray]]:
    """A result's variables by name; an array that stands alone is its analysis' only one."""
    if isinstance(result, xr.DataArray):
        yield analysis, result
    else:
        yield from ((str(name), values) for name, values in result.data_vars.items())


def expected_dims(row: Variable, own: dict) -> tuple[str, ...]:
    """The dimensions of a row in a result that has its own: {replaced: by what}, the empty name what leads."""
    replaced = {name: (to,) if isinstance(to, str) else to for name, to in own.items()}
    return replaced.get("", ()) + tuple(dim for said in row.dims for dim in replaced.get(said, (said,)))


@pytest.mark.parametrize("analysis", CATALOGUE)
def test_every_variable_says_what_its_table_says(results, analysis):
    table, seen = CATALOGUE[analysis], set()
    for result, settings, own_dims in results[analysis]:
        for name, values in variables_of(analysis, result):
            row = table[name]
            seen.add(name)
            said = {key: values.attrs[key] for key in SAID if key in values.attrs}
            assert said == row.at(**settings).attrs, name
            assert values.dims == expected_dims(row, own_dims), name
            assert {"units", "description", "formula"} <= set(said) and said["description"]
            assert bool(said["formula"]) or not said["units"], f"{name} is a number without a formula"
            assert not re.search(r"<\w+>", " ".join(said.values())), name
    assert set(table) == seen


def test_every_public_analysis_has_a_table():
    public = {name: getattr(interp, name) for name in interp.__all__}
    analyses = {
        name
        for name, function in public.items()
        if inspect.isfunction(function) and inspect.signature(function).return_annotation in (xr.Dataset, xr.DataArray)
    }
    assert analyses <= set(CATALOGUE)
    assert set(CATALOGUE) - analyses == {"stage_ranges", "top_keys", "watch_scores", *AUDIT}


def test_coordinates_say_the_same_everywhere(results):
    for analysis, several in results.items():
        for result, _, _ in several:
            if isinstance(result, xr.Dataset):
                for name in set(result.coords) & set(COORDINATES):
                    assert result[name].attrs == COORDINATES[str(name)], (analysis, name)


def test_a_variable_without_a_row_cannot_leave_an_analysis():
    table = {"here": Variable(("x",), "1", "a ratio of <what>", "<what> / 2")}
    made = labelled(xr.Dataset({"here": ("x", [1.0], {"side": "both"})}), table, what="tea")
    assert made["here"].attrs == {"units": "1", "description": "a ratio of tea", "formula": "tea / 2", "side": "both"}
    with pytest.raises(KeyError, match="there"):
        labelled(xr.Dataset({"there": ("x", [1.0])}), table, what="tea")
    with pytest.raises(KeyError, match="what"):
        labelled(xr.Dataset({"here": ("x", [1.0])}), table)


def test_rows_name_groups_and_kinds_that_exist():
    assert {row.group for row in VARIABLES.values()} == set(GROUPS)
    assert {name.removesuffix("_stderr") for name in STANDARD_ERRORS} <= set(VARIABLES)
    assert set(KINDS) <= set(SCORES)


@pytest.mark.parametrize("field", [name for name in Variable._fields if name != "label"])
def test_kept_statistics_are_dropped_when_what_a_variable_means_changes(tmp_path, monkeypatch, field):
    store = StatisticsStore(tmp_path, {0: "hash"})
    kept = xr.Dataset({"lse": (("head", "query"), np.ones((1, 2)))})
    store.save(0, {"map_size": 128}, kept)
    assert store.load(0, {"map_size": 128}) is not None
    other = ("elsewhere",) if field == "dims" else "something else"
    changed = {**VARIABLES, "lse": VARIABLES["lse"]._replace(**{field: other})}
    assert digest(changed) != digest(VARIABLES)
    monkeypatch.setattr("interp.storage.statistics_store.VARIABLES", changed)
    assert store.load(0, {"map_size": 128}) is None
    renamed = {**VARIABLES, "lse": VARIABLES["lse"]._replace(label="what a report calls it")}
    monkeypatch.setattr("interp.storage.statistics_store.VARIABLES", renamed)
    assert store.load(0, {"map_size": 128}) is not None
