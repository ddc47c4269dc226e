"""The notebooks run, on short texts here; those that are committed were run as a whole and match their scripts."""

import importlib.util
import os
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
# Long enough that every cell has something to draw.
TOKENS = {
    "01_first_look": 64,
    "02_positional_bias": 192,
    "03_score_ranges": 128,
    "04_long_sequences": 192,
    "05_stretching_the_context": 128,
    "07_many_texts": 96,
    "06_claims": 128,
    "09_explorer": 192,
}
LARGEST = 1_500_000


def _refresh():
    """notebooks/refresh.py as a module."""
    spec = importlib.util.spec_from_file_location("refresh", FOLDER / "refresh.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


refresh = _refresh()
every_notebook = pytest.mark.parametrize("name", refresh.NAMES)


def committed(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_notebook_is_tested():
    assert set(refresh.NAMES) == set(TOKENS)


@every_notebook
def test_a_committed_notebook_has_the_cells_of_its_script(name):
    script, notebook = refresh.read(name), committed(name)
    cells = [[(cell.cell_type, cell.id, cell.source) for cell in side.cells] for side in (script, notebook)]
    assert cells[0] == cells[1], f"run `python notebooks/refresh.py --only {name}`"


@every_notebook
def test_a_committed_notebook_was_run_in_order_without_a_complaint(name):
    nbformat.validate(notebook := committed(name))
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    for output in (output for cell in code_cells(notebook) for output in cell.outputs):
        assert output.output_type in ("stream", "display_data", "execute_result")
        assert output.get("name", "stdout") == "stdout", output.text


@every_notebook
def test_a_committed_notebook_shows_its_figures_and_ends_with_numbers(name):
    notebook = committed(name)
    shown = [output.data for cell in code_cells(notebook) for output in cell.outputs if "data" in output]
    figures = sum("image/png" in data for data in shown)
    drawing = [cell for cell in code_cells(notebook) if "figure" in cell.source or "plots." in cell.source]
    assert figures >= 3
    assert figures >= len([cell for cell in drawing if cell.outputs])
    assert not [data for data in shown if refresh.PLOTLY in data]
    answer = next(i for i, cell in enumerate(notebook.cells) if cell.source.startswith("## The answer"))
    assert any(character.isdigit() for character in notebook.cells[answer + 1].outputs[0].text)


@every_notebook
def test_a_committed_notebook_is_small_and_names_no_machine(name):
    path = FOLDER / f"{name}.ipynb"
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < LARGEST
    for place in ("/home/", "/root/", "/tmp/", "site-packages"):
        assert place not in text
    assert '"iopub.execute_input"' not in text


@pytest.mark.slow
@every_notebook
def test_a_notebook_runs(name, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    notebook = refresh.execute(refresh.shortened(refresh.read(name), TOKENS[name]))
    spoken = [output for cell in code_cells(notebook) for output in cell.outputs if output.get("name") == "stderr"]
    assert not spoken, spoken[0].text
