"""Tokenizers from model directories and GGUF files, always as transformers' fast kind.

A tokenizer that cannot be read does not keep its model from being loaded: token ids go in and out without one.
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hooks.errors import TokenizerError, TokenizerWarning
from hooks.loading.files import check_regular, kind_of

_ANY_OF = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")
_READ_BESIDE = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "model_max_length")


def directory_tokenizer(directory: Path) -> Any | None:
    """The tokenizer of a model directory, None when it has none or, with a warning, none that can be read."""
    if not any(kind_of(directory / name) for name in _ANY_OF):
        return None

    def read() -> Any:
        for pattern in _READ_BESIDE:
            for path in directory.glob(pattern):
                check_regular(path, error=TokenizerError)
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)

    return _or_none(read, directory)


def prepends_bos(tokenizer: Any) -> bool:
    """Whether a tokenizer puts its BOS token in front of a text by itself."""
    try:
        ids = list(tokenizer("a")["input_ids"])
    except Exception:  # a tokenizer of one's own may take other arguments
        return False
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def _or_none(read: Callable[[], Any], where: Path) -> Any | None:
    """What a reader gives, or None and a warning that says why it could not."""
    try:
        return read()
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        warnings.warn(
            f"the model in {where} is loaded without its tokenizer, which cannot be read: {_line(error)}; it takes "
            "token ids, and text once model.tokenizer is set",
            TokenizerWarning,
            stacklevel=2,
        )
        return None


def prepared_tokenizer(directory: Path) -> Any:
    """The tokenizer that `save_gguf_tokenizer` wrote.

    Its class is called directly: ``from_pretrained`` would parse the vocabulary of 33 MB four more times.

    Raises:
        TokenizerError: its files cannot be read.
    """
    try:
        settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
        template = directory / "chat_template.jinja"
        return PreTrainedTokenizerFast(
            tokenizer_file=str(directory / "tokenizer.json"),
            chat_template=template.read_text(encoding="utf-8") if template.exists() else None,
            **{name: settings[name] for name in _SPECIAL if name in settings},
        )
    except Exception as error:
        raise TokenizerError(f"cannot read the tokenizer in {directory}: {_line(error)}; delete it") from error


def gguf_tokenizer(path: Path) -> Any | None:
    """The tokenizer inside a GGUF file; None, with a warning, where transformers cannot convert it."""
    return _or_none(lambda: _from_gguf(path), path)


def _from_gguf(path: Path) -> Any:
    """The tokenizer inside a GGUF file, by transformers."""
    # The fast class itself, not AutoTokenizer: that one reads the whole file again to find the class.
    return PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)


def save_gguf_tokenizer(path: Path, directory: Path) -> None:
    """Write the tokenizer of a GGUF file as tokenizer.json and its companions.

    Raises:
        TokenizerError: transformers cannot convert it.
    """
    try:
        _from_gguf(path).save_pretrained(directory)
    except Exception as error:
        raise TokenizerError(f"cannot read the tokenizer in {path}: {_line(error)}") from error


def _line(error: Exception) -> str:
    """The first line of what a foreign exception says."""
    return (str(error).splitlines() or [type(error).__name__])[0]
