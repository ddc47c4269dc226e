"""`ropescope hooks` and `stats` print what the code has, whole, also into a pipe."""

import json
import re
import subprocess
import sys

import pytest
from rich.cells import cell_len
from rich.console import Console
from tiny import tiny_model
from typer.testing import CliRunner

from hooks import HookedTransformer
from hooks.errors import InputError
from interp.cli.command import app
from interp.measure.schema import VARIABLES
from interp.reporting.catalogue import CATALOGUE


def run(*arguments):
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    directory = tmp_path_factory.mktemp("gemma")
    tiny_model("gemma3_text").save_pretrained(directory)
    assert json.loads((directory / "config.json").read_text())["model_type"] == "gemma3_text"
    return directory


def test_every_hook_of_a_layer_is_printed_with_its_aliases_and_shape(gemma):
    model = HookedTransformer.from_pretrained(gemma)
    printed = run("hooks", str(gemma), "--layer", "1")
    words = set(re.findall(r"[\w.{}]+", printed))
    for name, info in model.registry.infos.items():
        if name.startswith("blocks.") and not name.startswith("blocks.1."):
            assert name not in words
            continue
        assert name in words
        module = f"{name.rpartition('.')[0]}."
        assert {a.removeprefix(module).replace("blocks.1.", "blocks.{i}.") for a in info.aliases} <= words
    assert f"[batch, pos, {model.cfg.n_kv_heads}, {model.cfg.d_head}]" in printed
    assert "blocks.{i}.hook_q_input" in words  # which lies elsewhere than attn.hook_q_input


def test_layers_alike_share_a_row(gemma):
    n_layers = HookedTransformer.from_pretrained(gemma).cfg.n_layers
    printed = run("hooks", str(gemma))
    assert f"blocks.{{0-{n_layers - 1}}}.attn.hook_q " in printed
    assert printed.count("attn.hook_z") == 1


def test_a_layer_that_is_not_there(gemma):
    result = CliRunner().invoke(app, ["hooks", str(gemma), "--layer", "99"])
    assert result.exit_code != 0
    assert "--layer 99" in str(result.exception)


def test_every_statistic_is_printed_with_its_formula_and_source():
    printed = re.sub(r"[\s│]+", " ", run("stats"))
    for name, variable in VARIABLES.items():
        assert f" {name} " in printed
        assert variable.source.split(" ")[0] in printed
    assert "Σ_i p_ij ‖v_j W_O‖" in printed


def test_one_analysis_is_printed_alone_and_another_word_is_refused():
    printed = run("stats", "sink_rate")
    assert "sink_score" in printed and "share of heads that give token <k> more than <epsilon>" in printed
    assert "positional_r2" not in printed and " group " not in printed
    result = CliRunner().invoke(app, ["stats", "sinkrate"])
    assert isinstance(result.exception, InputError)
    assert "no analysis 'sinkrate': there are attention_statistics" in str(result.exception)


def test_a_terminal_of_80_columns_shows_every_name_and_formula(monkeypatch):
    console = Console(width=80, force_terminal=True, color_system=None)
    monkeypatch.setattr("interp.cli.tables.console", lambda: console)
    with console.capture() as captured:
        run("stats")
    printed = captured.get()
    assert max(map(cell_len, printed.splitlines())) <= 80
    words = {line.split("│")[1].strip() for line in printed.splitlines() if line.startswith("│")}
    assert {name for table in CATALOGUE.values() for name in table} == words - {""}
    one_line = re.sub(r"[\s│]+", " ", printed)
    assert all(v.formula.partition(" ")[0] in one_line for table in CATALOGUE.values() for v in table.values())


def test_printing_what_is_measured_loads_no_library():
    code = (
        "import sys\nfrom interp.cli.command import app\napp(['stats'], standalone_mode=False)\n"
        "print([m for m in ('torch', 'numpy', 'xarray', 'transformer_lens') if m in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "[]"
