"""GGUF files: their settings and dequantised weights, as a config.json and tensors under transformers' names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hooks.checks import shown, whole
from hooks.errors import ConfigError, UnknownModelError, WeightError
from hooks.families.family import Family, Part
from hooks.families.table import FAMILIES
from hooks.loading.gguf_header import StoredTensor, read_header
from hooks.loading.gguf_rope import ROPE_KEYS, ROPE_TENSORS, decimal, rope_settings, rotated_share
from hooks.loading.weight_files import WeightFile
from hooks.loading.weights import check_sizes

# config.json key ← GGUF key after the architecture's prefix.
_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_CHECKED = {"attention.value_length", "rope.dimension_count", "vocab_size"}
_NUMBERS = {
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "rope.freq_base_swa",
    "attn_logit_softcapping",
    "final_logit_softcapping",
}
_NEEDED = ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count")

# Our parameter → the tensor, the same for every architecture.
_ENDS = {"embed.": "token_embd.", "ln_final.": "output_norm.", "unembed.": "output."}
_LAYER = {
    "ln1": "attn_norm",
    "ln1_post": "post_attention_norm",
    "ln2": "ffn_norm",
    "ln2_post": "post_ffw_norm",
    "attn.q_proj": "attn_q",
    "attn.k_proj": "attn_k",
    "attn.v_proj": "attn_v",
    "attn.o_proj": "attn_output",
    "attn.q_norm": "attn_q_norm",
    "attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# Of a family that keeps several of our weights in one tensor: any one of them, which names it.
_FUSED = {"attn_qkv": "attn.q_proj", "ffn_up": "mlp.up_proj"}


@dataclass(frozen=True)
class GGUFModel:
    """A GGUF file: what it describes, and how to get at its values.

    Attributes:
        config: what its config.json would say.
        shapes: its tensors on the meta device, under transformers' names and in the layout of transformers.
        read: the dequantised values of one of them.
        provenance: how the weights were stored, and the constants that the format cannot carry, each with its source.
        has_tokenizer: whether the file carries a vocabulary.
        file: the file as it was.
    """

    config: dict[str, Any]
    shapes: dict[str, Tensor]
    read: Callable[[str], Tensor]
    provenance: dict[str, str]
    has_tokenizer: bool
    file: WeightFile


def describe_gguf(path: Path) -> GGUFModel:
    """Read what a GGUF file says of itself, and none of its weights.

    Raises:
        UnknownModelError: its architecture has no row in the family table.
        ConfigError: it has a key that the row does not know.
        WeightError: the file is damaged, or a tensor has no place in the model.
    """
    header = read_header(path)
    file = WeightFile.at(path)
    family = _family(header.fields, path)
    config, provenance = _config(header.fields, header.tensors, family)
    stored = {_place(each, family): each for name, each in header.tensors.items() if name not in ROPE_TENSORS}
    shapes = {name: torch.empty(tensor.shape, device="meta") for name, tensor in stored.items()}
    check_sizes(family.config(config), family, shapes, str(path))
    kinds = ", ".join(sorted({tensor.kind.name for tensor in stored.values()}))
    provenance["weights"] = f"dequantised to float32 from GGUF ({kinds})"
    return GGUFModel(
        config,
        shapes,
        lambda name: _weight(stored[name], file, family, config),
        provenance,
        "tokenizer.ggml.tokens" in header.fields,
        file,
    )


def read_gguf(path: Path, on_tensor: Callable[[int, int], None] | None = None) -> tuple[GGUFModel, dict[str, Tensor]]:
    """A GGUF file, and all its weights dequantised.

    Args:
        path: the file.
        on_tensor: called with (tensors done, tensors in all), for a progress bar.

    Raises:
        WeightError: as of `describe_gguf`, or a tensor cannot be dequantised.
    """
    model = describe_gguf(path)
    weights: dict[str, Tensor] = {}
    for done, name in enumerate(model.shapes):
        weights[name] = model.read(name)
        if on_tensor is not None:
            on_tensor(done + 1, len(model.shapes))
    return model, weights


def _family(fields: Mapping[str, Any], path: Path) -> Family:
    """The row whose layout this file has."""
    arch = fields.get("general.architecture")
    rows = {row.gguf.arch: row for row in FAMILIES.values() if row.gguf}
    if not isinstance(arch, str) or arch not in rows:
        raise UnknownModelError(
            f"{path} holds a model of architecture {shown(arch)}; GGUF files are read for {', '.join(rows)}"
        )
    return rows[arch]


def _config(
    fields: Mapping[str, Any], tensors: Mapping[str, StoredTensor], family: Family
) -> tuple[dict[str, Any], dict[str, str]]:
    """The file's settings as a config.json, and where those come from that it does not have."""
    assert family.gguf is not None
    prefix = f"{family.gguf.arch}."
    own = {key.removeprefix(prefix): value for key, value in fields.items() if key.startswith(prefix)}
    unknown = sorted(set(own) - _KEYS.keys() - _CHECKED - ROPE_KEYS)
    if unknown:
        raise ConfigError(
            f"unknown key in a GGUF file of architecture {family.gguf.arch}: "
            f"{', '.join(f'{prefix}{key}={shown(own[key])}' for key in unknown)}; it may change what the model computes"
        )
    missing = [key for key in _NEEDED if key not in own]
    if missing:
        raise ConfigError(f"the GGUF file lacks {', '.join(prefix + key for key in missing)}; it is not whole")
    for key in own.keys() & (_KEYS.keys() | _CHECKED) - _NUMBERS:
        whole(prefix + key, own[key], at_least=0 if key == "attention.sliding_window" else 1, error=ConfigError)
    config = {name: own[key] for key, name in _KEYS.items() if key in own}
    for key in own.keys() & _NUMBERS:
        config[_KEYS[key]] = decimal(prefix + key, own[key])
    config |= {"model_type": family.model_type, "tie_word_embeddings": "output.weight" not in tensors}
    if config.get("sliding_window") == 0:
        config["sliding_window"] = None
    config |= _derived(own, tensors, family)
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    config |= rotated_share(own, head_dim, partial="partial_rotary_factor" in family.defaults)
    config |= rope_settings(own, tensors, config)
    provenance = {}
    for name, constant in family.gguf.constants.items():
        if name not in config:
            config[name] = constant.value(config) if callable(constant.value) else constant.value
            provenance[name] = f"{config[name]}: GGUF has no key for it; {constant.source}"
    return config, provenance


