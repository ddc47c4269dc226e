"""``ropescope audit``: what it prints at every width, what it writes, and what it never overwrites."""

import json
import sys

import pytest
from tiny_hooked import tiny_config, tiny_model

from hooks import HookedTransformer
from interp.cli import command as cli
from interp.cli import tables


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run ``ropescope audit`` on a tiny model; gives exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(HookedTransformer, "from_pretrained", lambda source, **_: tiny_model(model_name="tiny"))

    def run_main(*arguments):
        monkeypatch.setattr(sys, "argv", ["ropescope", "audit", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code, *capsys.readouterr()

    return run_main


@pytest.mark.parametrize("width", [80, 200])
def test_it_prints_one_screen(run, monkeypatch, width):
    from rich.console import Console

    monkeypatch.setattr(tables, "_WIDE", width)
    monkeypatch.setattr("interp.cli.auditing.console", lambda: Console(width=width))
    status, out, err = run("tiny")
    assert status == 0 and not err
    assert max(map(len, out.splitlines())) <= width
    for word in ("tiny", "all layers", "norm → rope", "critical dimension", "score bound", "float16", "llama3"):
        assert word in out


def test_it_writes_json_and_a_page_and_replaces_only_its_own(run, tmp_path):
    status, out, _ = run("tiny", "--json", "a.json", "--html", "a.html", "--layers", "1", "--factor", 2)
    assert status == 0 and "wrote a.json" in out and "wrote a.html" in out
    held = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert held["model"] == "tiny" and held["layers"]["coordinates"]["layer"] == [1]
    assert held["schedules"]["variables"]["kept"]["values"][0][2][0] == pytest.approx(0.5)  # linear
    assert "Content-Security-Policy" in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert run("tiny", "--json", "a.json", "--html", "a.html")[0] == 0
    for name, option in (("mine.json", "--json"), ("mine.html", "--html")):
        (tmp_path / name).write_text('{"mine": 1}')
        status, out, err = run("tiny", option, name)
        assert status == 1 and not out and "ropescope did not write it" in err
        assert (tmp_path / name).read_text() == '{"mine": 1}'


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("",), "has no name"),
        (("tiny", "--layers", "9"), "layer 9 is none"),
        (("tiny", "--factor", "0.5"), "factor=0.5"),
        (("tiny", "--factor", "nan"), "factor=nan"),
        (("tiny", "--dtype", "int8"), "choose from"),
        (("tiny", "--html", "there/is/none.html"), "no directory"),
    ],
)
def test_what_cannot_be_is_one_line(run, arguments, says):
    status, out, err = run(*arguments)
    assert status == 1 and not out and says in err and err.count("\n") == 1


def test_without_weights_it_says_what_the_config_says(run, monkeypatch):
    monkeypatch.setattr("interp.cli.auditing._config", lambda model: tiny_config(model_name="tiny"))
    status, out, _ = run("tiny", "--no-weights")
    assert status == 0 and "only the config was read" in " ".join(out.split())
    assert "token embeddings" not in out
