"""Prints a requirements file with every dependency at its floor, so that the floors are true.

torch is left to the installer: its oldest releases come as GPU builds of gigabytes.
"""

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def lowest() -> list[str]:
    """``name==floor`` of each direct dependency."""
    dependencies = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    floors = (re.fullmatch(r"([\w.-]+)>=([\d.]+).*", dependency) for dependency in dependencies)
    return [f"{floor[1]}=={floor[2]}" for floor in floors if floor is not None and floor[1] != "torch"]


if __name__ == "__main__":
    print("\n".join(lowest()))