def _derived(own: Mapping[str, Any], tensors: Mapping[str, StoredTensor], family: Family) -> dict[str, Any]:
    """What the file says in more than one place, or by the tensors that it has."""
    if "token_embd.weight" not in tensors:
        raise WeightError("token_embd.weight is missing from the GGUF file")
    sizes = {own[k] for k in ("attention.key_length", "attention.value_length") if k in own}
    if len(sizes) > 1:
        raise ConfigError(f"the GGUF file has heads of sizes {sorted(sizes)} for k and v; they must be one size")
    derived: dict[str, Any] = {"vocab_size": int(tensors["token_embd.weight"].shape[0])}
    derived |= {"head_dim": sizes.pop()} if sizes else {}
    if not sizes and "partial_rotary_factor" not in family.defaults and "rope.dimension_count" in own:
        derived["head_dim"] = own["rope.dimension_count"]
    if "attention_bias" in family.defaults:
        derived["attention_bias"] = "blk.0.attn_q.bias" in tensors
    return derived | ({"mlp_bias": True} if "blk.0.ffn_up.bias" in tensors else {})


def _place(tensor: StoredTensor, family: Family) -> str:
    """Transformers' name of one tensor."""
    ours = _our_name(tensor.name, family)
    source = family.weights.get(ours[0]) if ours else None
    theirs = source.name if isinstance(source, Part) else source
    if ours is None or not isinstance(theirs, str):
        raise WeightError(f"tensor {tensor.name!r} of the GGUF file has no place in a {family.model_type} model")
    return theirs.format(p=family.prefixes[0], i=ours[1])


def _weight(tensor: StoredTensor, file: WeightFile, family: Family, config: Mapping[str, Any]) -> Tensor:
    """The dequantised, un-permuted values of one tensor."""
    assert family.gguf is not None
    stored = file.read(tensor.name, tensor.start, tensor.data.nbytes).reshape(tensor.data.shape)
    try:
        values = gguf.dequantize(stored, tensor.kind).astype(np.float32, copy=False)
    except (NotImplementedError, ValueError) as error:
        raise WeightError(f"tensor {tensor.name!r} cannot be dequantised from {tensor.kind.name}: {error}") from error
    weight = torch.from_numpy(values)
    if family.gguf.norm_plus_one and "norm" in tensor.name:
        weight = weight - 1
    if family.gguf.interleaved and (".attn_q." in tensor.name or ".attn_k." in tensor.name):
        heads = config["num_attention_heads"]
        if ".attn_k." in tensor.name:
            heads = config.get("num_key_value_heads", heads)
        if weight.shape[0] % (2 * heads):
            raise WeightError(f"tensor {tensor.name!r} has {weight.shape[0]} rows, which {heads} heads cannot share")
        weight = halves_from_pairs(weight, heads)
    return weight


def _our_name(name: str, family: Family) -> tuple[str, str] | None:
    """("blocks.{i}.ln1.weight", "3") for "blk.3.attn_norm.weight"; None for a name that the family has not."""
    for ours, theirs in _ENDS.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs), ""
    parts = name.split(".")
    if len(parts) != 4 or parts[0] != "blk" or not parts[1].isdecimal():
        return None
    _, layer, theirs, leaf = parts
    plain = {theirs: ours for ours, theirs in _LAYER.items()}
    for names, fused in ((_FUSED, True), (plain, False)):
        ours = f"blocks.{{i}}.{names.get(theirs)}.{leaf}"
        if isinstance(family.weights.get(ours), Part) == fused and theirs in names:
            return ours, layer
    return None


def halves_from_pairs(weight: Float[Tensor, "rows *in"], n_heads: int) -> Float[Tensor, "rows *in"]:
    """Rows of q or k from adjacent-pair order, as GGUF's llama keeps them, to transformers' half-and-half order."""
    pairs = weight.reshape(n_heads, -1, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape).contiguous()
