"""The house: which room may import which, what stays light, which names are taken, how long things are."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hooks
import interp

ROOT = Path(__file__).parents[1]

# Lowest first. A room may import itself and every floor below its own, and nothing beside it.
FLOORS = [
    {"hooks.errors", "hooks.memory"},
    {"hooks.checks"},
    {"hooks.config"},
    {"hooks.functional", "hooks.recipes"},
    {"hooks.modules"},
    {"hooks.families", "hooks.base"},
    {"hooks.generation"},
    {"hooks.attached", "hooks.loading"},
    {"hooks.model"},
    {"hooks"},
    {"interp.common", "interp.metrics", "interp.engine"},
    {"interp.texts"},
    {"interp.measure", "interp.plots"},
    {"interp.tensors"},
    {"interp.analyses.weights", "interp.analyses.position", "interp.analyses.patterns"},
    {"interp.analyses.counterfactual"},
    {"interp.analyses.scores"},
    {"interp.analyses.heads"},
    {"interp.analyses.causes"},
    {"interp.recording"},
    {"interp.training"},
    {"interp.storage", "interp.reporting", "interp.display", "interp.explorer"},
    {"interp.captures", "interp.auditing"},
    {"interp.corpus"},
    {"interp.cli"},
    {"interp"},
]
# What no floor says: these never import those, wherever they stand.
NEVER = {
    "interp.measure": {"interp.texts"},
    "interp.reporting": {"interp.recording"},
    "interp.explorer": {"interp.recording"},
    "interp.plots": {"interp.texts"},
}
# The command imports the packages' faces, as its users do; Jupyter's display asks the face for the figures.
FACES = {"hooks": {"interp"}, "interp": {"interp.cli", "interp.display"}}
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}


def module_name(path):
    """hooks/config/rope.py -> hooks.config.rope; a package's __init__ has the package's name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for top in ("hooks", "interp") for path in (ROOT / top).rglob("*.py")}


def room_of(module):
    """The longest room that a module lies in, or None."""
    parts = module.split(".")
    rooms = (".".join(parts[:n]) for n in range(len(parts), 1, -1))
    return next((room for room in rooms if room in FLOOR), module if module in FLOOR else None)


def imported(path):
    """Our own modules that a file imports anywhere: at its top, inside functions, for types only."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in ("hooks", "interp"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("hooks", "interp"):
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield inside if inside in FILES else node.module


def faults(imports):
    """What is wrong with a graph {module: modules it imports}, in words."""
    homeless = [m for m in imports if room_of(m) is None and not any(room.startswith(f"{m}.") for room in FLOOR)]
    found = [f"{module} is in no room" for module in homeless]
    for module, others in imports.items():
        for other in others:
            home, room = room_of(module), room_of(other)
            if None in (home, room) or home == room or home in FACES:
                continue
            face = other in FACES and (home.split(".")[0] in FACES[other] or home in FACES[other])
            if FLOOR[room] >= FLOOR[home] and not face:
                found.append(f"{module} imports {other}, which is not below it")
            if any(home.startswith(here) and room.startswith(there) for here in NEVER for there in NEVER[here]):
                found.append(f"{module} never imports {other}")
    return found + [f"circle: {' -> '.join(circle)}" for circle in circles(imports)]


def circles(imports):
    """Every way from a module back to itself, found once for each closing step."""
    done, found = set(), []

    def visit(module, way):
        if module in way:
            found.append([*way[way.index(module) :], module])
        elif module not in done:
            for other in sorted(imports.get(module, ())):
                visit(other, [*way, module])
            done.add(module)

    for module in sorted(imports):
        visit(module, [])
    return found


# The faces import everything on first use, so they take no part in circles.
IMPORTS = {m: {o for o in imported(path) if o not in FACES} for m, path in FILES.items() if m not in FACES}
WITH_FACES = {module: set(imported(path)) for module, path in FILES.items()}


def test_every_import_looks_down_and_every_room_has_a_floor():
    assert faults(WITH_FACES | IMPORTS) == []
    private = [(m, o) for m, others in WITH_FACES.items() for o in others if o.split(".")[0] == "hooks" and "._" in o]
    assert not private
    faces = [(m, o) for m, others in WITH_FACES.items() for o in others if o in FACES and m not in FACES]
    assert not [pair for pair in faces if room_of(pair[0]) and room_of(pair[0]).split(".")[0] == pair[1] == "hooks"]


@pytest.mark.parametrize(
    ("module", "other", "says"),
    [
        ("interp.analyses.position.sinks", "interp.reporting.page", "not below it"),
        ("interp.tensors.capture_data", "interp.analyses.position.sinks", "not below it"),
        ("hooks.config.rope", "interp.common.words", "not below it"),
        ("hooks.loading.sources", "hooks.attached.attaching", "not below it"),
        ("interp.attic.trunk", "interp.common.words", "in no room"),
        ("interp.common.words", "interp.common.files", "circle"),
    ],
)
def test_a_wall_that_is_broken_is_named(module, other, says):
    broken = {**IMPORTS, module: IMPORTS.get(module, set()) | {other}}
    if says == "circle":
        broken[other] = broken[other] | {module}
    assert any(says in fault and module in fault for fault in faults(broken))


def functions(path):
    """(name, lines of code without docstring and blank lines) of every function in a file."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            code = lines[body[0].lineno - 1 : body[-1].end_lineno] if body else []
            yield node.name, sum(bool(line.strip()) for line in code)


def test_files_are_one_idea_and_functions_do_one_thing():
    for path in FILES.values():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path
        assert not [(name, size) for name, size in functions(path) if size > 60], path
    for package, most in (("hooks", 6), ("interp", 5)):
        assert len(list((ROOT / package).glob("*.py"))) <= most


@pytest.mark.parametrize("package", [hooks, interp])
def test_every_public_name_is_there_and_no_module_has_the_name_of_a_function(package):
    modules = {path.stem for path in (ROOT / package.__name__).rglob("*.py")}
    for name in package.__all__:
        public = getattr(package, name)
        assert name not in modules or public.__name__ == f"{package.__name__}.{name}"
    with pytest.raises(AttributeError, match="it offers"):
        _ = package.nothing_of_the_kind


def loaded(statement, names):
    """Which of these modules a fresh interpreter has imported after a statement."""
    code = f"{statement}\nimport sys\nprint([m for m in {names} if m in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("statement", ["import hooks", "import interp", "import interp.cli.command"])
def test_importing_a_package_imports_nothing_heavy(statement):
    assert loaded(statement, ("torch", "transformer_lens", "xarray", "numba")) == "[]"


@pytest.mark.parametrize(
    "statement",
    [
        "import hooks.functional.rope, hooks.functional.attend, hooks.functional.visible",
        "from hooks import AttentionSpec, RopeConfig, QKNormConfig",
        "from interp import attention_statistics, score_bound, score_quantile, standard_text, plots",
    ],
)
def test_tensor_functions_and_figures_load_no_transformer_lens(statement):
    assert loaded(statement, ("transformer_lens", "transformers")) == "[]"
