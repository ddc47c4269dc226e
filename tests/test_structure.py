"""The rules of the layout: which package may import which, what stays light, which names are taken."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hooks
import interp

ROOT = Path(__file__).parents[1]


def imports(path):
    """(module, name) of every import in a file, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def test_hooks_never_imports_interp():
    for path in (ROOT / "hooks").rglob("*.py"):
        assert not [m for m, _ in imports(path) if m.split(".")[0] == "interp"], path.name


def test_interp_uses_public_names_of_hooks_only():
    for path in (ROOT / "interp").rglob("*.py"):
        private = [(m, n) for m, n in imports(path) if m.split(".")[0] == "hooks" and (n.startswith("_") or "._" in m)]
        assert not private, path.name


@pytest.mark.parametrize("package", [hooks, interp])
def test_every_public_name_is_there_and_no_module_has_the_name_of_a_function(package):
    modules = {path.stem for path in (ROOT / package.__name__).rglob("*.py")}
    for name in package.__all__:
        public = getattr(package, name)
        assert name not in modules or public.__name__ == f"{package.__name__}.{name}"
    with pytest.raises(AttributeError, match="it offers"):
        _ = package.nothing_of_the_kind


@pytest.mark.parametrize("statement", ["import hooks", "import interp", "import interp.cli"])
def test_importing_a_package_imports_nothing_heavy(statement):
    heavy = ("torch", "transformer_lens", "xarray", "numba")
    code = f"{statement}\nimport sys\nprint([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
