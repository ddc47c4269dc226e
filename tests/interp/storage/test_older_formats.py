"""Captures that earlier versions wrote open and give the numbers that they gave then."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from hooks.errors import CaptureWarning
from interp import head_summary, open_capture, score_ranges

FORMATS = sorted(Path(__file__).parent.glob("capture_format_*"))


# This processor may be another than the one that they were written on.
pytestmark = pytest.mark.filterwarnings("ignore::hooks.errors.DerivationWarning")


@pytest.fixture(params=FORMATS, ids=lambda folder: folder.name)
def written(request, tmp_path):
    """A copy of what the version wrote, which also holds what it computed."""
    return Path(shutil.copytree(request.param, tmp_path / request.param.name))


def test_a_finished_capture_gives_the_same_numbers(written):
    numbers = np.load(written / "numbers.npz", allow_pickle=False)
    cap = open_capture(written / "whole.capture")
    results = {"statistics": cap.statistics(), "head_summary": head_summary(cap), "score_ranges": score_ranges(cap)}
    for name, expected in numbers.items():
        kind, _, variable = name.partition(".")
        if kind == "q":
            layer, stage = variable.split(".")
            if f"q.{stage}" in cap._layers[int(layer)].derived:  # to the bit where it was written
                np.testing.assert_allclose(cap.q(int(layer), stage).numpy(), expected, rtol=2e-6, atol=2e-6)
            else:
                assert (cap.q(int(layer), stage).numpy() == expected).all(), name
        elif kind == "loss":
            assert (cap.loss.numpy() == expected).all()
        elif expected.dtype.kind == "U":
            assert (results[kind][variable].values == expected).all(), name
        else:
            np.testing.assert_allclose(results[kind][variable].values, expected, rtol=2e-5, atol=1e-5, err_msg=name)
    assert {name.partition(".")[0] for name in numbers} == {"q", "loss", *results}


def test_statistics_kept_beside_it_are_used(written, monkeypatch):
    monkeypatch.setattr("interp.tensors.capture_data.attention_statistics", None)
    numbers = np.load(written / "numbers.npz", allow_pickle=False)
    kept = open_capture(written / "whole.capture").statistics(1)
    assert (kept["lse"].values[0] == numbers["statistics.lse"][1]).all()


def test_an_unfinished_capture_opens_with_what_it_has(written):
    with pytest.warns(CaptureWarning, match="unfinished: 2 of 3 layers have run, and there is no loss yet"):
        cap = open_capture(written / "cut.capture")
    assert cap.layers == (0,) and not cap.is_complete
    assert np.isfinite(cap.statistics(groups="rows")["lse"]).all()
