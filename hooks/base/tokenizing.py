"""Text to token ids and back, by the tokenizer's own rules."""

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from hooks.base.inputs import any_ids, token_ids
from hooks.checks import choice, flag, shown
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
        self, text: str | list[str] | Int[Tensor, "*batch pos"], prepend_bos: bool | None = None
    ) -> Int[Tensor, "batch pos"]:
        """Token ids of `text`.

        Args:
            text: one text, or several that come out equally long; ids pass through as they are.
            prepend_bos: None follows the tokenizer's own rule (Gemma adds ``<bos>``, SmolLM2 does not), unless
                ``cfg.default_prepend_bos`` was set to something else. A text that starts with the BOS token gets no
                second one, with a warning.

        Raises:
            TokenizerError: the model has no tokenizer, or texts of different lengths.
        """
        if isinstance(text, Tensor):
            return self._check_tokens(text)
        tokenizer = self._require_tokenizer()
        texts = [text] if isinstance(text, str) else list(text) if isinstance(text, list | tuple) else []
        if not texts or any(not isinstance(each, str) or not _encodes(each) for each in texts):
            raise InputError(f"text={shown(text)}: give a text, several in a list, or a tensor of token ids")
        prepend_bos = None if prepend_bos is None else flag("prepend_bos", prepend_bos)
        if prepend_bos is None and self.cfg.default_prepend_bos != self.cfg.tokenizer_prepends_bos:
            prepend_bos = self.cfg.default_prepend_bos
        if prepend_bos and tokenizer.bos_token_id is None:
            raise TokenizerError("prepend_bos=True, but the tokenizer has no BOS token; leave prepend_bos out")
        rows = [_token_ids(tokenizer, text, prepend_bos) for text in texts]
        if len({len(row) for row in rows}) > 1:
            raise TokenizerError(
                f"the texts have {sorted({len(row) for row in rows})} tokens; pass texts of one length, "
                "or pad them and give attention_mask"
            )
        return torch.tensor(rows, dtype=torch.long, device=self.device)

    def to_string(self, tokens: Int[Tensor, "*batch pos"] | Iterable[int] | int) -> str | list[str]:
        """The text of token ids: a string, or a list of strings for a batch."""
        tokenizer = self._require_tokenizer("decode")
        ids = any_ids(_listed(tokens), self.cfg.d_vocab, _CPU)
        if ids.ndim > 1:
            return [str(self.to_string(row)) for row in ids]
        return tokenizer.decode(ids.reshape(-1).tolist(), clean_up_tokenization_spaces=False)

    def to_str_tokens(
        self, tokens: str | Int[Tensor, " pos"] | Int[Tensor, "1 pos"] | Iterable[int], prepend_bos: bool | None = None
    ) -> list[str]:
        """Each token as its own string (bytes that are no whole character show as the replacement character)."""
        tokenizer = self._require_tokenizer("batch_decode")
        prepend_bos = None if prepend_bos is None else flag("prepend_bos", prepend_bos)
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
        input: str | Int[Tensor, " pos"] | Int[Tensor, "1 pos"],
        mode: Literal["first", "last"] = "first",
        prepend_bos: bool | None = None,
    ) -> int:
        """Where a token stands in a text: its index, counted from 0, a BOS token included.

        Args:
            single_token: the token's text, or its id.
            input: a text, or the ids of one.
            mode: which one, where the token comes several times.
            prepend_bos: as in `to_tokens`, for a text.

        Raises:
            InputError: the token is not there, or several texts were given.
            TokenizerError: the text of the token is no token or several.
        """
        choice("mode", mode, ("first", "last"))
        ids = self.to_tokens(input, prepend_bos) if isinstance(input, str) else self._check_tokens(input)
        if ids.shape[0] != 1:
            raise InputError(f"get_token_position looks in one text, not in a batch of shape {tuple(ids.shape)}")
        token = self.to_single_token(single_token) if isinstance(single_token, str) else int(single_token)
        found = (ids[0] == token).nonzero()[:, 0]
        if not len(found):
            raise InputError(f"token {shown(single_token)} is not among the {ids.shape[1]} tokens of this text")
        return int(found[0 if mode == "first" else -1])

    def to_single_str_token(self, token: int) -> str:
        """The text of one token id."""
        return self.to_str_tokens([token])[0]
