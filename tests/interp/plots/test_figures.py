"""Every figure draws the Dataset's own numbers, on every shape of Dataset, light and dark."""

import json

import numpy as np
import pytest
import torch
import xarray as xr

from hooks import AttentionSpec
from hooks.errors import ImageExportError, InputError
from interp import plots
from interp.common.labels import result_of
from interp.common.words import token_text
from interp.measure.statistics import attention_statistics
from interp.plots import theme
from interp.plots.base import signed_log
from interp.plots.reduced import binned_by_distance, thinned

# layers, heads, tokens, window: one head, one layer, a sliding window, two tokens, SmolLM2's 270 heads.
SHAPES = [(1, 1, 1, 0), (1, 5, 40, 0), (3, 1, 65, 7), (2, 2, 2, 1), (30, 9, 50, 16)]
shapes = pytest.mark.parametrize(("layers", "heads", "n", "window"), SHAPES, ids=str)
HEAD = ("layer", "head")


def numbers(shape, seed=0, gaps=True):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape)
    if gaps and values.size > 3:
        values.flat[:: max(values.size // 3, 2)] = np.nan
    return values


def coordinates(layers, heads):
    kinds = (["sliding_attention", "full_attention"] * layers)[:layers]
    return {"layer": np.arange(layers) + 2, "head": np.arange(heads), "layer_type": ("layer", kinds)}


def both_themes(figure):
    """The figure as a browser gets it, and its dark twin, whose data are the same."""
    light, dark = json.loads(figure.to_json()), json.loads(plots.dark(figure).to_json())
    assert len(light["data"]) == len(dark["data"]) > 0
    for one, other in zip(light["data"], dark["data"], strict=True):
        for name in theme.CONTENT_KEYS & set(one):
            assert one[name] == other[name]
    assert dark["layout"]["template"]["layout"]["paper_bgcolor"] == theme.DARK[theme.PAPER]
    return figure


def statistics(layers, heads, n, window, seed=0):
    rng = np.random.default_rng(seed)
    count = np.tile(n - np.arange(n), (layers, 1))
    if window:
        count[0, window:] = 0
    seen = count[:, None, :] > 0
    dims = (*HEAD, "distance")
    score = np.where(seen, rng.normal(size=(layers, heads, n)), np.nan)
    data = {
        "attention": (dims, rng.random((layers, heads, n)) * seen),
        "score_mean": (dims, score),
        "score_min": (dims, score - 1),
        "score_max": (dims, score + 1),
        "count": (("layer", "distance"), count),
    }
    return xr.Dataset(data, {**coordinates(layers, heads), "distance": np.arange(n)})


@shapes
def test_variants_stand_side_by_side(layers, heads, n, window):
    run = statistics(layers, heads, n, window)
    both = xr.concat([run, statistics(layers, heads, n, window, 1)], "variant").assign_coords(
        variant=["as_run", "what_if"]
    )
    both = result_of("what_if_rope", both, "")
    figure = both_themes(plots.show(both))
    lines = [trace for trace in figure.data if trace.name]
    assert len(lines) == 2 * layers * heads
    binned = binned_by_distance(both)
    expected = binned["attention_mean"].sel(variant="what_if").values[-1, -1].astype(np.float32)
    np.testing.assert_array_equal(lines[-1].y, np.where(expected > 0, expected, np.nan))
    np.testing.assert_allclose((binned["attention_share"].sum("distance_bin") - 1).values, 0, atol=1e-9)


@shapes
def test_a_bare_pass_and_one_selected_head_draw_too(layers, heads, n, window):
    stats = result_of("attention_statistics", statistics(layers, heads, n, window), "")
    assert len([t for t in plots.show(stats).data if t.name]) == layers * heads
    assert [t.name for t in plots.show(stats.isel(layer=0, head=0)).data] == ["L2 H0"]
    both_themes(plots.show(stats.isel(layer=0, drop=True)))


@shapes
def test_frequency_pairs(layers, heads, n, window):
    pairs = 6
    bias = xr.Dataset(
        {
            "score_mean": ((*HEAD, "pair", "distance"), numbers((layers, heads, pairs, n))),
            "q_norm": ((*HEAD, "pair"), numbers((layers, heads, pairs), gaps=False) ** 2),
            "k_norm": ((*HEAD, "pair"), numbers((layers, heads, pairs), 1) ** 2),
            "wavelength": (("layer", "pair"), np.tile([6.28, 50, 400, 3e3, 2e4, np.inf], (layers, 1))),
        },
        {**coordinates(layers, heads), "pair": np.arange(pairs), "distance": np.arange(n)},
    )
    bias = result_of("frequency_bias", bias, "")
    one = both_themes(plots.show(bias, layer=layers + 1, head=heads - 1))
    q, k, map_ = one.data
    np.testing.assert_array_equal(q.y, bias["q_norm"].values[-1, -1, :5])
    np.testing.assert_array_equal(k.y, bias["k_norm"].values[-1, -1, :5])
    drawn = thinned(bias)["score_mean"].values[-1, -1, :5].astype(np.float32)
    np.testing.assert_array_equal(map_.z, drawn)
    assert len(map_.x) == drawn.shape[1] + 1 and (np.diff(map_.x) > 0).all()
    every = both_themes(plots.show(bias))
    if layers * heads > 1:
        np.testing.assert_array_equal(every.data[0].z[-1], bias["q_norm"].values[-1, -1].astype(np.float32))


@shapes
def test_score_ranges_by_variant_with_bound_quantiles_and_float16(layers, heads, n, window):
    variants, levels = ["as_run", "no_norm", "no_rope"], [0.01, 0.5, 0.99]
    shape = (layers, heads, 3)
    middle, width = numbers(shape, gaps=False) * 5, np.abs(numbers(shape, 2, gaps=False)) + 0.1
    middle[:, :, 2] = np.nan
    quantiles = middle[..., None] + width[..., None] * np.array([-0.5, 0, 0.5])
    dims = (*HEAD, "variant")
    ranges = xr.Dataset(
        {
            "min": (dims, middle - width),
            "max": (dims, middle + width),
            "mean": (dims, middle),
            "bound": (dims, np.where(np.arange(3) == 0, 40.0, np.nan) * np.ones(shape)),
            "quantile": ((*dims, "q"), quantiles),
            "float16_limit": ("layer", np.full(layers, 4094.0)),
            "bound_reason": (("layer", "variant"), [["", "nothing limits q and k", "there is no rotation"]] * layers),
        },
        {**coordinates(layers, heads), "variant": variants, "q": levels},
    )
    figure = both_themes(plots.show(result_of("score_ranges", ranges, "")))
    bars = [trace for trace in figure.data if trace.type == "bar"]
    bases = np.concatenate([np.asarray(bar.base, dtype=float) for bar in bars])
    # The third variant, which no head has, is a strip that says so.
    there = np.concatenate([ranges["min"].values[..., :2].ravel(), quantiles[..., :2, 0].ravel()])
    assert np.isfinite(there).all() and len(bases) == len(there)
    expected = signed_log(there)
    sentences = [note.text for note in figure.layout.annotations if "no head has it" in note.text]
    assert sentences == ["no head has it: there is no rotation"]
    np.testing.assert_allclose(np.sort(bases), np.sort(expected))
    limits = [trace for trace in figure.data if "float16" in (trace.name or "")]
    assert len(limits) == 4
    np.testing.assert_allclose(np.nanmax(limits[0].y), signed_log(np.array(4094.0)))
    named = [trace.name for trace in figure.data if trace.showlegend and trace.name]
    assert len(named) == len(set(named))


@shapes
def test_numbers_of_heads(layers, heads, n, window):
    scores = xr.Dataset(
        {f"score_{i}": (HEAD, numbers((layers, heads), i) * (i or np.nan), {"units": "1"}) for i in range(6)},
        coordinates(layers, heads),
    )
    scores["kind"] = ("layer", ["x"] * layers)
    scores = result_of("head_summary", scores, "")
    figure = both_themes(plots.show(scores))
    assert len(figure.data) == 6
    np.testing.assert_array_equal(figure.data[3].z, scores["score_3"].values.astype(np.float32))
    assert figure.data[3].zmin == -figure.data[3].zmax or (np.nan_to_num(figure.data[3].z) >= 0).all()
    table = both_themes(plots.head_table(scores))
    np.testing.assert_array_equal(table.data[0].cells.values[4], scores["score_3"].values.ravel())
    both_themes(plots.show(result_of("compare", scores, "")))
    one = both_themes(plots.show(scores["score_3"]))
    np.testing.assert_array_equal(one.data[0].z, scores["score_3"].values.astype(np.float32))


@shapes
def test_change_by_distance(layers, heads, n, window):
    values = xr.DataArray(
        numbers((layers, heads, n)), {**coordinates(layers, heads), "distance": np.arange(n)}, (*HEAD, "distance")
    )
    figure = both_themes(plots.comparison_by_distance(values, title="t"))
    np.testing.assert_array_equal(figure.data[0].z[-1], values.values[-1, -1].astype(np.float32))


@shapes
def test_received_and_precision(layers, heads, n, window):
    bins = min(n, 8)
    starts = np.linspace(0, n, bins + 1).astype(int)[:-1]
    received = xr.Dataset(
        {
            "received_mean": ((*HEAD, "position_bin"), numbers((layers, heads, bins)) ** 2),
            "received_value_mean": ((*HEAD, "position_bin"), numbers((layers, heads, bins)) ** 2),
            "uniform_mean": (("layer", "position_bin"), np.full((layers, bins), 0.1)),
        },
        {
            **coordinates(layers, heads),
            "first_position": ("position_bin", starts),
            "last_position": ("position_bin", np.append(starts[1:], n) - 1),
        },
    )
    figure = both_themes(plots.show(result_of("received_by_position", received, "")))
    last = received["received_mean"].values[-1, -1].astype(np.float32)
    drawn = next(trace for trace in figure.data if trace.name == f"L{layers + 1} H{heads - 1}")
    np.testing.assert_array_equal(drawn.y, last)
    both_themes(plots.received_by_position(received, weighted=True))
    cost = numbers((layers, heads, 3)) ** 2
    cost[0, 0, 0] = np.inf
    precision = xr.Dataset(
        {"kl": ((*HEAD, "dtype"), cost, {"units": "nat", "description": "KL"})},
        {**coordinates(layers, heads), "dtype": ["float16", "bfloat16", "int8"]},
    )
    figure = both_themes(plots.show(result_of("precision_cost", precision, "")))
    expected = np.where(np.isfinite(cost[..., 1]), cost[..., 1], np.nan).astype(np.float32)
    drawn = {trace.name: trace.y for trace in figure.data}
    np.testing.assert_array_equal(drawn["bfloat16"], expected.ravel())
    assert ("float16" in drawn) == bool(np.isfinite(cost[..., 0]).any())


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (3, 90), (40, 40)])
def test_maps_and_windows(queries, keys):
    attention = np.random.default_rng(0).random((queries, keys)) ** 9
    attention[0, 0] = 0
    cells = xr.DataArray(
        attention, {"map_query": np.arange(queries), "map_key": np.arange(keys)}, ("map_query", "map_key")
    )
    figure = both_themes(plots.show(result_of("attention_map", cells, "attention of layer 1, head 2")))
    np.testing.assert_array_equal(figure.data[0].customdata, attention.astype(np.float32))
    assert "layer 1, head 2" in figure.layout.title.text
    hostile = ["<b>", "</script>", "\u202e", "a b", "w" * 99, "\ud800", "\x00"]
    labels = {
        "query": np.arange(queries),
        "key": np.arange(keys),
        "query_token": ("query", np.resize(hostile, queries).astype(object)),
    }
    pattern = xr.DataArray(attention, {name: labels[name] for name in ("query", "key")}, ("query", "key"))
    pattern["query_token"] = xr.Variable("query", np.array(["<b>bold</b>"] * queries, dtype=object))
    figure = both_themes(plots.show(result_of("attention_pattern", pattern, "attention of layer 1, head 2")))
    np.testing.assert_array_equal(figure.data[0].customdata, attention.astype(np.float32))
    assert "<b>" not in figure.to_json().replace("\\u003c", "<")
    shown = [token_text(token) for token in hostile]
    assert shown == ["&lt;b&gt;", "&lt;/script&gt;", "⟨202E⟩", "a·b", "w" * 23 + "…", "⟨D800⟩", "⟨0000⟩"]


