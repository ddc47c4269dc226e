"""Tiny random transformers models of every family, with gains far from 1 and biases far from 0."""

from dataclasses import dataclass

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    HunYuanDenseV1Config,
    HunYuanDenseV1ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "olmo2": (Olmo2Config, Olmo2ForCausalLM),
    "gemma3_text": (Gemma3TextConfig, Gemma3ForCausalLM),
    "hunyuan_v1_dense": (HunYuanDenseV1Config, HunYuanDenseV1ForCausalLM),
}
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
MAX_POSITIONS = 64  # the "trained" length: short, so that dynamic schedules leave it


@dataclass(frozen=True)
class Shape:
    """Sizes of a tiny model; the defaults have head_dim ≠ d_model / heads."""

    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    d_model: int = 40
    d_mlp: int = 56
    layers: int = 3
    vocab: int = 97
    tied: bool = False
    bias: bool = True


def rope_parameters(rope_type: str, head_dim: int, theta: float = 10_000.0) -> dict:
    """Settings of one schedule as transformers 5 spells them."""
    more = {
        "default": {},
        "linear": {"factor": 2.5},
        "dynamic": {"factor": 3.0},
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 24.0, "beta_slow": 1.5},
        "longrope": {
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "short_factor": [1.0 + 0.05 * i for i in range(head_dim // 2)],
            "long_factor": [1.5 + 0.2 * i for i in range(head_dim // 2)],
        },
        "llama3": {
            "factor": 8.0,
            "original_max_position_embeddings": 32,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
    }
    return {"rope_type": rope_type, "rope_theta": theta, **more[rope_type]}


def tiny_config(family: str, shape: Shape, rope_type: str = "default", **more):
    """A transformers config; Gemma 3 alternates layer types and scales its full layers only."""
    config_class, _ = CLASSES[family]
    settings = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.d_model,
        "intermediate_size": shape.d_mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": MAX_POSITIONS,
        "attention_bias": shape.bias,
        "tie_word_embeddings": shape.tied,
        "rope_parameters": rope_parameters(rope_type, shape.head_dim),
        "pad_token_id": None,  # a padding row gets no gradient in torch's Embedding
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if family == "gemma3_text":
        sliding = rope_parameters("default", shape.head_dim, theta=500.0)
        settings |= {
            "rope_parameters": {"full_attention": settings["rope_parameters"], "sliding_attention": sliding},
            "sliding_window": 7,
            "layer_types": ["sliding_attention", "full_attention"] * shape.layers,
            "query_pre_attn_scalar": 19,
        }
        settings["layer_types"] = settings["layer_types"][: shape.layers]
    if family == "llama":
        settings["mlp_bias"] = shape.bias
    return config_class(**{**settings, **more})


def tiny_model(family: str, shape: Shape = Shape(), rope_type: str = "default", *, seed: int = 0, dtype=None, **more):
    """A random model in eval mode with eager attention; the global generator is left alone."""
    config = tiny_config(family, shape, rope_type, **more)
    config._attn_implementation = "eager"
    _, model_class = CLASSES[family]
    with torch.random.fork_rng():
        model = model_class._from_config(config, dtype=dtype or torch.float32)
    generator = torch.Generator().manual_seed(seed)
    gain_at_zero = 0.0 if family == "gemma3_text" else 1.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                values = gain_at_zero + 1.4 * torch.rand(parameter.shape, generator=generator) - 0.7
            elif name.endswith("bias"):
                values = torch.rand(parameter.shape, generator=generator) - 0.5
            else:
                values = torch.randn(parameter.shape, generator=generator) * 1.5 * parameter.shape[-1] ** -0.5
            parameter.copy_(values)
    return model.eval()


def tokens(n: int, batch: int = 2, vocab: int = 97, seed: int = 1) -> torch.Tensor:
    """Random token ids, [batch n]."""
    return torch.randint(vocab, (batch, n), generator=torch.Generator().manual_seed(seed))
