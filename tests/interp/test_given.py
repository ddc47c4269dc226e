"""Every analysis says by name what is no capture, and every count, level and choice what it may be."""

import numpy as np
import pytest
import torch
import xarray as xr
from tiny_hooked import random_tokens, tiny_model

import interp
from hooks import AttentionSpec, QKNormConfig
from hooks.errors import CaptureError, InputError, StageError
from interp import capture

OF_A_CAPTURE = [
    *("bound_by_distance", "first_token_mass", "frequency_bias", "head_summary", "loss_by_position", "positional_bias"),
    *("precision_cost", "received_by_position", "relativity_error", "score_ranges", "sink_rate"),
]


@pytest.fixture(scope="module")
def cap():
    return capture(tiny_model(), random_tokens(20)[0])


@pytest.mark.parametrize("given", [None, "x", 3, xr.Dataset(), object()], ids=["None", "x", "3", "Dataset", "object"])
@pytest.mark.parametrize("name", OF_A_CAPTURE)
def test_what_is_no_capture(name, given):
    with pytest.raises(InputError, match=r"^cap=.*: give a Capture"):
        getattr(interp, name)(given)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda cap: interp.compare(cap, None), "cap_b=None: give a Capture"),
        (lambda cap: interp.attention_pattern(None, 0, 0), "cap=None: give a Capture"),
        (lambda cap: interp.attention_map(cap, 0, 0, size=1.5), r"size=1\.5"),
        (lambda cap: interp.attention_map(cap, 0, 0, reduce=None), "reduce=None: give one of 'mean', 'max'"),
        (lambda cap: cap.top_keys(0, 0, 3, k=True), "k=True"),
        (lambda cap: cap.statistics(groups=["rows", 3]), "groups="),
        (lambda cap: cap.statistics(map_size="8"), "map_size='8'"),
        (lambda cap: interp.sink_rate(cap, k=1.0), r"k=1\.0"),
        (lambda cap: interp.sink_rate(cap, epsilon=np.nan), "epsilon=nan"),
        (lambda cap: interp.loss_by_position(cap, bins=True), "bins=True"),
        (lambda cap: interp.relativity_error(cap, shifts=[1.5]), r"shifts=\[1\.5\]"),
        (lambda cap: interp.relativity_error(cap, dtype=torch.int8), r"dtype=torch\.int8"),
        (lambda cap: interp.frequency_bias(cap, distances="some"), "distances='some'"),
        (lambda cap: interp.bound_by_distance(cap, distances=[True]), "distances="),
        (lambda cap: interp.score_ranges(cap, quantiles="0.5"), r"quantiles='0\.5'"),
        (lambda cap: interp.score_quantile(None, 0.5), "score_count"),
        (lambda cap: interp.what_if_rope(cap, None, alibi_slopes=[0.1, "x", 0.1, 0.1]), "alibi_slopes='x'"),
        (lambda cap: interp.what_if_rope(cap, None, zero_pairs=xr.Dataset()), "zero_pairs="),
        (lambda cap: interp.head_table(None), "summary=None: give what interp.head_summary returned"),
        (lambda cap: interp.typical_heads(xr.Dataset()), "summary="),
        (lambda cap: interp.ranked(None), "comparison=None"),
        (lambda cap: interp.typical_distance(xr.Dataset()), "bias="),
        (lambda cap: interp.repeated_tokens(None, 5), "model_or_cfg=None"),
        (lambda cap: interp.repeated_tokens(cap.cfg, 2**40), "more tokens than any model reads"),
        (lambda cap: interp.plant_needle(None, 30), "model=None"),
        (lambda cap: interp.capture(None, [1, 2]), "model=None: give a HookedTransformer"),
        (lambda cap: interp.score_bound(None, None, [1.0], torch.ones(4), AttentionSpec(scale=1.0)), "gain_q="),
        (lambda cap: interp.score_bound("x", None, None, None, AttentionSpec(scale=1.0)), "qk_norm='x'"),
        (lambda cap: interp.score_bound(QKNormConfig(), None, None, None, None), "spec=None: give an AttentionSpec"),
    ],
)
def test_counts_levels_choices_and_tensors(cap, ask, said):
    with pytest.raises(InputError, match=said):
        ask(cap)


@pytest.mark.parametrize("layer", [None, "0", 0.0, True, [0], 7])
def test_a_layer_that_is_none(cap, layer):
    for ask in (cap.q, cap.k, cap.v, cap.spec, cap.steps, cap.stages, cap.constants):
        with pytest.raises(StageError, match="layer"):
            ask(layer)


@pytest.mark.parametrize("layer", [np.int64(1), torch.tensor(1), np.array(1)], ids=repr)
def test_a_layer_of_any_whole_kind_is_that_layer(cap, layer):
    assert torch.equal(cap.q(layer), cap.q(1)) and cap.spec(layer) == cap.spec(1)
    assert interp.attention_pattern(cap, layer, 0).equals(interp.attention_pattern(cap, 1, 0))


@pytest.mark.parametrize("path", [None, 3, "", "a\0b", "\ud800", b"x", ["x"]])
def test_a_path_that_is_none(path):
    for ask in (interp.open_capture, interp.resume):
        with pytest.raises(CaptureError, match="path="):
            ask(path)
