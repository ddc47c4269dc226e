"""Figures of causes: white is zero, numbers are the result's own, and what does not belong together is refused."""

import json

import numpy as np
import pytest
import torch
from tiny_hooked import random_tokens, tiny_model

import interp
from hooks.errors import InputError
from interp import metrics, plots
from interp.plots import theme

M = metrics.logit_difference(3, 5)


@pytest.fixture(scope="module")
def world():
    model, ids = tiny_model(dtype=torch.float64), random_tokens(30)
    cap = interp.capture(model, ids, gradient_of=M)
    return model, ids, cap, interp.attribution(cap, map_size=6)


def test_signed_maps_are_white_at_zero_and_show_the_numbers(world):
    cells = world[3].effect_map.sel(layer=1, head=2)
    for trace, values in (
        (plots.effect_map(cells).data[0], cells.values),
        (plots.effect_by_token(world[3]).data[0], world[3].effect_by_key.sum(("layer", "head")).values),
    ):
        assert trace.zmin == -trace.zmax == pytest.approx(-np.abs(values).max(), rel=1e-5)
        assert [list(step) for step in trace.colorscale] == theme.DIVERGING_SCALE
        np.testing.assert_allclose(np.asarray(trace.z).ravel()[: values.size], values.ravel(), rtol=1e-5)


def test_the_text_is_drawn_where_its_effects_are(world):
    long = world[3].isel(key=np.arange(30).repeat(20))
    trace = plots.effect_by_token(long).data[0]
    total = np.abs(long.effect_by_key.sum(("layer", "head")).values)
    best = max(total[i : i + 240].sum() for i in range(len(total) - 239))
    assert np.abs(trace.z).sum() == pytest.approx(best, rel=1e-5)
    assert "240 tokens in a row" in json.dumps(plots.effect_by_token(long).to_plotly_json()["layout"], default=str)


def test_heads_stand_beside_what_is_lost_without_them(world):
    model, ids, _, effects = world
    without = interp.knock_out_sweep(model, ids, M)
    figure = plots.effect_by_head(effects, ablated=without)
    drawn = {note.text: trace for note, trace in zip(figure.layout.annotations, figure.data, strict=False)}
    lost = next(trace for text, trace in drawn.items() if "lost" in text)
    np.testing.assert_allclose(lost.z, -without.change.values, rtol=1e-5)
    with pytest.raises(InputError, match="under the same metric"):
        plots.effect_by_head(effects, ablated=interp.knock_out_sweep(model, ids, metrics.logit(3)))
    with pytest.raises(InputError, match="without segments"):
        plots.effect_by_head(effects, ablated=interp.knock_out_sweep(model, ids, M, {"a": 0}))
