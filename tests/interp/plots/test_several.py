"""Bands, several results, colour scales and heads picked out: each drawn number against numpy on the inputs."""

import itertools

import numpy as np
import pytest
import xarray as xr

from hooks.errors import InputError
from interp import plots
from interp.common.labels import result_of
from interp.plots.bands import MOST_BANDS

DIMS = ("layer", "head", "distance")


def bias(seed, n=9, layers=2, heads=3):
    """A positional_bias Dataset of random numbers; every distance below 8 has a bin of its own."""
    rng = np.random.default_rng(seed)
    mean = rng.uniform(0.1, 1, (layers, heads, n))
    count = np.tile(n - np.arange(n), (layers, 1))
    data = dict.fromkeys(("attention_mean", "attention_share", "score_mean", "score_min", "score_max"), (DIMS, mean))
    coords = {"layer": np.arange(layers), "head": np.arange(heads), "distance": np.arange(n)}
    out = xr.Dataset({**data, "count": (("layer", "distance"), count)}, coords)
    return result_of("positional_bias", out, "")


def edges_of(figure, name):
    """Upper and lower edge of a band, read back from its outline."""
    (band,) = [trace for trace in figure.data if trace.name == f"band of {name}"]
    outline = np.asarray(band.y)[:-1]
    half = len(outline) // 2
    return outline[:half], outline[half:][::-1]


def test_several_texts_are_their_mean_between_the_lowest_and_the_highest():
    texts = [bias(seed) for seed in range(3)]
    figure = plots.show(xr.concat(texts, "text"))
    values = np.stack([text["attention_mean"].values for text in texts])[:, 1, 2]
    (line,) = [trace for trace in figure.data if trace.name == "L1 H2"]
    np.testing.assert_allclose(line.y, values.mean(0), rtol=1e-6)
    high, low = edges_of(figure, "L1 H2")
    np.testing.assert_allclose(high, values.max(0), rtol=1e-6)
    np.testing.assert_allclose(low, values.min(0), rtol=1e-6)
    assert figure.layout.title.subtitle.text == "mean over text (3); band: lowest to highest"


def test_a_longer_text_goes_on_where_the_shorter_one_ends():
    short, long = bias(0, n=5), bias(1, n=8)
    figure = plots.show(xr.concat([short, long], "text", join="outer"))
    line = next(trace for trace in figure.data if trace.name == "L0 H0")
    one, two = short["attention_mean"].values[0, 0], long["attention_mean"].values[0, 0]
    np.testing.assert_allclose(line.y, [*(one + two[:5]) / 2, *two[5:]], rtol=1e-6)


@pytest.mark.parametrize("beside", ["stderr", "low and high"])
def test_a_band_that_the_dataset_holds_is_drawn(beside):
    one = bias(0)["attention_mean"].rename("x").to_dataset().assign_coords(first_position=("distance", np.arange(9)))
    one = one.rename(distance="position_bin").drop_vars("position_bin")
    one = one.assign_coords(last_position=one["first_position"])
    spread = np.random.default_rng(1).uniform(0.01, 0.05, one["x"].shape)
    if beside == "stderr":
        one["x_stderr"] = (one["x"].dims, spread)
    else:
        one["x_low"], one["x_high"] = one["x"] - spread, one["x"] + spread
    figure = plots.rows_by_position(one)
    high, low = edges_of(figure, "L1 H0")
    np.testing.assert_allclose(high, (one["x"].values + spread)[1, 0], rtol=1e-6)
    np.testing.assert_allclose(low, (one["x"].values - spread)[1, 0], rtol=1e-6)
    assert ("standard error" in figure.layout.title.subtitle.text) == (beside == "stderr")


def test_sampled_queries_have_the_band_of_their_standard_error():
    stats = bias(0).rename(attention_mean="attention").drop_vars("attention_share")
    stats["attention_stderr"] = stats["attention"] * 0.1
    figure = plots.show(stats.assign_attrs(analysis="attention_statistics"))
    high, _ = edges_of(figure, "L0 H1")
    expected = stats["attention"].values[0, 1] * 1.1 / stats["count"].values[0]
    np.testing.assert_allclose(high, expected, rtol=1e-6)
    assert "± standard error" in figure.layout.title.subtitle.text


def test_many_heads_have_bands_only_where_they_are_picked_out():
    texts = xr.concat([bias(seed, heads=MOST_BANDS) for seed in range(2)], "text")
    bands = [[t.name for t in plots.show(texts, **o).data if t.meta] for o in ({}, {"highlight": [(1, 5)]})]
    assert bands == [[], ["band of L1 H5"]]


