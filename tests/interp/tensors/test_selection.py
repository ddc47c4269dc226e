"""Layers, positions and heads are chosen alike everywhere, by Python's numbers and numpy's, in memory and on disk."""

import numpy as np
import pytest
import torch
from tiny_hooked import random_tokens, tiny_model

from hooks.errors import InputError, PositionError, StageError
from interp.analyses.heads.summary import head_summary
from interp.analyses.position.frequencies import frequency_bias
from interp.analyses.position.sinks import first_token_mass
from interp.analyses.scores.by_variant import score_ranges
from interp.analyses.scores.layer_bounds import bound_by_distance
from interp.analyses.scores.precision import precision_cost
from interp.captures import Capture, capture
from interp.tensors.selection import head_numbers

N = 21


@pytest.fixture(scope="module", params=["memory", "disk"])
def cap(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("captures") / "one.capture" if request.param == "disk" else None
    return capture(tiny_model(), random_tokens(N)[0], path)


@pytest.mark.parametrize("chosen", [1, np.int64(1), range(1, 2), np.array([1, 1]), torch.tensor([1])])
def test_layers_are_chosen_alike_everywhere(cap, chosen):
    analyses = (Capture.statistics, head_summary, score_ranges, precision_cost, bound_by_distance, frequency_bias)
    for analysis in analyses:
        assert analysis(cap, layers=chosen)["layer"].values.tolist() == [1]
    assert cap.select(chosen).layers == (1,)
    assert first_token_mass(cap, chosen)["layer"].values.tolist() == [1]
    for wrong in WRONG:
        for analysis in analyses:
            with pytest.raises(StageError, match=r"layers=.*: give a whole number, or several"):
                analysis(cap, layers=wrong)


WRONG = ["01", "1", ["1"], [1.7], [1.0], 1.0, [True], True, [None], {0: 1}, b"1", np.array([True]), np.array(["1"])]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_choice_is_refused_and_never_rounded(wrong):
    model, ids = tiny_model(), random_tokens(N)[0]
    with pytest.raises(StageError, match=r"layers=.*: give a whole number, or several"):
        capture(model, ids, layers=wrong)
    for heads in (wrong, []):
        with pytest.raises(StageError, match=r"heads=.*: give a whole number, or several|no head was asked for"):
            head_numbers(heads, 4)
    with pytest.raises(InputError, match=r"n_tokens=.*: give a whole number"):
        capture(model, ids, n_tokens=wrong)
    with pytest.raises(InputError, match=r"loss=.*: give True or False"):
        capture(model, ids, loss=[wrong])


@pytest.mark.parametrize("wrong", [0.5, True, [True], [None], [1], "pre_nrom", b"pre_rope", {"pre_rope": 1}])
def test_a_stage_has_a_name(wrong):
    with pytest.raises(StageError, match="stage"):
        capture(tiny_model(), random_tokens(N)[0], stages=wrong)


def test_heads_are_chosen_alike_everywhere(cap):
    assert head_numbers(None, 3) == (0, 1, 2)
    assert head_numbers(np.array([2, 0, 2]), 3) == head_numbers(torch.tensor([2, 0]), 3) == (2, 0)
    with pytest.raises(StageError, match="no head 3: the heads are 0 to 2"):
        head_numbers(range(4), 3)
    assert frequency_bias(cap, heads=[2, 0])["head"].values.tolist() == [2, 0]
    with pytest.raises(StageError, match=r"heads=\[0\.9\]"):
        frequency_bias(cap, heads=[0.9])
    for wrong in (True, 1.0, "1"):
        with pytest.raises(PositionError, match=f"head={wrong!r}"):
            cap.top_keys(0, wrong, 3)


def test_numpy_positions_are_indices_and_masks_are_refused(cap):
    assert torch.equal(cap.q(1, positions=np.int64(3), heads=np.array([2, 0])), cap.q(1)[3:4][:, [2, 0]])
    with pytest.raises(PositionError, match="give an index, a slice"):
        cap.q(1, positions=np.arange(N) > 3)


@pytest.mark.parametrize("wrong", [slice(0, 5, 0), slice(5, 0, -1), slice(0.5, 5), slice(None, True), slice("a", None)])
def test_a_slice_that_is_none(cap, wrong):
    """One of step 0 was PyTorch's own error."""
    for where in ("positions", "heads"):
        with pytest.raises(PositionError, match="give a slice of whole numbers, with a step above 0"):
            cap.q(1, **{where: wrong})
    assert torch.equal(cap.q(1, positions=slice(1, 6, 2)), cap.q(1)[[1, 3, 5]])
