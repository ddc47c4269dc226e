"""Layers, positions and heads are chosen alike everywhere, by Python's numbers and numpy's, in memory and on disk."""

import numpy as np
import pytest
import torch
from tiny_hooked import random_tokens, tiny_model

from hooks.errors import PositionError, StageError
from interp.analyses.heads.summary import head_summary
from interp.analyses.position.frequencies import frequency_bias
from interp.analyses.position.sinks import first_token_mass
from interp.analyses.scores.by_variant import score_ranges
from interp.analyses.scores.layer_bounds import bound_by_distance
from interp.analyses.scores.precision import precision_cost
from interp.captures import Capture, capture

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
    with pytest.raises(StageError, match=r"layers=1\.5: give the number"):
        cap.statistics(1.5)


def test_numpy_positions_are_indices_and_masks_are_refused(cap):
    assert torch.equal(cap.q(1, positions=np.int64(3), heads=np.array([2, 0])), cap.q(1)[3:4][:, [2, 0]])
    with pytest.raises(PositionError, match="give an index, a slice"):
        cap.q(1, positions=np.arange(N) > 3)
