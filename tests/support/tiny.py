"""Tiny random transformers models of every family, with gains far from 1 and biases far from 0."""

from dataclasses import dataclass

import torch
import transformers

CLASSES = {
    family: (getattr(transformers, f"{stem}Config"), getattr(transformers, f"{model or stem}ForCausalLM"))
    for family, stem, model in [
        ("llama", "Llama", ""),
        ("qwen3", "Qwen3", ""),
        ("olmo2", "Olmo2", ""),
        ("gemma3_text", "Gemma3Text", "Gemma3"),
        ("hunyuan_v1_dense", "HunYuanDenseV1", ""),
        ("mistral", "Mistral", ""),
        ("qwen2", "Qwen2", ""),
        ("olmo", "Olmo", ""),
        ("olmo3", "Olmo3", ""),
        ("gemma2", "Gemma2", ""),
        ("smollm3", "SmolLM3", ""),
        ("phi3", "Phi3", ""),
        ("phi", "Phi", ""),
        ("stablelm", "StableLm", ""),
        ("cohere", "Cohere", ""),
        ("cohere2", "Cohere2", ""),
        ("gpt_neox", "GPTNeoX", ""),
        ("exaone4", "Exaone4", ""),
        ("apertus", "Apertus", ""),
        ("glm4", "Glm4", ""),
        ("gemma", "Gemma", ""),
        ("granite", "Granite", ""),
        ("starcoder2", "Starcoder2", ""),
        ("nemotron", "Nemotron", ""),
        ("ernie4_5", "Ernie4_5", ""),
        ("seed_oss", "SeedOss", ""),
        ("arcee", "Arcee", ""),
        ("helium", "Helium", ""),
        ("glm", "Glm", ""),
        ("gptj", "GPTJ", ""),
    ]
}
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")
MAX_POSITIONS = 64  # the "trained" length: short, so that dynamic schedules leave it
PARTIAL = ("phi3", "phi", "stablelm", "gpt_neox", "glm4", "glm", "nemotron")  # rotate a part of each head
# Their heads share the width of the model, whatever Shape says.
WHOLE_WIDTH = ("phi3", "phi", "stablelm", "cohere2", "gpt_neox", "helium", "gptj")
# What transformers' code for these families cannot run.
REFUSED = {
    "phi3": {"linear", "dynamic", "yarn", "llama3", "proportional"},
    "phi": {"proportional"},
    "stablelm": {"proportional"},
    "gptj": {*ROPE_TYPES} - {"default"},
}
# GPT-J's names of what every other family has.
GPTJ_NAMES = {
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
CASES = [(family, kind) for family in CLASSES for kind in ROPE_TYPES if kind not in REFUSED.get(family, ())]


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


def rope_parameters(rope_type: str, width: int, theta: float = 10_000.0) -> dict:
    """Settings of one schedule for so many rotated features, as transformers 5 spells them."""
    more = {
        "default": {},
        "linear": {"factor": 2.5},
        "dynamic": {"factor": 3.0},
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 24.0, "beta_slow": 1.5},
        "longrope": {
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "short_factor": [1.0 + 0.05 * i for i in range(width // 2)],
            "long_factor": [1.5 + 0.2 * i for i in range(width // 2)],
        },
        "llama3": {
            "factor": 8.0,
            "original_max_position_embeddings": 32,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
        "proportional": {"factor": 1.5, "partial_rotary_factor": 0.5},
    }
    return {"rope_type": rope_type, "rope_theta": theta, **more[rope_type]}


def tiny_config(family: str, shape: Shape, rope_type: str = "default", **more):
    """A transformers config that uses what is special to its family; where layer types differ, full layers scale."""
    config_class, _ = CLASSES[family]
    d_model = shape.heads * shape.head_dim if family in WHOLE_WIDTH else shape.d_model
    settings = {
        "vocab_size": shape.vocab,
        "hidden_size": d_model,
        "intermediate_size": shape.d_mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": MAX_POSITIONS,
        "tie_word_embeddings": shape.tied,
        "rope_parameters": _rope(family, shape, rope_type),
        "pad_token_id": None,  # a padding row gets no gradient in torch's Embedding
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if family not in WHOLE_WIDTH:
        settings["head_dim"] = shape.head_dim
    if family != "gpt_neox":
        settings["num_key_value_heads"] = shape.kv_heads
    if family not in ("mistral", "qwen2", "phi3", "phi", "stablelm", "exaone4", "starcoder2", "ernie4_5", "gptj"):
        settings["attention_bias"] = shape.bias
    if family in ("llama", "smollm3", "granite", "nemotron", "seed_oss", "arcee", "helium"):
        settings["mlp_bias"] = shape.bias
    if family == "gptj":
        del settings["rope_parameters"], settings["num_key_value_heads"]
        settings = {GPTJ_NAMES.get(name, name): value for name, value in settings.items()}
    return config_class(**{**settings, **_special(family, shape), **more})


def _rope(family: str, shape: Shape, rope_type: str) -> dict:
    """The rope_parameters of a family: nested where layer types differ, partial where a part of each head rotates."""
    width = shape.head_dim
    if family in PARTIAL:
        width = min(width, max(4, 2 * (width // 4)))
    scaled = rope_parameters(rope_type, width)
    if family in PARTIAL:
        # Not quite the share: the width is its product with head_dim, cut off and not rounded.
        scaled["partial_rotary_factor"] = min(1.0, (width + 0.5) / shape.head_dim)
    if family not in ("gemma3_text", "olmo3"):
        return scaled
    return {"full_attention": scaled, "sliding_attention": rope_parameters("default", width, theta=500.0)}


def _special(family: str, shape: Shape) -> dict:
    """Settings of one family alone."""
    alternating = (["sliding_attention", "full_attention"] * shape.layers)[: shape.layers]
    windows = {"sliding_window": 7, "layer_types": alternating}
    return {
        "gemma3_text": {**windows, "query_pre_attn_scalar": 19},
        "mistral": {"sliding_window": 7},
        "qwen2": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
        "olmo": {"clip_qkv": 0.9},
        "olmo3": windows,
        "gemma2": {
            **windows,
            "query_pre_attn_scalar": 19,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
        "smollm3": {"use_sliding_window": True, "sliding_window": 7, "no_rope_layer_interval": 2},
        "phi3": {"original_max_position_embeddings": 16, "sliding_window": None if shape.tied else 30},
        "phi": {"qk_layernorm": not shape.tied},
        "stablelm": {"qk_layernorm": True, "use_parallel_residual": shape.tied, "use_qkv_bias": shape.bias},
        "cohere": {"use_qk_norm": not shape.tied, "logit_scale": 0.3},
        "cohere2": {**windows, "logit_scale": 0.3},
        "gpt_neox": {"use_parallel_residual": shape.bias},
        "exaone4": windows,
        "granite": {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.3,
            "logits_scaling": 2.5,
        },
        "starcoder2": {"use_bias": shape.bias, "sliding_window": 7},
        "ernie4_5": {"use_bias": shape.bias},
        "seed_oss": {"attention_out_bias": shape.tied},
        "helium": {"head_dim": shape.head_dim},
        # Its table of angles ends at n_positions.
        "gptj": {"rotary_dim": min(shape.head_dim, max(4, 2 * (shape.head_dim // 4))), "n_positions": 41_000},
    }.get(family, {})


def tiny_model(family: str, shape: Shape = Shape(), rope_type: str = "default", *, seed: int = 0, dtype=None, **more):
    """A random model in eval mode with eager attention; the global generator is left alone."""
    config = tiny_config(family, shape, rope_type, **more)
    return random_model(family, config, seed=seed, dtype=dtype)


def random_model(family: str, config, *, seed: int = 0, dtype=None):
    """The model of any config of a family, with the weights of `tiny_model`."""
    config._attn_implementation = "eager"
    _, model_class = CLASSES[family]
    with torch.random.fork_rng():
        model = model_class._from_config(config, dtype=dtype or torch.float32)
    generator = torch.Generator().manual_seed(seed)
    gain_at_zero = 0.0 if family.startswith(("gemma", "nemotron")) else 1.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ("norm" in name or ".ln_" in name) and not name.endswith("bias"):
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
