"""`generate` and `generate_stream` for native and attached models."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooks import checks
from hooks.base.inputs import padding_mask
from hooks.base.tokenizing import TokenizingMixin, is_text
from hooks.errors import InputError
from hooks.generation.choosing import next_token_rule
from hooks.generation.key_values import KeyValueCache
from hooks.generation.loop import Plan, check_padded_left, generated, stop_after
from hooks.generation.stopping import ending_tokens, filler, finish_rule

_PATIENCE_SECONDS = 2.0


class GeneratingMixin(TokenizingMixin):
    """Generation with every hook at work in every step, at the true positions of its queries and keys."""

    if TYPE_CHECKING:

        def empty_key_values(self) -> Any: ...  # noqa: D102

        def next_logits(  # noqa: D102
            self, tokens: Tensor, *, attention_mask: Tensor | None = None, past: KeyValueCache | None = None
        ) -> Float[Tensor, "batch d_vocab"]: ...

    def generate(
        self,
        tokens: str | list[str] | Int[Tensor, "batch pos"],
        max_new_tokens: int = 10,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: str | Iterable[str] | None = None,
        attention_mask: Bool[Tensor, "batch pos"] | Int[Tensor, "batch pos"] | None = None,
        past: KeyValueCache | None = None,
        use_past_kv_cache: bool = True,
        stop_at_eos: bool = True,
        eos_token_id: int | Iterable[int] | None = None,
        generator: torch.Generator | None = None,
        return_type: Literal["input", "tokens", "str"] = "input",
        verbose: bool = True,
    ) -> Int[Tensor, "batch pos+new"] | str | list[str]:
        """Go on from a text, token by token, with the hooks of this thread at work in every step.

        In a step with a cache, points see the new token alone, and scores and patterns one row over the keys that
        are kept; ``hook.ctx["query_positions"]`` and ``["key_positions"]`` say where those stand in the text.

        Args:
            tokens: texts, padded on the left where they are unequal, or token ids. A text that follows others in
                `past` gets no BOS token.
            max_new_tokens: at most so many new ones.
            temperature: 0 takes the most likely token; above it, tokens are drawn. See
                `hooks.generation.choosing.next_token_rule` for this and the next two.
            top_k: draw among the k most likely tokens.
            top_p: draw among the fewest tokens that hold this share of the probability.
            stop: a row is finished with the token that completes one of these strings.
            attention_mask: 0 where a token id is padding, which must stand on the left.
            past: what was read before the tokens; afterwards it holds all but the last of the new ones too.
            use_past_kv_cache: False reads all tokens again at every step, which gives the same.
            stop_at_eos: a row is finished with a token that ends texts, where one is known.
            eos_token_id: which ones do; the tokenizer's when None.
            generator: what draws; torch's global one when None.
            return_type: "tokens" [batch, pos + new], of which finished rows are filled up; "str" the text, without
                special tokens, or a list of them for a batch; "input" whichever was given.
            verbose: show a progress bar, on a terminal, once it has taken two seconds.

        Raises:
            InputError: settings out of range, or ids, mask or past that do not fit.
            TokenizerError: text or stop strings and no tokenizer.
        """
        return_type = checks.choice("return_type", return_type, ("input", "tokens", "str"))
        as_text = return_type == "str" or (return_type == "input" and is_text(tokens))
        ids, attention_mask = self._read(tokens, attention_mask, past, "left")
        checks.flag("verbose", verbose)
        stream = self.generate_stream(
            ids,
            max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            stop=stop,
            attention_mask=attention_mask,
            past=past,
            use_past_kv_cache=use_past_kv_cache,
            stop_at_eos=stop_at_eos,
            eos_token_id=eos_token_id,
            generator=generator,
        )
        from tqdm.auto import tqdm

        bar = tqdm(
            total=max_new_tokens,
            desc="Tokens",
            delay=_PATIENCE_SECONDS,
            leave=False,
            disable=None if verbose else True,  # None: on a terminal only
        )
        whole = torch.cat([ids, *stop_after(stream, bar)], 1)
        if not as_text:
            return whole
        texts = self._texts(whole, padding_mask(attention_mask, ids))
        return texts[0] if isinstance(tokens, str) or (len(texts) == 1 and not is_text(tokens)) else texts

    def generate_stream(
        self,
        tokens: str | list[str] | Int[Tensor, "batch pos"],
        max_new_tokens: int = 10,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: str | Iterable[str] | None = None,
        attention_mask: Bool[Tensor, "batch pos"] | Int[Tensor, "batch pos"] | None = None,
        past: KeyValueCache | None = None,
        use_past_kv_cache: bool = True,
        stop_at_eos: bool = True,
        eos_token_id: int | Iterable[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Int[Tensor, "batch 1"]]:
        """The new tokens of `generate`, each as soon as it is chosen; arguments as there.

        Hooks must be there while the tokens are taken: put the loop over them inside ``model.hooks(…)``.

        Example:
            >>> for token in model.generate_stream("The capital of France is", 20):
            ...     print(model.to_string(token[0]), end="", flush=True)
        """
        ids, attention_mask = self._read(tokens, attention_mask, past, "left")
        real = padding_mask(attention_mask, ids)
        check_padded_left(real)
        if not checks.flag("use_past_kv_cache", use_past_kv_cache) and past is not None:
            raise InputError(
                "use_past_kv_cache=False reads all tokens again, and past does not have them: leave it out"
            )
        keep = KeyValueCache(self) if past is None and use_past_kv_cache else past
        eos = ending_tokens(eos_token_id, self.tokenizer, self.cfg.d_vocab)
        eos = eos if checks.flag("stop_at_eos", stop_at_eos) else ()
        finished = finish_rule(self.tokenizer, stop, eos)
        plan = Plan(
            max_new_tokens=checks.whole("max_new_tokens", max_new_tokens, at_least=1),
            choose=next_token_rule(temperature=temperature, top_k=top_k, top_p=top_p, generator=generator),
            finished=finished,
            fill=filler(self.tokenizer, eos, needed=finished is not None and len(ids) > 1),
            past=keep,
        )
        return generated(self, ids, real, plan)

    def _texts(self, tokens: Tensor, real: Tensor | None) -> list[str]:
        """The text of each row, padding and special tokens left out."""
        starts = [0] * len(tokens) if real is None else (~real).sum(1).tolist()
        rows = [row[start:] for row, start in zip(tokens.tolist(), starts, strict=True)]
        return self._require_tokenizer("batch_decode").batch_decode(
            rows, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
