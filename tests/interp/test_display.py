"""Results show themselves in Jupyter, and nobody else's data do."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from tiny_hooked import random_tokens, tiny_model

from interp import display
from interp.captures import capture
from interp.common.labels import result_of

IPython = pytest.importorskip("IPython", reason="the display tests need IPython")


@pytest.fixture
def shown(monkeypatch):
    """A formatter like a notebook's, and what was displayed through it."""
    from IPython.core.formatters import DisplayFormatter

    formatter, parts = DisplayFormatter(), []
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(display_formatter=formatter))
    monkeypatch.setattr(display, "_display", lambda *given: parts.extend(given))
    display.register()
    display.register()
    return formatter, parts


def scores():
    return xr.Dataset({"a": (("layer", "head"), np.ones((2, 3)))}, {"layer": [0, 1], "head": [0, 1, 2]})


def test_a_result_is_its_figure_and_its_table(shown):
    formatter, parts = shown
    assert formatter.format(result_of("head_summary", scores(), "")) == ({}, {})
    figure, table = parts
    assert figure.data[0].type == "heatmap"
    assert "xr-wrap" in table


@pytest.mark.parametrize(
    "data",
    [scores(), result_of("unheard_of", scores(), ""), result_of("positional_bias", scores(), ""), scores()["a"]],
    ids=["plain", "unknown", "a part that has no figure", "plain array"],
)
def test_anything_else_is_left_to_xarray(shown, data):
    formatter, parts = shown
    bundle, _ = formatter.format(data)
    assert not parts
    assert "xr-wrap" in bundle["text/html"]


def test_a_capture_says_what_it_holds(shown):
    formatter, parts = shown
    cap = capture(tiny_model(), random_tokens(9)[0])
    cap.model_id = "<script>alert(1)</script>"
    bundle, _ = formatter.format(cap)  # its own HTML, the one description there is
    assert not parts
    table = bundle["text/html"]
    assert table == cap._repr_html_()
    assert "9: " in table and "2 full" in table and "&lt;script&gt;" in table and "<script>" not in table


def test_outside_of_ipython_nothing_happens():
    code = "import interp.display, sys; interp.display.register(); print('xarray' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
