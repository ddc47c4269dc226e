"""Figures draw the Dataset's own numbers, on every shape of Dataset."""

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from hooks.errors import InputError
from interp import plots
from interp.analyses.position.distance import typical_distance
from interp.analyses.position.losses import binned_loss
from interp.common.binning import bin_distances
from interp.plots import png, theme


def bias_dataset(layers, heads, n, window=0, seed=0):
    rng = np.random.default_rng(seed)
    shape = (layers, heads, n)
    count = np.tile(n - np.arange(n), (layers, 1))
    if window:
        count[0, window:] = 0
    seen = count[:, None, :] > 0
    share = rng.random(shape) * seen
    share /= share.sum(-1, keepdims=True)
    low = rng.normal(size=shape)

    def gaps(values):
        return np.where(seen, values, np.nan)

    dims = ("layer", "head", "distance")
    return xr.Dataset(
        {
            "attention_mean": (dims, gaps(share / np.maximum(count[:, None, :], 1))),
            "attention_share": (dims, gaps(share)),
            "score_mean": (dims, gaps(low + 1)),
            "score_min": (dims, gaps(low)),
            "score_max": (dims, gaps(low + 2)),
            "count": (("layer", "distance"), count),
            "window": ("layer", [window, *[0] * (layers - 1)]),
        },
        coords={"layer": np.arange(layers), "head": np.arange(heads), "distance": np.arange(n)},
    )


def range_dataset(layers, heads, stages):
    rng = np.random.default_rng(1)
    shape = (layers, heads, stages)
    low, high = -rng.random(shape) * 9, rng.random(shape) * 9
    bound = np.full(shape, 10.0)
    bound[..., 0] = np.nan
    if stages > 1:
        low[-1, :, 1] = high[-1, :, 1] = np.nan
    dims = ("layer", "head", "stage")
    return xr.Dataset(
        {
            "score_min": (dims, low),
            "score_max": (dims, high),
            "score_mean": (dims, (low + high) / 2),
            "bound": (dims, bound),
        },
        coords={
            "layer": np.arange(layers),
            "head": np.arange(heads),
            "stage": [f"s{i}" for i in range(stages)],
            "stage_label": ("stage", [f"Stage {i}" for i in range(stages)]),
            "layer_type": ("layer", (["sliding_attention", "full_attention"] * layers)[:layers]),
        },
    )


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 700),
    layers=st.integers(1, 3),
    heads=st.integers(1, 3),
    per_octave=st.integers(1, 6),
    window=st.integers(0, 40),
)
def test_bins_merge_exactly(n, layers, heads, per_octave, window):
    bias = bias_dataset(layers, heads, n, min(window, n - 1), seed=n)
    binned = bin_distances(bias, per_octave)
    first, last = binned["first_distance"].values, binned["last_distance"].values
    assert first[0] == 0
    assert last[-1] == n - 1
    np.testing.assert_array_equal(first[1:], last[:-1] + 1)
    for b, (low, high) in enumerate(zip(first, last, strict=True)):
        cells = bias.isel(distance=slice(low, high + 1))
        one = binned.isel(distance_bin=b)
        count = cells["count"].sum("distance")
        np.testing.assert_array_equal(one["count"], count)
        total = (cells["attention_mean"] * cells["count"]).sum("distance")
        np.testing.assert_allclose(one["attention_mean"] * count, total.transpose("layer", "head").where(count > 0))
        np.testing.assert_array_equal(one["score_min"], cells["score_min"].min("distance"))
        np.testing.assert_array_equal(one["score_max"], cells["score_max"].max("distance"))
    np.testing.assert_allclose(binned["attention_share"].sum("distance_bin"), 1)


@given(n=st.integers(1, 200), share=st.sampled_from([0.1, 0.5, 0.9, 1.0]))
@settings(max_examples=20, deadline=None)
def test_typical_distance_is_the_smallest_that_holds_the_share(n, share):
    bias = bias_dataset(2, 2, n, seed=n)
    mass = np.nan_to_num(bias["attention_share"].values).cumsum(-1)
    expected = (mass >= share * (1 - 1e-9)).argmax(-1)
    np.testing.assert_array_equal(typical_distance(bias, share), expected)


def test_typical_distance_counts_keys_on_both_sides():
    share = np.array([0.1, 0.0, 0.3, 0.05, 0.2, 0.35])  # of Δ from −3 to 2
    bias = xr.Dataset(
        {"attention_share": (("layer", "head", "distance"), share[None, None])},
        {"layer": [0], "head": [0], "distance": np.arange(-3, 3)},
    )
    for wanted, expected in ((0.05, 0), (0.5, 1), (0.56, 2), (0.95, 3), (1.0, 3)):
        assert typical_distance(bias, wanted).item() == expected
    for wrong in (0, -1, 50):
        with pytest.raises(InputError, match="above 0 and of at most 1"):
            typical_distance(bias, wrong)


