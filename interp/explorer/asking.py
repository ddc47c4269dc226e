"""A question from a page, checked: plain JSON becomes one small frozen value, or a short named error."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from hooks import RopeConfig, checks
from hooks.errors import InputError
from interp.tensors.stages import STAGES

LARGEST = 16 * 1024  # bytes of a question, as JSON
TILE = 256  # pixels along a side of a tile
_LONGEST_TEXT = 200
_MOST_TOKENS = 8192
_MOST_HEADS = 64
_MOST_PIXELS = 2048  # along a side of a window

View = Literal["pattern", "score", "value", "difference", "attribution"]
SIGNED: tuple[View, ...] = ("difference", "attribution")  # views whose extreme is the cell farthest from 0
Steps = Literal["no_norm", "no_rope", "swapped_order"]
_ROPE_NUMBERS = (
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
    "beta_fast",
    "beta_slow",
    "attention_factor",
)
_ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3", "proportional")


@dataclass(frozen=True)
class Variant:
    """What is asked instead of the run: q and k at a stage, other steps, or another schedule; exactly one of them."""

    stage: str | None = None
    steps: str | None = None
    rope: RopeConfig | None = None


@dataclass(frozen=True)
class Picture:
    """One n × n picture: a head, what is drawn of it, and under which variant; None is as the model ran."""

    layer: int
    head: int
    view: View = "pattern"
    variant: Variant | None = None


@dataclass(frozen=True)
class Window:
    """A run of queries and a run of keys, at so many cells a pixel along each side."""

    scale: int
    queries: tuple[int, int]
    keys: tuple[int, int]


@dataclass(frozen=True)
class Question:
    """A question and what it needs; fields that its kind does not read are None."""

    kind: str
    picture: Picture | None = None
    heads: tuple[tuple[int, int], ...] = ()
    window: Window | None = None
    index: int = 0
    span: tuple[int, int] = (0, 0)
    text: str = ""


def read_question(asked: Any, n: int) -> Question:
    """A question as a page asks it, checked against a text of n tokens.

    Args:
        asked: a dictionary with a ``kind`` and what that kind reads; ``KINDS`` lists them.
        n: tokens of the text.

    Raises:
        InputError: anything that is no question: another kind of value, a word too many, a number out of bounds.
    """
    if not isinstance(asked, Mapping):
        raise InputError(f"a question is an object with a kind, not {type(asked).__name__}")
    kind = checks.choice("kind", asked.get("kind"), tuple(KINDS))
    allowed = KINDS[kind]
    for name in asked:
        if name != "kind" and name not in allowed:
            raise InputError(f"{checks.shown(name)} is nothing that {kind!r} reads: {', '.join(allowed) or 'nothing'}")
    found: dict[str, Any] = {}
    if "view" in allowed:
        found["picture"], found["heads"] = _picture(asked, several="heads" in allowed)
    if "row" in allowed:
        found["window"] = _tile(asked, n)
    if "queries" in allowed:
        found["window"] = _window(asked, n)
    for name in ("query", "key"):
        if name in allowed and kind != "cell":
            found["index"] = checks.whole(name, asked.get(name), at_least=0, at_most=n - 1)
    if kind == "cell":
        found["span"] = tuple(checks.whole(x, asked.get(x), at_least=0, at_most=n - 1) for x in ("query", "key"))
    if kind == "tokens":
        found["span"] = _run("span", asked.get("span"), n, _MOST_TOKENS)
    if kind == "find":
        found["text"] = _text(asked.get("text"))
    if kind == "grid":
        found["text"] = _text(asked.get("metric"))
    return Question(kind, **found)


_PICTURE = ("layer", "head", "view", "variant")
# What each kind reads.
KINDS: dict[str, tuple[str, ...]] = {
    "overview": (),
    "progress": (),
    "cancel": (),
    "tokens": ("span",),
    "find": ("text",),
    "grid": ("metric",),
    "backdrop": _PICTURE,
    "tile": (*_PICTURE, "scale", "row", "column"),
    "window": (*_PICTURE, "scale", "queries", "keys"),
    "in_view": (*_PICTURE, "scale", "queries", "keys"),
    "cell": (*_PICTURE, "query", "key"),
    "row": ("heads", "view", "variant", "query"),
    "column": ("heads", "view", "variant", "key"),
}


def read_variant(asked: Any) -> Variant | None:
    """A variant from JSON: null, or an object with one of ``stage``, ``steps`` and ``rope``.

    Raises:
        InputError: anything else.
        ConfigError: a schedule that is none.
    """
    if asked is None:
        return None
    if not isinstance(asked, Mapping) or len(asked) != 1:
        raise InputError(f"variant={checks.shown(asked)}: give null, or an object with one of stage, steps and rope")
    name, value = next(iter(asked.items()))
    if name == "stage":
        return Variant(stage=checks.choice("stage", value, STAGES))
    if name == "steps":
        return Variant(steps=checks.choice("steps", value, get_args(Steps)))
    if name != "rope" or not isinstance(value, Mapping):
        raise InputError(f"variant={checks.shown(asked)}: give null, or an object with one of stage, steps and rope")
    return Variant(rope=_rope(value))


def _rope(asked: Mapping) -> RopeConfig:
    """A schedule from its fields."""
    fields: dict[str, Any] = {}
    for name, value in asked.items():
        if name == "rope_type":
            fields[name] = checks.choice(name, value, _ROPE_TYPES)
        elif name in ("original_max_position_embeddings", "max_position_embeddings"):
            fields[name] = checks.whole(name, value, at_least=1, at_most=10**9)
        elif name in _ROPE_NUMBERS:
            fields[name] = checks.number(name, value, above=0, at_most=1e12)
        else:
            raise InputError(f"{checks.shown(name)} is no field of a schedule: {', '.join(_ROPE_NUMBERS)}, rope_type")
    return RopeConfig(**fields)


def _picture(asked: Mapping, *, several: bool) -> tuple[Picture, tuple[tuple[int, int], ...]]:
    """The picture, and the heads where several may be named; their layers and heads are checked by who reads them."""
    view = checks.choice("view", asked.get("view", "pattern"), get_args(View))
    variant = read_variant(asked.get("variant"))
    if view == "difference" and variant is None:
        raise InputError("view='difference' compares a variant with the run: give a variant")
    if view == "attribution" and variant is not None:
        raise InputError(
            "view='attribution' is of the model as it ran, where its gradient was taken: leave variant out"
        )
    if not several:
        layer, head = (checks.whole(name, asked.get(name), at_least=0) for name in ("layer", "head"))
        return Picture(layer, head, view, variant), ((layer, head),)
    given = asked.get("heads")
    if not isinstance(given, list) or not 1 <= len(given) <= _MOST_HEADS:
        raise InputError(f"heads={checks.shown(given)}: give 1 to {_MOST_HEADS} pairs [layer, head]")
    heads = tuple(_pair("heads", each) for each in given)
    return Picture(*heads[0], view, variant), tuple(dict.fromkeys(heads))


def _pair(name: str, value: Any) -> tuple[int, int]:
    """Two whole numbers from 0."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise InputError(f"{name}={checks.shown(value)}: give two whole numbers")
    first, second = (checks.whole(name, each, at_least=0) for each in value)
    return first, second


