"""A conversation as token ids, by the tokenizer's own chat template."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

from jinja2 import TemplateError

from hooks.checks import shown
from hooks.errors import InputError, TokenizerError


def chat_ids(tokenizer: Any, messages: Any, *, add_generation_prompt: bool) -> list[int]:
    """The ids of a conversation, with the one BOS that its template writes.

    Args:
        tokenizer: transformers' kind.
        messages: what was said, ``{"role": …, "content": …}`` each.
        add_generation_prompt: end with what an answer of the assistant begins with.

    Raises:
        TokenizerError: the tokenizer has no chat template.
        InputError: no messages, or some that the template refuses.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise TokenizerError(
            "the tokenizer has no chat template, as that of a base model: set model.tokenizer.chat_template, or give "
            "the conversation as a text"
        )
    listed = isinstance(messages, Iterable) and not isinstance(messages, str | bytes | Mapping)
    given = list(messages) if listed and not hasattr(messages, "shape") else []
    if not given or any(not isinstance(each, Mapping) or not isinstance(each.get("role"), str) for each in given):
        raise InputError(
            f'messages={shown(messages)}: give one conversation, [{{"role": "user", "content": "…"}}, …]; of several, '
            "one after another"
        )
    try:
        ids = tokenizer.apply_chat_template(
            [dict(cast(Mapping[str, Any], each)) for each in given],
            tokenize=True,
            add_generation_prompt=add_generation_prompt,
            return_dict=False,
        )
        return cast(list[int], ids)
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"messages={shown(messages)}: the tokenizer's chat template refuses them: {error}") from error