def test_what_has_no_mean_or_stands_in_twice_is_refused():
    one = bias(0)
    with pytest.raises(InputError, match=r'layer 0 occurs more than once.*xr.concat\(\[a, b\], "text"\)'):
        plots.show(xr.concat([one, one], "layer"))
    ranks = result_of("top_keys", xr.Dataset({"key": ("rank", [1, 2])}), "")
    with pytest.raises(InputError, match=r"top_keys over text \(2 of them\) has no mean"):
        plots.show(xr.concat([ranks, ranks + 1], "text", combine_attrs="override").assign_attrs(ranks.attrs))
    assert plots.show(xr.concat([ranks], "text")).data
    bins = xr.Dataset({"received_mean": (("layer", "head", "position_bin"), np.ones((1, 1, 2)))})
    parts = [
        bins.assign_coords(first_position=("position_bin", [0, n]), last_position=("position_bin", [n, 2 * n]))
        for n in (4, 9)
    ]
    with pytest.raises(InputError, match="first_position differs along text"):
        plots.show(result_of("received_by_position", xr.concat(parts, "text"), ""))


def test_colours_go_in_equal_steps_or_by_powers_of_ten_and_the_bar_says_which():
    values = xr.DataArray([[0.5, 0.005], [0.0, 1.0]], {"layer": [0, 1], "head": [0, 1]}, ("layer", "head"))
    log = plots.layer_head_map(values, scale="log").data[0]
    np.testing.assert_allclose(log.z, [[np.log10(0.5), np.log10(0.005)], [-3, 0]], rtol=1e-6)
    np.testing.assert_allclose(log.customdata, values, rtol=1e-6)
    assert log.colorbar.title.text == "log scale" and log.colorbar.ticktext[0] == "≤ 0.001"
    np.testing.assert_allclose(plots.layer_head_map(values).data[0].z, values, rtol=1e-6)
    cells = values.rename(layer="map_query", head="map_key")
    for scale, z in (("linear", values.values), ("log", np.maximum(np.log10(values.values + 1e-12), -5))):
        drawn = plots.pooled_map(cells, scale=scale).data[0]
        np.testing.assert_allclose(drawn.z, z, rtol=1e-5, atol=1e-9)
        assert drawn.colorbar.title.text == f"attention, {scale} scale"
        window = plots.attention_window(cells.rename(map_query="query", map_key="key"), scale=scale).data[0]
        np.testing.assert_allclose(window.z, z, rtol=1e-5, atol=1e-9)
    with pytest.raises(InputError, match=r"scale='ln': give one of 'log', 'linear'"):
        plots.pooled_map(cells, scale="ln")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r'scale="log": -0.5 is below zero'):
        plots.layer_head_map(values - 0.5, scale="log")


def test_a_head_picked_out_is_on_top_and_in_the_legend_once():
    figure = plots.show(bias(0), highlight={(0, 1): "<b>induction</b>", (1, 0): ""})
    legend = [trace.name for trace in figure.data if trace.showlegend]
    assert legend == ["L0 H1 &lt;b&gt;induction&lt;/b&gt;", "L1 H0"]
    assert {trace.name for trace in figure.data[-3:-1]} == set(legend)  # before the key to the layers' colours
    for wrong in ("induction", [3], [(0,)], 5, [("a", "b")]):
        with pytest.raises(InputError, match=r"give \(layer, head\) pairs"):
            plots.show(bias(0), highlight=wrong)


def test_long_texts_are_means_of_stretches_between_their_extremes():
    n = 300
    entropy = np.random.default_rng(0).random((2, n))
    rows = xr.Dataset(
        {"entropy": (("head", "query"), entropy, {"units": "nat"})}, {"head": [0, 1], "query": np.arange(n)}
    )
    figure = plots.show(result_of("attention_statistics", rows, ""))
    line = next(trace for trace in figure.data if trace.name == "H1")
    cuts = np.linspace(0, n, 65).astype(int)
    parts = [entropy[1, a:b] for a, b in itertools.pairwise(cuts)]
    np.testing.assert_allclose(line.y, [part.mean() for part in parts], rtol=1e-6)
    high, low = edges_of(figure, "H1")
    np.testing.assert_allclose(high, [part.max() for part in parts], rtol=1e-6)
    np.testing.assert_allclose(low, [part.min() for part in parts], rtol=1e-6)
