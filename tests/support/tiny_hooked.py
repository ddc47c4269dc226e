"""Tiny random hooked models whose gains are far from 1, for tests that need no checkpoint."""

import torch

from hooks import HookedTransformer, HookedTransformerConfig, QKNormConfig, RopeConfig


def tiny_config(**changes):
    """Two layers, 4 query heads on 2 kv heads of width 16, gated MLP, RMS QK-norm before default RoPE."""
    settings = {
        "d_model": 32,
        "d_head": 16,
        "n_layers": 2,
        "n_ctx": 4096,
        "n_heads": 4,
        "n_key_value_heads": 2,
        "d_mlp": 48,
        "d_vocab": 61,
        "act_fn": "silu",
        "gated_mlp": True,
        "normalization_type": "RMS",
        "rope": RopeConfig(rope_theta=10_000.0, precision="float64"),
        "qk_norm": QKNormConfig(eps=1e-6),
        "initializer_range": 0.25,
        "seed": 7,
        "device": "cpu",
    }
    return HookedTransformerConfig(**(settings | changes))


def tiny_model(seed=0, **changes):
    """A model of `tiny_config` with every gain drawn around 1 and every bias around 0, in eval mode."""
    model = HookedTransformer(tiny_config(**changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or ".ln" in name or name.startswith("ln_final") or name.endswith("bias"):
                parameter += 0.5 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model.eval()


def random_tokens(n, vocab=61, seed=0, batch=1):
    """[batch, n] token ids."""
    return torch.randint(vocab, (batch, n), generator=torch.Generator().manual_seed(seed))