def test_loss_of_several_schedules():
    run = xr.Dataset(
        {"loss_mean": ("position_bin", [3.0, 2.0]), "loss_stderr": ("position_bin", [0.1, 0.2])},
        {"first_position": ("position_bin", [1, 5]), "last_position": ("position_bin", [4, 9])},
    )
    figure = both_themes(plots.loss_by_position({"default": run, "<i>yarn</i>": run + 1}, title="t"))
    np.testing.assert_array_equal(figure.data[1].y, [4.0, 3.0])
    assert figure.data[1].name == "&lt;i&gt;yarn&lt;/i&gt;"
    assert figure.layout.yaxis.range[1] > 4.1


def test_what_cannot_be_shown_says_so():
    with pytest.raises(InputError, match="no figure for the analysis 'nothing'"):
        plots.show(result_of("nothing", xr.Dataset(), ""))
    with pytest.raises(InputError, match=r"no figure shows this array over \(x\)"):
        plots.show(xr.DataArray([1.0], dims="x"))
    with pytest.raises(InputError, match="a Dataset that no analysis marked"):
        plots.show(xr.Dataset())
    with pytest.raises(InputError, match="this is a list"):
        plots.show([1.0])  # pyright: ignore[reportArgumentType]


def test_dark_changes_colours_and_never_words():
    figure = plots.layer_head_map(xr.DataArray([[0.5]], {"layer": [0], "head": [0]}, HEAD), title=theme.SLIDING)
    dark = plots.dark(figure)
    assert dark.layout.title.text == theme.SLIDING
    assert dark.data[0].colorscale[0][1] == theme.DARK[theme.SHADES[0]]
    assert len(set(theme.DARK)) == len(theme.DARK)


