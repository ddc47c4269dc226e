"""What is built and shipped is whole, and works where there is no checkout."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from lowest_versions import lowest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def tracked():
    """Every file that git knows, as the sdist should hold it; none outside of a checkout."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}


def test_every_dependency_has_a_floor():
    assert len(lowest()) == len(PROJECT["dependencies"]) - 1  # all but torch


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist and the wheel that pip makes of it."""
    out = tmp_path_factory.mktemp("dist")
    hatch = "import sys, hatchling.build as b; b.build_sdist(sys.argv[1]); b.build_wheel(sys.argv[1])"
    pytest.importorskip("hatchling", reason="the build backend is in the extra dev")
    subprocess.run([sys.executable, "-c", hatch, str(out)], cwd=ROOT, check=True, capture_output=True)
    return out


def test_the_sdist_holds_everything_that_git_tracks(built):
    if not tracked():
        pytest.skip("this is no git checkout")
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert not {name for name in tracked() if not name.startswith(".git")} - held


@pytest.mark.slow
def test_the_wheel_works_outside_of_the_checkout(built, tmp_path):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = wheel.namelist()
        wheel.extractall(tmp_path / "site")
    tops = {name.split("/")[0] for name in names}
    assert tops == {"hooks", "interp", f"ropescope-{PROJECT['version']}.dist-info"}
    code = (
        "import sys, warnings; warnings.simplefilter('ignore'); import hooks, interp\n"
        "assert hooks.__file__.startswith(sys.argv[1]) and interp.__file__.startswith(sys.argv[1])\n"
        "from hooks import HookedTransformer, HookedTransformerConfig as C\n"
        "cfg = C(16, 8, 1, 64, 2, 11, act_fn='silu', d_mlp=16, normalization_type='RMS')\n"
        "cap = interp.capture(HookedTransformer(cfg), list(range(11)) * 2)\n"
        "print(interp.report(cap, 'r.html').stat().st_size)\n"
    )
    run = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n{code}",
         str(tmp_path / "site")],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 100_000
