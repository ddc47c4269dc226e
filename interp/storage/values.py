"""Plain values that came out of a file, each checked for being what it must be: a ValueError where it is not."""

_LARGEST = 1e300


def whole(value: object, low: int, high: int) -> int:
    """A whole number in a range."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{value!r} is no whole number from {low} to {high}")
    return value


def number(value: object) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
        raise ValueError(f"{str(value)[:40]} is no number that a layer has")
    return float(value)


def positive(value: object) -> float:
    """A finite number above 0."""
    if number(value) <= 0:
        raise ValueError(f"{value} is not above 0")
    return number(value)


def flag(value: object) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def text(value: object) -> str:
    """A string."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def names(value: object, known: tuple[str, ...]) -> tuple[str, ...]:
    """A list of known names."""
    if any(name not in known for name in texts(value)):
        raise ValueError(f"{value!r} is no list of {', '.join(known)}")
    return texts(value)


def texts(value: object) -> tuple[str, ...]:
    """A list of strings."""
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is no list")
    return tuple(map(text, value))
