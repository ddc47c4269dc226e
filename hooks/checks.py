"""Arguments of public functions, checked once, where they come in.

Each check returns the value in the plain form that the code behind it works with, or raises an error that names the
argument, the value and what is allowed. Numbers may be Python's, numpy's or torch's; a bool is never a number, and a
float is never a whole one, not even 1.0. Nothing is rounded, cut or guessed.
"""

import math
import operator
import os
from collections.abc import Collection, Iterable
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

from hooks.errors import InputError, RopescopeError

_Choice = TypeVar("_Choice")
_LONGEST = 200


def whole(
    name: str,
    value: Any,
    *,
    at_least: int | None = None,
    at_most: int | None = None,
    error: type[RopescopeError] = InputError,
) -> int:
    """A whole number within bounds, both included."""
    found = _as_whole(value)
    if found is None or not _within(found, at_least, at_most):
        raise error(f"{name}={shown(value)}: give a whole number{_bounds(at_least, at_most)}")
    return found


def wholes(
    name: str,
    value: Any,
    *,
    at_least: int | None = None,
    at_most: int | None = None,
    error: type[RopescopeError] = InputError,
) -> tuple[int, ...]:
    """One or several whole numbers within bounds, each once, in the order given; a text is none."""
    one = _as_whole(value)
    if one is not None:
        several: list[Any] | None = [one]
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes | dict) and _has_length(value):
        several = list(value)
    else:
        several = None
    found = None if several is None else [_as_whole(each) for each in several]
    if found is None or any(each is None or not _within(each, at_least, at_most) for each in found):
        raise error(f"{name}={shown(value)}: give a whole number{_bounds(at_least, at_most)}, or several")
    return tuple(dict.fromkeys(each for each in found if each is not None))


def number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    error: type[RopescopeError] = InputError,
) -> float:
    """A finite number within bounds."""
    found = _as_number(value)
    outside = found is None or (above is not None and found <= above) or (below is not None and found >= below)
    if found is None or outside or not _within(found, at_least, at_most):
        strict = "" if above is None else f" above {above:g}"
        strict += "" if below is None else f"{' and' if strict else ''} below {below:g}"
        joint = " and" if strict and (at_least, at_most) != (None, None) else ""
        raise error(f"{name}={shown(value)}: give a number{strict}{joint}{_bounds(at_least, at_most)}")
    return found


def numbers(
    name: str, value: Any, *, at_least: float | None = None, at_most: float | None = None, **options: Any
) -> tuple[float, ...]:
    """One or several finite numbers within bounds, in the order given."""
    several = [value] if _as_number(value) is not None else value
    if not isinstance(several, Iterable) or isinstance(several, str | bytes | dict) or not _has_length(several):
        raise options.get("error", InputError)(f"{name}={shown(value)}: give a number, or several")
    return tuple(number(name, each, at_least=at_least, at_most=at_most, **options) for each in several)


def share(name: str, value: Any, *, error: type[RopescopeError] = InputError) -> float:
    """A share or probability, from 0 to 1."""
    return number(name, value, at_least=0, at_most=1, error=error)


def flag(name: str, value: Any, *, error: type[RopescopeError] = InputError) -> bool:
    """True or False, and nothing that merely counts as one."""
    if not isinstance(value, bool) and type(value).__name__ not in ("bool_", "bool"):
        raise error(f"{name}={shown(value)}: give True or False")
    return bool(value)


def choice(name: str, value: Any, allowed: Collection[_Choice], *, error: type[RopescopeError] = InputError) -> _Choice:
    """One of a few values."""
    for each in allowed:
        if type(value) is type(each) and bool(value == each):
            return each
    raise error(f"{name}={shown(value)}: give one of {', '.join(map(repr, allowed))}")


def choices(
    name: str, value: Any, allowed: Collection[str], *, error: type[RopescopeError] = InputError
) -> tuple[str, ...]:
    """One or several of a few words, each once, in the order given; at least one."""
    several = [value] if isinstance(value, str) else value
    good = isinstance(several, Iterable) and _has_length(several)
    given = list(several) if good else []
    words: list[str] = [word for word in given if isinstance(word, str) and word in allowed]
    if not given or len(words) < len(given):
        raise error(f"{name}={shown(value)}: give one or several of {', '.join(map(repr, allowed))}")
    return tuple(sorted(set(words), key=words.index))


