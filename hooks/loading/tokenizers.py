"""Tokenizers from model directories and GGUF files, always as transformers' fast kind."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hooks.errors import TokenizerError

_ANY_OF = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "model_max_length")


def directory_tokenizer(directory: Path) -> Any | None:
    """The tokenizer of a model directory, by its own rules; None when it has none.

    Raises:
        TokenizerError: its files cannot be read.
    """
    if not any((directory / name).exists() for name in _ANY_OF):
        return None
    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        raise TokenizerError(
            f"cannot read the tokenizer in {directory}: {_line(error)}; fetch its files again"
        ) from error


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


def gguf_tokenizer(path: Path) -> Any:
    """The tokenizer inside a GGUF file.

    Raises:
        TokenizerError: transformers cannot convert it.
    """
    try:
        # The fast class itself, not AutoTokenizer: that one reads the whole file again to find the class.
        return PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    except Exception as error:
        raise TokenizerError(f"cannot read the tokenizer in {path}: {_line(error)}") from error


def save_gguf_tokenizer(path: Path, directory: Path) -> None:
    """Write the tokenizer of a GGUF file as tokenizer.json and its companions.

    Raises:
        TokenizerError: transformers cannot convert it.
    """
    gguf_tokenizer(path).save_pretrained(directory)


def _line(error: Exception) -> str:
    """The first line of what a foreign exception says."""
    return (str(error).splitlines() or [type(error).__name__])[0]
