"""layers= of the analyses by position: the same numbers for the layers asked for, in their order, and no others."""

import numpy as np
import pytest
import torch
import xarray as xr
from tiny_hooked import random_tokens, tiny_model

import interp
from hooks.errors import StageError

KINDS = ("sliding_attention", "full_attention", "sliding_attention")
ANALYSES = [interp.positional_bias, interp.received_by_position, interp.sink_rate]


@pytest.fixture(scope="module")
def cap():
    model = tiny_model(n_layers=3, layer_types=KINDS, window_size=5)
    return interp.capture(model, random_tokens(23)[0], layers=(0, 1, 2))


@pytest.mark.parametrize("analysis", ANALYSES)
@pytest.mark.parametrize("layers", [1, [1], (2, 1), np.array([0, 2]), torch.tensor([1, 0]), None], ids=str)
def test_chosen_layers_are_parts_of_the_whole(cap, analysis, layers):
    chosen = [0, 1, 2] if layers is None else np.atleast_1d(np.asarray(layers)).tolist()
    part, whole = analysis(cap, layers=layers), analysis(cap).sel(layer=chosen)
    assert part["layer"].values.tolist() == chosen
    whole = whole.reindex_like(part)  # without a full layer there are no distances beyond the window
    for name in part.data_vars:
        if "layer" in part[name].dims:
            xr.testing.assert_equal(part[name], whole[name])


@pytest.mark.parametrize("layers", [(0, 2), 1], ids=str)
def test_each_layer_keeps_its_own_window_and_the_rate_is_over_the_heads_asked_for(cap, layers):
    chosen = np.atleast_1d(layers).tolist()
    expected = [5 if KINDS[layer].startswith("sliding") else 0 for layer in chosen]
    assert interp.positional_bias(cap, layers)["window"].values.tolist() == expected
    sinks = interp.sink_rate(cap, epsilon=0.2, layers=layers)
    # α_1 from the pattern itself, over the queries that see the first token.
    for row, layer in enumerate(chosen):
        seeing = 5 if expected[row] else 23
        dense = [float(cap.pattern[layer, head, :seeing, 0].mean()) for head in range(4)]
        np.testing.assert_allclose(sinks["sink_score"].sel(layer=layer), dense, rtol=1e-5)
    assert float(sinks["sink_rate"]) == float((sinks["sink_score"] > 0.2).mean())


@pytest.mark.parametrize("analysis", ANALYSES)
@pytest.mark.parametrize(("layers", "says"), [([], "no layer was asked for"), (7, "layer 7"), ("1", "layers='1'")])
def test_no_layer_or_one_that_is_not_there_is_named(cap, analysis, layers, says):
    with pytest.raises(StageError, match=says):
        analysis(cap, layers=layers)
