"""Random tokens, repeated: the text on which induction heads show, because nothing else helps to predict it."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from hooks import HookedTransformer, HookedTransformerConfig, checks
from hooks.attached.transformer import AttachedTransformer
from hooks.errors import InputError

_MOST = 2**28


def repeated_tokens(
    model_or_cfg: HookedTransformer | AttachedTransformer | HookedTransformerConfig,
    length: int,
    repeats: int = 2,
    seed: int = 0,
) -> Int[Tensor, " pos"]:
    """A stretch of random tokens, several times over.

    Tokens are drawn without replacement while the vocabulary lasts, so that every copy is the planted one. Special
    and added tokens are left out. A model whose tokenizer begins texts with a token gets that token first.

    Args:
        model_or_cfg: the model that is to read them; a bare config has no tokenizer, so every id may be drawn.
        length: tokens of one stretch.
        repeats: how often it comes, at least twice.
        seed: of the draw; the global generator is left alone.

    Returns:
        repeats · length token ids, one more where the tokenizer begins texts with a token.

    Raises:
        InputError: fewer than 2 tokens or 2 repeats.

    Source: arXiv:2209.11895, "In-context Learning and Induction Heads", appendix on prefix matching.
    """
    length, repeats = (checks.whole(n, v, at_least=2) for n, v in (("length", length), ("repeats", repeats)))
    seed = checks.whole("seed", seed, at_least=0, at_most=2**63 - 1)
    if length * repeats > _MOST:
        raise InputError(f"length={length:,}, repeats={repeats:,}: more tokens than any model reads ({_MOST:,})")
    model: Any = model_or_cfg
    if not isinstance(getattr(model, "cfg", model), HookedTransformerConfig):
        raise InputError(f"model_or_cfg={checks.shown(model)}: give a HookedTransformer, an attached model or a config")
    tokenizer = getattr(model, "tokenizer", None)
    cfg = getattr(model, "cfg", model)
    allowed, first = torch.arange(cfg.d_vocab), torch.empty(0, dtype=torch.int64)
    if tokenizer is not None:
        special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
        allowed = torch.tensor([i for i in range(min(cfg.d_vocab, len(tokenizer))) if i not in special])
        opening = model.to_tokens("x")[0].cpu()
        first = opening[:1][opening[:1] == (-1 if tokenizer.bos_token_id is None else tokenizer.bos_token_id)]
    generator = torch.Generator().manual_seed(seed)
    decks = -(-length // len(allowed))
    drawn = torch.cat([allowed[torch.randperm(len(allowed), generator=generator)] for _ in range(decks)])
    return torch.cat([first, drawn[:length].repeat(repeats)])