def _run(name: str, value: Any, n: int, most: int) -> tuple[int, int]:
    """A run [start, stop) of at most so many of n tokens."""
    start, stop = _pair(name, value)
    if not start < stop <= n or stop - start > most:
        raise InputError(f"{name}=[{start}, {stop}]: give a run of 1 to {most:,} tokens within 0 … {n:,}")
    return start, stop


def _scale(asked: Mapping, n: int) -> int:
    """Cells a pixel: a power of two, the last of which shows the whole text in one tile."""
    scale = checks.whole("scale", asked.get("scale"), at_least=1, at_most=top_scale(n))
    if scale & (scale - 1):
        raise InputError(f"scale={scale}: give a power of two, so many cells a pixel along each side")
    return scale


def top_scale(n: int) -> int:
    """Cells a pixel at which the whole text is one tile."""
    scale = 1
    while scale * TILE < n:
        scale *= 2
    return scale


def _tile(asked: Mapping, n: int) -> Window:
    """The window of a tile."""
    scale = _scale(asked, n)
    most = (n - 1) // (scale * TILE)
    row, column = (checks.whole(name, asked.get(name), at_least=0, at_most=most) for name in ("row", "column"))
    queries, keys = ((at * TILE * scale, min((at + 1) * TILE * scale, n)) for at in (row, column))
    return Window(scale, queries, keys)


def _window(asked: Mapping, n: int) -> Window:
    """A window that begins and ends with whole pixels; the last ones may reach to the end of the text."""
    scale = _scale(asked, n)
    runs = [_run(name, asked.get(name), n, _MOST_PIXELS * scale) for name in ("queries", "keys")]
    for start, stop in runs:
        if start % scale or (stop % scale and stop != n):
            raise InputError(f"[{start}, {stop}] cuts pixels of {scale} cells: begin and end at their multiples")
    return Window(scale, runs[0], runs[1])


def _text(value: Any) -> str:
    """A short text."""
    if not isinstance(value, str) or not 1 <= len(value) <= _LONGEST_TEXT:
        raise InputError(f"text={checks.shown(value)}: give 1 to {_LONGEST_TEXT} characters")
    return value