def luminance(colour):
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, two):
    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


def test_colours_stand_out_on_their_paper():
    for colour in (theme.INK, theme.QUIET, theme.BOUND):
        assert contrast(colour, theme.PAPER) > 4.5
        assert contrast(theme.DARK[colour], theme.DARK[theme.PAPER]) > 4.5
    for colour in (*theme.SERIES, theme.LIMIT, *(theme.layer_colour(i / 9) for i in range(10))):
        assert contrast(colour, theme.PAPER) > 1.65
        assert contrast(theme.DARK[colour], theme.DARK[theme.PAPER]) > 3


def test_files_by_their_ending(tmp_path, monkeypatch):
    figure = plots.layer_head_map(xr.DataArray([[0.5]], {"layer": [0], "head": [0]}, HEAD))
    assert "plotly" in plots.save(figure, tmp_path / "f.html").read_text(encoding="utf-8")
    with pytest.raises(ImageExportError, match="ending must be one of"):
        plots.save(figure, tmp_path / "f.txt")
    monkeypatch.setitem(__import__("sys").modules, "kaleido", None)
    with pytest.raises(ImageExportError, match=r"ropescope\[images\]"):
        plots.save(figure, tmp_path / "f.png")
    assert not (tmp_path / "f.png").exists()


def test_statistics_draw_themselves_and_say_what_they_lack():
    q, k = torch.randn(40, 3, 8), torch.randn(40, 1, 8)
    spec = AttentionSpec(scale=0.3)
    assert len(plots.show(attention_statistics(q, k, spec)).data) == 3
    for groups, panels in (("rows", 5), ("keys", 2), (("rows", "keys"), 5)):
        drawn = plots.show(attention_statistics(q, k, spec, groups=groups))
        assert len([trace for trace in drawn.data if trace.meta is None]) == 3 * panels
    with pytest.raises(InputError, match=r"score_count, which no figure shows.*measure with \"distances\""):
        plots.show(attention_statistics(q, k, spec, groups="scores"))
