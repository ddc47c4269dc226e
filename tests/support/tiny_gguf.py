"""Write a tiny transformers model as a GGUF file, the way llama.cpp's convert_hf_to_gguf.py does."""

import math
from pathlib import Path

import gguf
import numpy as np
import torch

ARCHITECTURES = {
    "llama": "llama",
    "qwen3": "qwen3",
    "olmo2": "olmo2",
    "gemma3_text": "gemma3",
    "hunyuan_v1_dense": "hunyuan-dense",
    "qwen2": "qwen2",
    "gemma2": "gemma2",
    "phi3": "phi3",
}
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_up_proj": "ffn_up",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.query_layernorm": "attn_q_norm",
    "self_attn.key_layernorm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
}
_NORMS = {
    "llama": {"post_attention_layernorm": "ffn_norm"},
    "qwen3": {"post_attention_layernorm": "ffn_norm"},
    "qwen2": {"post_attention_layernorm": "ffn_norm"},
    "phi3": {"post_attention_layernorm": "ffn_norm"},
    "hunyuan_v1_dense": {"post_attention_layernorm": "ffn_norm"},
    "olmo2": {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"},
    "gemma3_text": {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
}


_NORMS["gemma2"] = _NORMS["gemma3_text"]
# Families whose files say how wide a head is, and those whose do not.
_WITHOUT_KEY_LENGTH = ("phi3",)


def gguf_name(family: str, name: str) -> str:
    """llama.cpp's name for a tensor of transformers."""
    stem, leaf = name.rsplit(".", 1)
    if not stem.startswith("model.layers."):
        return f"{_NAMES[stem]}.{leaf}"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{(_NAMES | _NORMS[family])[inner]}.{leaf}"


def write_gguf(
    model, path: Path, *, tensors=None, extra: dict[str, int] | None = None, quantised: bool = False, edit=None
) -> Path:
    """Write `model`; `tensors` replaces its weights, `extra` adds whole-number keys, `quantised` stores Q8_0.

    `edit` is called with the writer before its tensors are added.
    """
    config = model.config
    family = config.model_type
    writer = gguf.GGUFWriter(path, ARCHITECTURES[family])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if family not in _WITHOUT_KEY_LENGTH:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    writer.add_vocab_size(config.vocab_size)
    if family == "llama":
        writer.add_rope_dimension_count(head_dim)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    if family in ("gemma2", "gemma3_text", "phi3"):
        writer.add_sliding_window(config.sliding_window or 0)
    if family == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if family == "phi3":
        _write_phi3_rope(writer, rope, config, head_dim)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if edit is not None:
        edit(writer)
    for key, value in (extra or {}).items():
        writer.add_uint32(key, value)
    for name, weight in (tensors or dict(model.state_dict())).items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = converted(family, name, weight, config).contiguous().numpy()
        if quantised and values.ndim == 2 and values.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(gguf_name(family, name), gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(family, name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_phi3_rope(writer, rope: dict, config, head_dim: int) -> None:
    """The width that rotates, and the divisors of long and short texts."""
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    trained = config.original_max_position_embeddings
    writer.add_rope_scaling_orig_ctx_len(trained)
    if rope["rope_type"] == "longrope":
        stretch = config.max_position_embeddings / trained
        writer.add_rope_scaling_attn_factors((1 + math.log(stretch) / math.log(trained)) ** 0.5)
        for name in ("long", "short"):
            factors = np.array(rope[f"{name}_factor"], dtype=np.float32)
            writer.add_tensor(f"rope_factors_{name}.weight", factors)


def converted(family: str, name: str, weight: torch.Tensor, config) -> torch.Tensor:
    """The values that the converter stores: llama's q and k rows paired up, Gemma's norms with their 1."""
    weight = weight.float()
    if family in ("gemma2", "gemma3_text") and "norm" in name:
        return weight + 1
    if family == "llama" and ("q_proj" in name or "k_proj" in name):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        rows = weight.shape[0]
        return weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    return weight
