"""Compiling with numba, and keeping the machine code on disk for as long as no source that went into it changes.

numba's own cache looks at the file of the function alone, not at what it calls: after an edit or an upgrade of another
module it would go on running the old code.
"""

# pyright: reportCallIssue=false, reportAttributeAccessIssue=false

from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.registry import cpu_target

SOURCES = (
    "compiled",
    "simd",
    "dot_products",
    "loops",
    "spreading",
    "blocks",
    "ranking",
)  # every module whose code is compiled

inner = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""Compile a function that only compiled functions call: it becomes part of their machine code."""


class _SourcesCache(FunctionCache):
    """numba's cache of a function, thrown away when any of the sources changed."""

    def __init__(self, function: Callable) -> None:
        super().__init__(function)
        self._cache_file = IndexDataCacheFile(self._cache_path, self._impl.filename_base, sources_stamp())


def sources_stamp(folder: Path = Path(__file__).parent) -> str:
    """A hash of everything that is compiled."""
    return sha256(b"\0".join((folder / f"{name}.py").read_bytes() for name in SOURCES)).hexdigest()


def entry(function: Callable) -> Callable:
    """Compile a function that Python calls; its machine code is kept where numba finds a place to write."""
    dispatcher = njit(nogil=True)(function)
    with suppress(OSError, RuntimeError):  # no folder to write to, or sources in an archive: compiled in each process
        dispatcher._cache = _SourcesCache(function)
    return dispatcher


def has_feature(name: str) -> bool:
    """Whether numba compiles for a processor with this feature, under LLVM's name of it."""
    return f"+{name}" in cpu_target.target_context.codegen().magic_tuple()[2].split(",")
