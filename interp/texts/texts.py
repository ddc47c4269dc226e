"""The text a model reads: the standard text, a file, and how either becomes tokens."""

import hashlib
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from jaxtyping import Int
from torch import Tensor

from hooks import checks
from hooks.errors import InputError, TextError

# Tokenising a little more than is needed keeps the last kept token independent of where the text was cut.
_SPARE_TOKENS = 64
_CHARS_PER_TOKEN = 8


class ReadsText(Protocol):
    """A model, as far as texts need one: something that makes tokens of them."""

    def to_tokens(self, text: str, prepend_bos: bool | None = None) -> Int[Tensor, "batch pos"]:
        """Token ids of a text; None follows the tokenizer's own rule on BOS."""
        ...


@dataclass(frozen=True)
class Text:
    """A text and where it came from."""

    content: str
    name: str

    @property
    def sha256(self) -> str:
        """SHA-256 of the UTF-8 bytes."""
        return hashlib.sha256(self.content.encode("utf-8")).hexdigest()


@cache
def standard_text() -> Text:
    r"""The text that results are quoted on: Python's own language reference, as every Python installation has it.

    ``"\n\n".join(topics[k] for k in sorted(topics))`` of ``pydoc_data.topics``.
    """
    from pydoc_data.topics import topics

    name = f"standard text ({len(topics)} topics of pydoc_data.topics, Python {platform.python_version()})"
    return Text("\n\n".join(topics[key] for key in sorted(topics)), name)


def read_text(path: str | Path) -> Text:
    """Read a UTF-8 text file.

    Raises:
        TextError: the path is missing, a directory or unreadable, the file is empty or not UTF-8.
    """
    path = Path(path)
    if path.is_dir():
        raise TextError(f"{str(path)!r} is a directory: name one text file")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise TextError(f"no such text file: {str(path)!r}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TextError(f"cannot read {str(path)!r}: {reason}") from None
    try:
        content = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(
            f"{str(path)!r} is not UTF-8 (byte 0x{raw[error.start]:02x} at offset {error.start}): "
            "convert it first, for instance with `iconv -t UTF-8`"
        ) from None
    if not content.strip():
        raise TextError(f"{str(path)!r} holds no text: give a file with at least a few words")
    return Text(content, f"file {path.name}")


def as_text(text: "str | Text") -> Text:
    """A plain string as a Text; the standard text is recognised by its content."""
    if isinstance(text, Text):
        return text
    checks.text("text", text)
    if text == standard_text().content:
        return standard_text()
    if not text.strip():
        raise TextError("the text is empty: give at least a few words")
    return Text(text, "text given in memory")


def tokenise(
    model: ReadsText, text: Text, n_tokens: int | None = None, prepend_bos: bool | None = None
) -> tuple[Int[Tensor, "1 pos"], str]:
    """The first n_tokens tokens of the text, and one line that says what was read.

    The standard text is repeated when more tokens are asked for than it has; any other text is used as far as it goes.

    Args:
        model: its tokenizer reads the text.
        text: what to read.
        n_tokens: how many tokens to keep, the BOS token counted; None keeps all.
        prepend_bos: whether a BOS token comes first, as of the model's ``to_tokens``; None leaves it to the tokenizer.

    Raises:
        InputError: n_tokens below 2.
        TokenizerError: prepend_bos=True, and the tokenizer has no BOS token.
        TextError: the text cannot be encoded, or has fewer than two tokens.
    """
    if n_tokens is not None and n_tokens < 2:
        raise InputError(f"{n_tokens} tokens asked for: attention needs at least 2")
    _check_encodable(text)
    repeats, content = 1, text.content
    tokens = _first_tokens(model, content, n_tokens, prepend_bos)
    if text == standard_text() and n_tokens is not None:
        while tokens.shape[1] < n_tokens:
            repeats *= 2
            tokens = _first_tokens(model, "\n\n".join([content] * repeats), n_tokens, prepend_bos)
    if tokens.shape[1] < 2:
        raise TextError(f"the text has {tokens.shape[1]} token: attention needs at least 2")
    return tokens, _what_was_read(text, tokens.shape[1], n_tokens, repeated=repeats > 1)


def _check_encodable(text: Text) -> None:
    """Raise a TextError for characters that UTF-8 cannot carry."""
    try:
        text.content.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TextError(
            f"the text holds a lone surrogate (U+{ord(text.content[error.start]):04X} at character {error.start}): "
            "remove it, UTF-8 has no form for it"
        ) from None


def _first_tokens(
    model: ReadsText, content: str, n_tokens: int | None, prepend_bos: bool | None
) -> Int[Tensor, "1 pos"]:
    """Tokens of the shortest prefix that surely holds n_tokens of them."""
    if n_tokens is None:
        return model.to_tokens(content, prepend_bos)
    length = (n_tokens + _SPARE_TOKENS) * _CHARS_PER_TOKEN
    while True:
        tokens = model.to_tokens(content[:length], prepend_bos)
        if length >= len(content) or tokens.shape[1] >= n_tokens + _SPARE_TOKENS:
            return tokens[:, :n_tokens]
        length *= 2


def _what_was_read(text: Text, used: int, asked: int | None, *, repeated: bool) -> str:
    """One line on how the tokens relate to the text."""
    line = text.name
    if repeated:
        line += ", repeated"
    if asked is not None and used < asked:
        line += f"; it has {used:,} tokens, fewer than the {asked:,} asked for: all of it was read"
    return line
