"""A two-layer model whose heads are written by hand: a previous-token, a duplicate-token and an induction head."""

import torch
from tiny_hooked import tiny_config

from hooks import HookedTransformer

VOCAB = 10
PREVIOUS, DUPLICATE, INDUCTION = (0, 0), (1, 0), (1, 1)


def planted_model():
    """Tokens are one-hot in features 0–9; the previous-token head copies its token to features 10–19.

    The previous-token head needs only biases: constant q and k whose angles differ by one position's rotation in every
    frequency pair score highest at distance 1. The other two compare one-hot vectors in a layer without rotation.
    """
    cfg = tiny_config(
        d_vocab=VOCAB, n_key_value_heads=4, attn_bias=True, qk_norm=None, nope_layers=(1,), initializer_range=0.01
    )
    model = HookedTransformer(cfg).eval()
    first, second = model.blocks[0].attn, model.blocks[1].attn
    eye, half = torch.eye(VOCAB), cfg.d_head // 2
    token, previous = slice(0, VOCAB), slice(VOCAB, 2 * VOCAB)
    one_position = 10_000.0 ** (-torch.arange(half) / half)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:
                weight.zero_()
        model.embed.weight.zero_()[:, token] = eye
        first.b_Q[0, :half] = 16.0
        first.b_K[0] = 16 * torch.cat([one_position.cos(), one_position.sin()])
        first.W_V[0, token, :VOCAB] = eye / cfg.d_model**0.5
        first.W_O[0, :VOCAB, previous] = eye
        for head, source in ((0, token), (1, previous)):
            second.W_Q[head, token, :VOCAB] = 3 * eye
            second.W_K[head, source, :VOCAB] = 3 * eye
    return model