def words(name: str, value: Any, *, error: type[RopescopeError] = InputError) -> tuple[str, ...]:
    """One or several texts, each once, in the order given; none is allowed."""
    several = [value] if isinstance(value, str) else value
    listed = isinstance(several, Iterable) and not isinstance(several, bytes) and _has_length(several)
    given = list(several) if listed else [None]
    found = [each for each in given if isinstance(each, str) and each]
    if len(found) != len(given):
        raise error(f"{name}={shown(value)}: give a text, or several")
    return tuple(dict.fromkeys(found))


def text(name: str, value: Any, *, error: type[RopescopeError] = InputError) -> str:
    """A text, of any length."""
    if not isinstance(value, str):
        raise error(f"{name}={shown(value)}: give a text")
    return value


def instance(
    name: str, value: Any, kind: type[_Choice], what: str, *, error: type[RopescopeError] = InputError
) -> _Choice:
    """An object of a class; `what` says how one comes by it."""
    if not isinstance(value, kind):
        raise error(f"{name}={shown(value)}: give {what}")
    return value


def path(name: str, value: Any, *, error: type[RopescopeError] = InputError) -> Path:
    """A path that the system can take: not empty, without a NUL."""
    try:
        text = os.fspath(value)
    except TypeError:
        text = None
    if not isinstance(text, str) or not text or "\0" in text or not _is_encodable(text):
        raise error(f"{name}={shown(value)}: give the path of a file or directory")
    return Path(text)


def device(name: str, value: Any, *, error: type[RopescopeError] = InputError) -> Any:
    """A device that this machine has, or None."""
    import torch  # not at the top: the command checks its arguments before anything heavy is imported

    try:
        if value is not None:
            torch.empty(1, device=value)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as failed:
        reason = str(failed).splitlines()[0] if str(failed) else type(failed).__name__
        raise error(f"{name}={shown(value)} does not work here ({reason}); use cpu, or None") from failed
    return value


def shown(value: Any) -> str:
    """A value as an error shows it: its repr, short, and no tensor's contents."""
    shape = getattr(value, "shape", None)
    if shape is not None and not isinstance(value, Real) and len(tuple(shape)):
        return f"{type(value).__name__} of shape {tuple(shape)} and type {getattr(value, 'dtype', '?')}"
    try:
        text = repr(value)
    except Exception:  # somebody else's repr must not hide the error that is to be raised
        text = f"a {type(value).__name__}"
    text = " ".join(line.strip() for line in text.splitlines())  # an error is one line
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _is_encodable(path: str) -> bool:
    """Whether the system has bytes for a path: for half a surrogate pair it has none."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def _as_whole(value: Any) -> int | None:
    """A whole number as an int; None for anything else, a bool and an array of one number among it."""
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool") or len(getattr(value, "shape", ())):
        return None
    if "bool" in str(getattr(value, "dtype", "")):
        return None
    try:
        return operator.index(value)
    except (TypeError, RuntimeError, ValueError):
        return None


def _as_number(value: Any) -> float | None:
    """A finite number as a float; None for anything else."""
    exact = _as_whole(value)
    floating = getattr(getattr(value, "dtype", None), "is_floating_point", False) and not len(value.shape)
    if exact is None and not floating and (isinstance(value, bool) or not isinstance(value, Real)):
        return None
    try:
        found = float(value if exact is None else exact)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return found if math.isfinite(found) else None


def _has_length(value: Any) -> bool:
    """Whether going through it ends, and gives its elements: not an array of several axes, nor of none."""
    return len(getattr(value, "shape", (1,))) == 1


def _within(found: float, at_least: float | None, at_most: float | None) -> bool:
    return (at_least is None or found >= at_least) and (at_most is None or found <= at_most)


def _bounds(at_least: float | None, at_most: float | None) -> str:
    """The bounds in words."""
    if at_least is not None and at_most is not None:
        return f" from {at_least:,} to {at_most:,}"
    if at_least is not None:
        return f" of at least {at_least:,}"
    return "" if at_most is None else f" of at most {at_most:,}"
