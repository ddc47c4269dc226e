"""Words for what is not a word: heads, kinds of layers, tokens as a page may show them, lists of numbers in short."""

import html
from collections.abc import Sequence

KIND_NAME = {"sliding_attention": "sliding", "full_attention": "full"}

_LONGEST_TOKEN = 24


def head_name(layer: object, head: object) -> str:
    """The short name of a head: L3 H1."""
    return f"L{layer} H{head}"


def visible_text(text: object, longest: int = _LONGEST_TOKEN) -> str:
    """A token or name as a page may show it: control and direction characters made visible, at most `longest` long."""
    shown = str(text)
    shown = shown if len(shown) <= longest else shown[: longest - 1] + "…"
    return "".join(c if c.isprintable() else _visible(c) for c in shown)


def token_text(token: object, longest: int = _LONGEST_TOKEN) -> str:
    """A token as plotly may show it: visible, without markup, spaces marked."""
    return html.escape(visible_text(token, longest), quote=False).replace(" ", "·")


def duration(seconds: float) -> str:
    """Seconds as a reader wants them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _visible(character: str) -> str:
    """A character that is not printed, as one that is."""
    return {"\n": "⏎", "\t": "⇥", "\r": "␍"}.get(character, f"⟨{ord(character):04X}⟩")


def number_ranges(numbers: Sequence[int]) -> str:
    """Whole numbers in order as text, runs shortened: 0-3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{a}-{b}" if b > a else f"{a}" for a, b in runs)
