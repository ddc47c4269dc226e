"""Attention-only models whose heads are written by hand, so that what each head does is known before it is measured.

A head that knows positions only needs no more than biases: constant q and k that RoPE turns apart, so that its score
is a sum of cosines of the distance. A head that reads tokens compares one-hot vectors in a layer without rotation.
"""

import math

import torch
from tiny_hooked import tiny_config

from hooks import HookedTransformer

VOCAB = 10
PREVIOUS, DUPLICATE, INDUCTION = (0, 0), (1, 0), (1, 1)

# Heads of `planted_kinds`: those above and these.
SINK, LOCAL, UNIFORM, ONE_PAIR = (0, 1), (0, 2), (0, 3), (0, 4)
KINDS_VOCAB = 40
ONE_PAIR_INDEX, ONE_PAIR_DISTANCE, ONE_PAIR_HEIGHT = 8, 125, 3.0


def planted_model():
    """Tokens are one-hot in features 0–9; the previous-token head copies its token to features 10–19.

    The previous-token head needs only biases: constant q and k whose angles differ by one position's rotation in every
    frequency pair score highest at distance 1. The other two compare one-hot vectors in a layer without rotation.
    """
    model = _blank(VOCAB, n_key_value_heads=4)
    _plant_pointer(model, PREVIOUS[1], distance=1, amplitude=16.0)
    _plant_induction(model, VOCAB, amplitude=3.0)
    return model


def planted_kinds():
    """One head of each kind in 2 layers × 6 heads; token 0 is the one that the sink head looks for.

    Layer 0 rotates: a previous-token head, a head that looks at token 0, one that looks around itself (within about 20
    tokens), one that looks everywhere alike, and one that uses a single frequency pair and looks 125 tokens back. Layer
    1 does not: a duplicate-token head, and an induction head that reads what the previous-token head wrote. The
    heads that are left in either layer are uniform too.
    """
    model = _blank(KINDS_VOCAB, n_heads=6, n_key_value_heads=6, d_model=2 * KINDS_VOCAB, d_head=KINDS_VOCAB)
    _plant_pointer(model, PREVIOUS[1], distance=1, amplitude=8.0)
    _plant_waves(model, LOCAL[1], {5: 1.5, 10: 60.0, 15: 300.0}, distance=0)
    _plant_waves(model, ONE_PAIR[1], {ONE_PAIR_INDEX: ONE_PAIR_HEIGHT}, distance=ONE_PAIR_DISTANCE)
    attn, slowest = model.blocks[0].attn, KINDS_VOCAB // 2 - 1
    with torch.no_grad():
        attn.b_Q[SINK[1], slowest] = 8.0
        attn.W_K[SINK[1], 0, slowest] = 3.0
    _plant_induction(model, KINDS_VOCAB, amplitude=3.0)
    return model


def inverse_frequencies(half):
    """Radians per token of each frequency pair at base 10,000, float64."""
    return 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)


def _blank(vocab, **changes):
    """Two layers without norm of q and k, the second without rotation; all weights zero, tokens one-hot."""
    cfg = tiny_config(d_vocab=vocab, attn_bias=True, qk_norm=None, nope_layers=(1,), initializer_range=0.01, **changes)
    model = HookedTransformer(cfg).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:
                weight.zero_()
        model.embed.weight.zero_()[:, :vocab] = torch.eye(vocab)
    return model


def _plant_pointer(model, head, *, distance, amplitude):
    """A head of layer 0 that uses every frequency pair alike to point a fixed distance back."""
    half = model.cfg.d_head // 2
    height = amplitude**2 / math.sqrt(model.cfg.d_head)
    _plant_waves(model, head, dict.fromkeys(range(half), height), distance=distance)


def _plant_waves(model, head, heights, *, distance):
    """A head of layer 0 whose score at distance Δ is the sum of height · cos(f · (Δ − distance)) over its pairs."""
    attn, half = model.blocks[0].attn, model.cfg.d_head // 2
    angle = inverse_frequencies(half) * distance
    with torch.no_grad():
        for pair, height in heights.items():
            size = math.sqrt(height * math.sqrt(model.cfg.d_head))
            attn.b_Q[head, pair] = size
            attn.b_K[head, pair] = size * math.cos(angle[pair])
            attn.b_K[head, half + pair] = size * math.sin(angle[pair])


def _plant_induction(model, vocab, amplitude):
    """Head PREVIOUS writes the token it reads beside the own one; layer 1 compares tokens with either."""
    first, second = model.blocks[0].attn, model.blocks[1].attn
    eye, token, previous = torch.eye(vocab), slice(0, vocab), slice(vocab, 2 * vocab)
    with torch.no_grad():
        first.W_V[PREVIOUS[1], token, :vocab] = eye / model.cfg.d_model**0.5
        first.W_O[PREVIOUS[1], :vocab, previous] = eye
        for (_, head), source in ((DUPLICATE, token), (INDUCTION, previous)):
            second.W_Q[head, token, :vocab] = amplitude * eye
            second.W_K[head, source, :vocab] = amplitude * eye
