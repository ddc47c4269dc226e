"""A figure that is given something else says so by name, and what it was given."""

import plotly.graph_objects as go
import pytest
import xarray as xr

from hooks.errors import InputError, OutputError
from interp import plots

FIGURES = sorted(set(plots.__all__) - {"can_show", "dark", "save", "show"})
OTHER = xr.Dataset({"lse": (("layer", "head"), [[1.0]])})


OF_ANY_SCORE = {"comparison", "head_scores", "head_table"}  # of whatever is by layer and head


@pytest.mark.parametrize("given", [None, 3, "x", xr.Dataset()], ids=["None", "3", "x", "nothing"])
@pytest.mark.parametrize("name", FIGURES)
def test_what_is_no_result(name, given):
    drawing = "head_scores" if name == "comparison" else name  # whose panels it draws
    with pytest.raises(InputError, match=rf"plots\.{drawing} cannot draw|no variable"):
        getattr(plots, name)(given)


@pytest.mark.parametrize("name", FIGURES)
def test_another_result(name):
    if name in OF_ANY_SCORE:
        assert isinstance(getattr(plots, name)(OTHER), go.Figure)
    else:
        with pytest.raises(
            InputError, match=rf"plots\.{name} cannot draw a Dataset of lse over layer, head|no variable"
        ):
            getattr(plots, name)(OTHER)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"title": 3}, "title=3: give a text"),
        ({"ceiling": "x"}, "ceiling='x': give a number"),
        ({"ceiling": -1}, "ceiling=-1"),
        ({"y_range": 1}, "y_range=1: give the lowest and the highest"),
        ({"y_range": (1.0, 0.1)}, "the lowest value comes first"),
        ({"y_range": (float("nan"), 1.0)}, "y_range=nan"),
    ],
)
def test_options_of_many_figures(options, said):
    draw = plots.attention_by_distance if "y_range" in options else plots.layer_head_map
    with pytest.raises(InputError, match=said):
        draw(xr.DataArray([[0.5]], dims=("layer", "head")), **options)


def test_what_is_no_figure_is_neither_saved_nor_darkened(tmp_path):
    for call in (lambda: plots.save("x", tmp_path / "f.html"), lambda: plots.dark(None)):
        with pytest.raises(InputError, match=r"a figure of interp\.plots"):
            call()
    with pytest.raises(OutputError, match="give the path"):
        plots.save(go.Figure(), None)
    for size in (0, 1.5, True, 10**30):
        with pytest.raises(InputError, match="width="):
            plots.save(go.Figure(), tmp_path / "f.png", width=size)


def test_pythons_own_error_for_a_name_that_is_none():
    with pytest.raises(TypeError, match="missing"):
        plots.sink_rate()
