"""Text to token ids and back, by the tokenizer's own rules."""

import warnings
from collections.abc import Iterable, Mapping, Sized
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from jaxtyping import Int
from torch import Tensor

from hooks.base.chat import chat_ids
from hooks.base.inputs import any_ids, token_ids
from hooks.base.padding import Side, padded, warn_of_padding
from hooks.checks import choice, flag, shown, whole
from hooks.config.transformer import HookedTransformerConfig
from hooks.errors import InputError, TokenizerError, TokenizerWarning

_CPU = torch.device("cpu")


def _token_ids(tokenizer: Any, text: str, prepend_bos: bool | None) -> list[int]:
    """The ids of one text, with one BOS where one is added, even if the text brings its own."""
    ids, bos = list(tokenizer(text, add_special_tokens=prepend_bos is None)["input_ids"]), tokenizer.bos_token_id
    if prepend_bos:
        ids = [bos, *ids]
    if bos is None or ids[:2] != [bos, bos]:
        return ids
    plain = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if _leading(ids, bos) == _leading(plain, bos):
        return ids  # they are the text's own, and none was added
    warnings.warn(
        f"the text starts with the BOS token {tokenizer.bos_token!r} already (a rendered chat template?), so no "
        "second one is put before it; prepend_bos=False says so, and keeps this quiet",
        TokenizerWarning,
        stacklevel=3,
    )
    return ids[1:]


def _leading(ids: list[int], token: int) -> int:
    """How many of the first ids are this token."""
    return next((i for i, each in enumerate(ids) if each != token), len(ids))


