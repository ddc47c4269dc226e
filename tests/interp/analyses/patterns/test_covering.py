"""coverage of a capture against the patterns that the capture gives, and on heads whose counts are known."""

import numpy as np
import pytest
import torch
from planted import PREVIOUS, UNIFORM, planted_kinds
from tiny_hooked import random_tokens, tiny_model

import interp
from hooks import HookedTransformer
from hooks.errors import InputError


@pytest.mark.parametrize(
    ("changes", "n"),
    [
        ({}, 2),
        ({"layer_types": ("sliding_attention", "full_attention"), "window_size": 13}, 71),
        ({"n_heads": 4, "n_key_value_heads": 1}, 33),
        ({"alibi_slopes": (2.0, 1.0, 0.5, 0.25)}, 33),
    ],
)
def test_counts_are_those_of_the_sorted_rows(changes, n):
    cap = interp.capture(tiny_model(**changes), random_tokens(n)[0])
    found = interp.coverage(cap, (0.9, 0.5))
    assert found["level"].values.tolist() == [0.5, 0.9]
    for layer in cap.layers:
        for head in range(cap.cfg.n_heads):
            rows = np.sort(cap.pattern[layer, head].values.astype(np.float64))[:, ::-1].cumsum(-1)
            for level in (0.5, 0.9):
                low, high = ((rows < level + off).sum(-1) + 1 for off in (-1e-6, 1e-6))
                counts = found["coverage"].sel(layer=layer, head=head, level=level).values
                assert (low <= counts).all() and (counts <= high).all()
                mean = found["coverage_mean"].sel(layer=layer, head=head, level=level).item()
                assert mean == pytest.approx(counts.mean(), rel=1e-6)
    assert (found["coverage_queries"] == n).all()


def test_a_head_that_looks_one_token_back_needs_one_key_and_a_uniform_one_all():
    cap = interp.capture(planted_kinds(), torch.randint(1, 40, (200,), generator=torch.Generator().manual_seed(0)))
    found = interp.coverage(cap, layers=0)
    counts = found["coverage"].sel(layer=0, level=0.95)
    assert (counts.sel(head=PREVIOUS[1]).values == 1).all()
    assert (counts.sel(head=UNIFORM[1]).values == np.ceil(0.95 * np.arange(1, 201) - 1e-6)).all()
    assert (found["gap_count"].sel(layer=0, head=UNIFORM[1], gap=1).values == np.arange(1, 201)).all()
    assert (found["seen"].sel(layer=0).values == np.arange(1, 201)).all()


def test_packed_documents_are_counted_as_each_alone():
    model, parts = tiny_model(), [random_tokens(n, seed=n)[0] for n in (9, 14)]
    positions = torch.cat([torch.arange(len(part)) for part in parts])
    both = interp.coverage(interp.capture(model, torch.cat(parts), positions=positions))["coverage"].values
    alone = [interp.coverage(interp.capture(model, part))["coverage"].values for part in parts]
    np.testing.assert_array_equal(both, np.concatenate(alone, axis=-1))


@pytest.mark.parametrize("wrong", [{"levels": 1.0}, {"levels": 0}, {"levels": ()}, {"gaps": -1.0}])
def test_levels_and_gaps_that_are_none_are_refused(wrong):
    cap = interp.capture(tiny_model(), random_tokens(5)[0])
    with pytest.raises(InputError, match=next(iter(wrong))):
        interp.coverage(cap, **wrong)


@pytest.mark.slow
def test_full_layers_of_gemma_need_between_a_few_keys_and_most_of_two_thousand():
    """The sparse-attention oracle on 8,192 tokens: medians of heads from about 9 to about 1,766 keys for 95 %."""
    model = HookedTransformer.from_pretrained("gemma3-270m")
    full = [layer for layer in range(model.cfg.n_layers) if model.cfg.layer_type(layer) == "full_attention"]
    cap = interp.capture(model, interp.standard_text(), n_tokens=8192, layers=full, stages=(), loss=False)
    needed = np.median(interp.coverage(cap, 0.95)["coverage"].values, axis=-1)
    assert 5 < needed.min() < 25 and 1500 < needed.max() < 2000
