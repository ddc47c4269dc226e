"""Files from outside: regular ones only, JSON of a bounded size and depth, and nothing that is waited on."""

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hooks.checks import shown
from hooks.errors import ConfigError, RopescopeError, UnknownModelError, WeightError

_LARGEST_JSON = 64 * 2**20  # bytes; the index of the largest models has a few MB
_DEEPEST_JSON = 32


def kind_of(path: Path) -> str | None:
    """What lies at a path: "file", "directory", "other" (a pipe, a device, a socket), or None for nothing.

    A path that the system cannot take (too long, a NUL, links in a circle) has nothing at it.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return None
    return "file" if stat.S_ISREG(mode) else "directory" if stat.S_ISDIR(mode) else "other"


def check_regular(path: Path, *, error: type[RopescopeError] = WeightError) -> None:
    """Raise unless a path is a regular file: reading a pipe or a device may never end."""
    kind = kind_of(path)
    if kind is None:
        raise error(f"{path} is not there (or its link leads nowhere); fetch it again")
    if kind != "file":
        what = "a directory" if kind == "directory" else "a pipe, a device or a socket"
        raise error(f"{path} is {what}, not a regular file; put the file itself there")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, no deeper than a config is and all of it text that can be printed.

    Raises:
        UnknownModelError: the file is not there.
        ConfigError: it is no regular file, too large, or not a JSON object.
    """
    if kind_of(path) is None:
        raise UnknownModelError(f"{path.parent} holds no model: {path.name} is not there")
    check_regular(path, error=ConfigError)
    try:
        size = path.stat().st_size
        if size > _LARGEST_JSON:
            raise ConfigError(f"{path} has {size:,} bytes, more than the {_LARGEST_JSON:,} that such a file may have")
        value = json.loads(path.read_text(encoding="utf-8"))
        for text in _texts(value, 0):
            text.encode("utf-8")
    except RecursionError as error:
        raise ConfigError(f"cannot read {path}: it nests deeper than the {_DEEPEST_JSON} levels allowed") from error
    except (ValueError, OSError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds {shown(value)}, a {type(value).__name__} and not an object")
    return value


def _texts(value: Any, depth: int) -> Iterator[str]:
    """Every text in a parsed JSON value, keys included."""
    if depth > _DEEPEST_JSON:
        raise RecursionError
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from _texts(each, depth + 1)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each, depth + 1)
