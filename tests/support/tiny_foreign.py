"""Tiny random transformers decoders without a row: experts, sinks, chunks, compressed projections, an image tower."""

import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GptOssConfig,
    GptOssForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SiglipVisionConfig,
)

VOCAB = 97
_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 40,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
}
_COMPRESSED = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}
_CHUNKED = {
    "num_hidden_layers": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "intermediate_size_mlp": 48,
    "interleave_moe_layer_step": 2,
    "attention_chunk_size": 64,
    "use_qk_norm": True,
    "attn_temperature_tuning": True,
    "floor_scale": 8,
}
_CLIPPED = {"num_experts": 4, "num_experts_per_tok": 2, "clip_qkv": 1.5}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def _image_and_text() -> Gemma3Config:
    """Gemma 3 with its image tower."""
    text = _COMMON | {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}
    options = {"mm_tokens_per_image": 4, "image_token_index": 90, "boi_token_index": 91, "eoi_token_index": 92}
    return Gemma3Config(text_config=text, vision_config=SiglipVisionConfig(**_VISION), **options)


FOREIGN = {
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**_COMMON, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
    ),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**_COMMON, **_EXPERTS, sliding_window=5)),
    "gpt_oss": lambda: GptOssForCausalLM(
        GptOssConfig(**_COMMON, **_EXPERTS, sliding_window=5, rope_parameters=dict(_YARN))
    ),
    "llama4": lambda: Llama4ForCausalLM(Llama4TextConfig(**{**_COMMON, **_CHUNKED})),
    "olmoe": lambda: OlmoeForCausalLM(
        OlmoeConfig(**{k: v for k, v in _COMMON.items() if k != "head_dim"} | {"hidden_size": 128}, **_CLIPPED)
    ),
    "deepseek_v3": lambda: DeepseekV3ForCausalLM(
        DeepseekV3Config(**{k: v for k, v in (_COMMON | _COMPRESSED).items() if k != "head_dim"})
    ),
}


def foreign_model(name: str, seed: int = 0):
    """A model of `FOREIGN`, or "gemma3" with its image tower, with gains far from 1 and sinks far from 0."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Gemma3ForConditionalGeneration(_image_and_text()) if name == "gemma3" else FOREIGN[name]()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in path:
                parameter += 0.3 * noise
            else:
                parameter.copy_(noise if parameter.ndim < 2 else noise * 1.5 * parameter.shape[-1] ** -0.5)
    return model.eval()


def foreign_tokens(n: int, batch: int = 2, seed: int = 1) -> torch.Tensor:
    """Random token ids that stand for no image, [batch n]."""
    return torch.randint(1, 89, (batch, n), generator=torch.Generator().manual_seed(seed))