def _encodes(text: str) -> bool:
    """Whether a text is one: half a surrogate pair is not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _listed(tokens: Any) -> Any:
    """Ids that may come as any iterable, as something that a tensor is made of."""
    plain = isinstance(tokens, Iterable) and not isinstance(tokens, str | bytes) and not hasattr(tokens, "shape")
    return list(tokens) if plain else tokens


def is_text(given: Any) -> bool:
    """Whether these are texts, one or several, and not ids."""
    return isinstance(given, str) or (
        isinstance(given, list | tuple) and bool(given) and all(isinstance(each, str) for each in given)
    )


def _is_row(given: Any) -> bool:
    """Whether this is one row of ids, and not an id."""
    return isinstance(given, list | tuple) or len(getattr(given, "shape", ())) == 1


class TokenizingMixin:
    """`to_tokens`, `to_string` and `to_str_tokens` for a model that has a ``tokenizer`` (transformers' kind)."""

    tokenizer: Any

    if TYPE_CHECKING:

        @property
        def cfg(self) -> HookedTransformerConfig: ...  # noqa: D102

        @property
        def device(self) -> torch.device: ...  # noqa: D102

    def _require_tokenizer(self, does: str = "__call__") -> Any:
        """The tokenizer, if there is one that has this method."""
        if self.tokenizer is None:
            raise TokenizerError(
                "this model has no tokenizer, so it takes token ids; set model.tokenizer, or pass a tensor"
            )
        if not callable(getattr(self.tokenizer, does, None)):
            raise TokenizerError(f"model.tokenizer={shown(self.tokenizer)} is no tokenizer of transformers")
        return self.tokenizer

    def to_tokens(
        self,
        text: str | list[str] | Int[Tensor, "*batch pos"],
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        truncate: bool = False,
    ) -> Int[Tensor, "batch pos"]:
        """Token ids of `text`; see `to_batch` for the mask that belongs to texts of unequal length.

        Args:
            text: one text, or several, which are padded to one length; ids pass through as they are.
            prepend_bos: None follows the tokenizer's own rule (Gemma adds ``<bos>``, SmolLM2 does not), unless
                ``cfg.default_prepend_bos`` was set to something else. A text that starts with the BOS token gets no
                second one, with a warning.
            padding_side: "left" or "right"; the tokenizer's own when None.
            truncate: keep the first ``cfg.n_ctx`` tokens of each text, BOS included; otherwise nothing is cut.

        Raises:
            InputError: something else than texts and ids, another side, or a text without tokens among others.
            TokenizerError: no tokenizer, no BOS token to prepend, or no token to pad with.
        """
        if isinstance(text, Tensor):
            return self._check_tokens(text)
        return self.to_batch(text, prepend_bos, padding_side, truncate)[0]

    def to_batch(
        self,
        texts: str | list[str],
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        truncate: bool = False,
    ) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
        """Token ids of texts and their attention_mask, 1 where a token is real; arguments and errors as of `to_tokens`.

        Example:
            >>> ids, mask = model.to_batch(["A short text.", "One that is longer by a few words."])
            >>> logits = model(ids, attention_mask=mask)  # as model(texts) does by itself
        """
        tokenizer = self._require_tokenizer()
        each = [texts] if isinstance(texts, str) else texts
        if not is_text(texts) or not all(map(_encodes, each)):
            raise InputError(f"text={shown(texts)}: give a text, several in a list, or a tensor of token ids")
        prepend_bos = None if prepend_bos is None else flag("prepend_bos", prepend_bos)
        if prepend_bos is None and self.cfg.default_prepend_bos != self.cfg.tokenizer_prepends_bos:
            prepend_bos = self.cfg.default_prepend_bos
        if prepend_bos and tokenizer.bos_token_id is None:
            raise TokenizerError("prepend_bos=True, but the tokenizer has no BOS token; leave prepend_bos out")
        most = self.cfg.n_ctx if flag("truncate", truncate) else None
        rows = [
            _token_ids(tokenizer, text, prepend_bos)[:most] for text in ([texts] if isinstance(texts, str) else texts)
        ]
        return padded(rows, tokenizer, padding_side, self.device)

    def chat(
        self, messages: Iterable[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> Int[Tensor, "1 pos"]:
        """Token ids of a conversation, by the tokenizer's chat template, which writes the BOS token itself.

        Args:
            messages: what was said, in order: ``{"role": "user", "content": "…"}`` each.
            add_generation_prompt: end with what an answer of the assistant begins with; False where the last message is
                to be gone on with, or the conversation is over.

        Raises:
            TokenizerError: no tokenizer, or one without a chat template.
            InputError: no messages, or some that the template refuses.

        Example:
            >>> model.generate(model.chat([{"role": "user", "content": "Who wrote Middlemarch?"}]), return_type="str")
        """
        tokenizer = self._require_tokenizer("apply_chat_template")
        add_generation_prompt = flag("add_generation_prompt", add_generation_prompt)
        return self._check_tokens(
            torch.tensor([chat_ids(tokenizer, messages, add_generation_prompt=add_generation_prompt)])
        )

    def _read(
        self, tokens: Any, attention_mask: Any = None, past: Sized | None = None, side: Side | None = None
    ) -> tuple[Int[Tensor, "batch pos"], Any]:
        """Ids and attention_mask of what a pass was given: texts are tokenised, and padded where they are unequal.

        A text that follows others in a cache gets no BOS token.
        """
        if past is not None and not callable(getattr(past, "following", None)):
            raise InputError(f"past={shown(past)}: give a KeyValueCache(model), or leave it out")
        goes_on = past is not None and len(past) > 0
        if not is_text(tokens):
            ids = self._check_tokens(tokens)
            if attention_mask is None and not goes_on:
                warn_of_padding(ids, self.tokenizer)
            return ids, attention_mask
        ids, real = self.to_batch(tokens, False if goes_on else None, side)
        if attention_mask is None:
            return self._check_tokens(ids), real
        if not bool(real.all()):
            raise InputError("texts of unequal length bring their own padding: leave attention_mask out, or give ids")
        return self._check_tokens(ids), attention_mask

    def to_string(self, tokens: Int[Tensor, "*batch pos"] | Iterable[int] | int) -> str | list[str]:
        """The text of token ids: a string, or a list of strings for a batch."""
        tokenizer, tokens = self._require_tokenizer("decode"), _listed(tokens)
        if isinstance(tokens, list) and tokens and all(_is_row(row) for row in tokens):
            return [str(self.to_string(row)) for row in tokens]  # which may be of unequal length
        ids = any_ids(tokens, self.cfg.d_vocab, _CPU)
        if ids.ndim > 1:
            return [str(self.to_string(row)) for row in ids]
        return tokenizer.decode(ids.reshape(-1).tolist(), clean_up_tokenization_spaces=False)

    def to_str_tokens(
        self,
        tokens: str | list[str] | Int[Tensor, " pos"] | Int[Tensor, "1 pos"] | Iterable[int],
        prepend_bos: bool | None = None,
    ) -> Any:
        """Each token as its own string (bytes that are no whole character show as the replacement character).

        Args:
            tokens: a text, or ids of one; of several texts each gives a list, without padding.
            prepend_bos: as in `to_tokens`, for a text.
        """
        tokenizer = self._require_tokenizer("batch_decode")
        prepend_bos = None if prepend_bos is None else flag("prepend_bos", prepend_bos)
        if not isinstance(tokens, str) and is_text(tokens):
            return [self.to_str_tokens(cast(str, text), prepend_bos) for text in tokens]
        text = isinstance(tokens, str)
        ids = self.to_tokens(tokens, prepend_bos) if text else any_ids(_listed(tokens), self.cfg.d_vocab, _CPU)
        if ids.ndim == 2 and ids.shape[0] == 1:
            ids = ids[0]
        if ids.ndim > 1:
            raise InputError(f"to_str_tokens takes one sequence, not a batch of shape {tuple(ids.shape)}")
        return tokenizer.batch_decode(ids.reshape(-1, 1).tolist(), clean_up_tokenization_spaces=False)

    def _check_tokens(self, tokens: Tensor | str | list) -> Int[Tensor, "batch pos"]:
        """Token ids as [batch pos] on the model's device; text goes through the tokenizer."""
        if isinstance(tokens, str):
            tokens = self.to_tokens(tokens)
        return token_ids(tokens, self.cfg.d_vocab, self.device)

    def to_single_token(self, string: str) -> int:
        """The id of a text that is exactly one token, BOS not counted.

        Raises:
            TokenizerError: the text is no token or several.
        """
        ids = self.to_tokens(string, prepend_bos=False)[0].tolist()
        if len(ids) != 1:
            raise TokenizerError(f"{string!r} is {len(ids)} tokens ({ids}), not one; mind the space in front of words")
        return ids[0]

    def get_token_position(
        self,
        single_token: str | int,
        input: str | list[str] | Int[Tensor, " pos"] | Int[Tensor, "1 pos"],
        mode: Literal["first", "last"] = "first",
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
    ) -> Any:
        """Where a token stands in a text: its index, counted from 0, a BOS token included.

        Args:
            single_token: the token's text, or its id.
            input: a text, or the ids of one; of several texts each gives an index, into its row of `to_tokens`.
            mode: which one, where the token comes several times; padding is none.
            prepend_bos: as in `to_tokens`, for a text.
            padding_side: as in `to_tokens`, for several texts.

        Raises:
            InputError: the token is not there, or ids of several texts were given.
            TokenizerError: the text of the token is no token or several.
        """
        choice("mode", mode, ("first", "last"))
        token = self.to_single_token(single_token) if isinstance(single_token, str) else single_token
        token = whole("single_token", token, at_least=0)
        if is_text(input):
            ids, real = self.to_batch(cast(str, input), prepend_bos, padding_side)
        else:
            ids = self._check_tokens(cast(Tensor, input))
            real = torch.ones_like(ids)
            if ids.shape[0] != 1:
                raise InputError(f"get_token_position looks in one text, not in a batch of shape {tuple(ids.shape)}")
        indices = []
        wanted = min(token, self.cfg.d_vocab)  # no id is as large as that
        for number, found in enumerate((ids == wanted) & (real == 1)):
            at = found.nonzero()[:, 0]
            if not len(at):
                which = "this text" if len(ids) == 1 else f"text {number}"
                raise InputError(
                    f"token {shown(single_token)} is not among the {int(real[number].sum())} tokens of {which}"
                )
            indices.append(int(at[0 if mode == "first" else -1]))
        return indices[0] if isinstance(input, str) or not is_text(input) else indices

    def to_single_str_token(self, token: int) -> str:
        """The text of one token id."""
        return self.to_str_tokens([token])[0]
