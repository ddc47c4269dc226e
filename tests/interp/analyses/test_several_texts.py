"""What reads a result takes one, keeps the dimension of several texts, or refuses it by name: never other numbers."""

import numpy as np
import pytest
import xarray as xr
from tiny_hooked import random_tokens, tiny_model

import interp
from hooks.errors import InputError

METRIC = interp.metrics.logit(3)


@pytest.fixture(scope="module")
def caps():
    model = tiny_model()
    return [interp.capture(model, random_tokens(30, seed=seed)[0], gradient_of=METRIC) for seed in (0, 3)]


READERS = {
    "head_table": (interp.head_summary, interp.head_table, "summary"),
    "typical_heads": (interp.head_summary, interp.typical_heads, "summary"),
    "typical_distance": (interp.positional_bias, interp.typical_distance, "bias"),
    "ranked": (lambda cap: interp.compare(cap, cap), interp.ranked, "comparison"),
    "top_tokens": (interp.attribution, interp.top_tokens, "effects"),
}


@pytest.mark.parametrize("name", READERS)
def test_several_texts_are_refused_by_name_and_one_of_them_is_taken(caps, name):
    analysis, read, argument = READERS[name]
    results = [analysis(cap) for cap in caps]
    several = xr.concat(results, "text", combine_attrs="override")
    with pytest.raises(InputError, match=rf"^{argument} has the dimension text of several results: give one of them"):
        read(several)
    one, expected = read(several.isel(text=1)), read(results[1])
    if isinstance(expected, xr.Dataset | xr.DataArray):
        xr.testing.assert_equal(one, expected)
    else:
        assert one.equals(expected)


def test_quantiles_keep_the_texts(caps):
    counts = [cap.statistics() for cap in caps]
    both = interp.score_quantile(xr.concat(counts, "text", combine_attrs="override"), [0.1, 0.5])
    for at, alone in enumerate(counts):
        np.testing.assert_array_equal(both.isel(text=at), interp.score_quantile(alone, [0.1, 0.5]))