@pytest.mark.parametrize(
    ("layers", "heads", "n", "window"), [(1, 1, 1, 0), (2, 3, 2, 1), (3, 1, 97, 8), (30, 9, 4001, 512)]
)
def test_distance_figures_draw_every_head(layers, heads, n, window):
    binned = bin_distances(bias_dataset(layers, heads, n, window)).assign_attrs(n_layers=layers)
    curves = plots.attention_by_distance(binned, title="t", y_range=(1e-6, 1.0))
    drawn = {trace.name: trace for trace in curves.data if trace.name}
    assert len(drawn) == layers * heads
    last = f"L{layers - 1} H{heads - 1}"
    expected = binned["attention_mean"].values[-1, -1].astype(np.float32)
    np.testing.assert_array_equal(drawn[last].y, np.where(expected > 0, expected, np.nan))
    shares = plots.attention_share_by_head(binned, title="t", ceiling=1.0)
    z = np.asarray(shares.data[0].z)
    assert z.shape == (layers * heads, binned.sizes["distance_bin"])
    np.testing.assert_array_equal(z[-1], binned["attention_share"].values[-1, -1].astype(np.float32))
    assert len(shares.data[0].x) == z.shape[1] + 1
    assert (np.diff(shares.data[0].x) > 0).all()
    curves.to_json()
    shares.to_json()


def score_at(height):
    """The score that a height on the signed logarithmic axis stands for."""
    return np.sign(height) * (10 ** np.abs(height) - 1)


@pytest.mark.parametrize(("layers", "heads", "stages"), [(1, 1, 1), (2, 4, 3), (30, 9, 3)])
def test_score_ranges_draw_each_bar_from_minimum_to_maximum(layers, heads, stages):
    ranges = range_dataset(layers, heads, stages)
    figure = plots.score_ranges(ranges)
    bars = [trace for trace in figure.data if trace.type == "bar"]
    low = np.sort(score_at(np.concatenate([np.asarray(bar.base) for bar in bars])))
    high = np.sort(score_at(np.concatenate([np.asarray(bar.base) + np.asarray(bar.y) for bar in bars])))
    there = np.isfinite(ranges["score_min"].values)  # a layer that lacks the stage has no bars
    np.testing.assert_allclose(low, np.sort(ranges["score_min"].values[there]))
    np.testing.assert_allclose(high, np.sort(ranges["score_max"].values[there]))
    bounds = [trace for trace in figure.data if trace.name == "proven bound"]
    assert len(bounds) == 2 * (stages - 1)
    for trace in bounds:
        np.testing.assert_allclose(np.nanmax(np.abs(score_at(np.asarray(trace.y)))), 10)


def test_layer_head_map_and_loss_draw_the_numbers():
    values = xr.DataArray(
        np.linspace(0, 1, 12).reshape(4, 3),
        coords={"layer": [0, 2, 5, 7], "head": [0, 1, 3]},
        dims=("layer", "head"),
        attrs={"units": "1"},
    )
    figure = plots.layer_head_map(values, title="t")
    np.testing.assert_array_equal(figure.data[0].z, values.values.astype(np.float32))
    assert list(figure.data[0].y) == ["0", "2", "5", "7"]


@pytest.mark.parametrize("n", [1, 2, 31, 33, 5_000])
def test_loss_bins_cover_every_token_once(n):
    nll = torch.rand(n, generator=torch.Generator().manual_seed(n))
    loss = binned_loss(nll, torch.arange(n + 1))
    assert int(loss["count"].sum()) == n
    assert loss["first_position"].values[0] == 1
    assert loss["last_position"].values[-1] == n
    total = float((loss["loss_mean"] * loss["count"]).sum())
    np.testing.assert_allclose(total, nll.double().sum().item())
    np.testing.assert_allclose(loss["running_mean"].values[-1], nll.double().mean().item())
    np.testing.assert_array_equal(plots.loss_by_position(loss).data[0].y, loss["loss_mean"].values)
    np.testing.assert_array_equal(np.isnan(loss["loss_stderr"]), loss["count"] < 2)
    with pytest.raises(InputError, match="bins=0"):
        binned_loss(nll, torch.arange(n + 1), bins=0)


def test_map_png_has_the_pixels_it_should(tmp_path):
    import struct
    import zlib

    values = np.array([[1.0, np.nan, np.nan], [10**-2.5, 1e-5, np.nan], [0.0, 1e-9, 1.0]])
    drawn = png.map_png(values)
    assert drawn.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = {}, 8
    while at < len(drawn):
        (length,) = struct.unpack(">I", drawn[at : at + 4])
        kind, data = drawn[at + 4 : at + 8], drawn[at + 8 : at + 8 + length]
        assert struct.unpack(">I", drawn[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + data)
        chunks[kind] = data
        at += 12 + length
    pixels = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(3, 4)[:, 1:]
    np.testing.assert_array_equal(pixels, [[255, 0, 0], [128, 1, 0], [1, 1, 255]])
    palette = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)
    assert tuple(palette[255]) == theme.rgb(1.0, theme.SHADE_SCALE)
    assert tuple(palette[1]) == (255, 255, 255)


def test_colours_meet_their_anchors():
    for place, colour in theme.LAYER_SCALE:
        assert "#{:02x}{:02x}{:02x}".format(*theme.rgb(place, theme.LAYER_SCALE)) == colour
    assert theme.rgb(-3, theme.SHADE_SCALE) == (255, 255, 255)
    assert theme.rgb(9, theme.SHADE_SCALE) == theme.rgb(1, theme.SHADE_SCALE)
