"""`ropescope hooks` and `stats` print what the code has, whole, also into a pipe."""

import json
import re

import pytest
from tiny import tiny_model
from typer.testing import CliRunner

from hooks import HookedTransformer
from interp.cli.command import app
from interp.measure.schema import VARIABLES


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
        assert {alias.rsplit(".", 1)[-1] for alias in info.aliases} <= words
    assert f"[batch, pos, {model.cfg.n_kv_heads}, {model.cfg.d_head}]" in printed


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
