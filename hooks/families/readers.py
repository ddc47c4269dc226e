"""What the rows of the family table share: settings, defaults, names of weights, and readers of single settings."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from hooks.checks import shown
from hooks.config.qk_norm import QKNormConfig
from hooks.config.transformer import HookedTransformerConfig
from hooks.errors import ConfigError
from hooks.families.family import Part, PerHead, Read, Source
from hooks.families.settings import Settings

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_fast",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


def activation(key: str, *more: str) -> Callable[[Settings], str]:
    """The MLP's activation, by a name that both sides know; `more` are those that only this family has."""
    known = _ACTIVATIONS | {name: name for name in more}

    def read(hf: Settings) -> str:
        if hf[key] not in known:
            raise ConfigError(f"{key}={hf[key]!r} is not supported; allowed are {', '.join(known)}")
        return known[hf[key]]

    return read


def head_dim(hf: Settings) -> int:
    """head_dim, or the model's width divided among its heads."""
    return hf.optional("head_dim") or even_heads(hf)


def even_heads(hf: Settings) -> int:
    """The model's width divided among its heads."""
    return hf["hidden_size"] // hf["num_attention_heads"]


def kv_heads(hf: Settings) -> int:
    """num_key_value_heads, or as many as there are query heads."""
    return hf.optional("num_key_value_heads") or hf["num_attention_heads"]


def rms_qk_norm(**fixed: Any) -> Callable[[Settings], QKNormConfig]:
    """A QK-norm of the family's kind with the model's own eps."""
    return lambda hf: QKNormConfig(eps=hf["rms_norm_eps"], **fixed)


def layer_qk_norm(switch: str, **fixed: Any) -> Callable[[Settings], QKNormConfig | None]:
    """A LayerNorm of q and k where `switch` is set; torch's LayerNorm multiplies by the gain before it casts."""

    def read(hf: Settings) -> QKNormConfig | None:
        eps = hf["layer_norm_eps"]
        return QKNormConfig(kind="layer", eps=eps, scale_before_cast=True, **fixed) if hf[switch] else None

    return read


def optional(key: str, otherwise: Any = None) -> Callable[[Settings], Any]:
    """A setting that null switches off."""

    def read(hf: Settings) -> Any:
        value = hf.optional(key)
        return otherwise if value is None else value

    return read


def switched_window(hf: Settings) -> int | None:
    """The window, which counts only where use_sliding_window is set."""
    window = hf.optional("sliding_window")
    return window if hf["use_sliding_window"] else None


def sliding_from(hf: Settings) -> tuple[str, ...]:
    """layer_types, or sliding from max_window_layers on."""
    first = hf["max_window_layers"] if switched_window(hf) is not None else hf["num_hidden_layers"]
    hf.read.add("max_window_layers")
    kinds = ("sliding_attention" if i >= first else "full_attention" for i in range(hf["num_hidden_layers"]))
    return tuple(hf.optional("layer_types") or kinds)


def full_every(*keys: str, each: int | None = None, saved: str | None = None) -> Callable[[Settings], tuple[str, ...]]:
    """layer_types, or every n-th layer full and the others sliding.

    Args:
        *keys: where the file may have n; the last one has a default.
        each: n itself, for a family that has no key for it.
        saved: a key under which some versions of transformers wrote n, and none reads it.
    """

    def read(hf: Settings) -> tuple[str, ...]:
        hf.read.update((*keys, saved) if saved else keys)
        if hf.optional("layer_types"):
            return tuple(hf["layer_types"])
        every = each or next((hf.raw[key] for key in keys if key in hf.raw), None) or hf[keys[-1]]
        if saved and hf.raw.get(saved, every) != every:
            raise ConfigError(f"{saved}={shown(hf.raw[saved])}: nothing reads it, and without layer_types n is {every}")
        kinds = (i % every == every - 1 for i in range(hf["num_hidden_layers"]))
        return tuple("full_attention" if full else "sliding_attention" for full in kinds)

    return read


def weights(
    *inside: Mapping[str, Source], embed: str = "embed_tokens", final: str = "norm", layers: str = "layers"
) -> dict[str, Source]:
    """Names of a decoder's weights: Llama's, apart from those given.

    Args:
        *inside: modules of a layer, ours → theirs; norms have no name unless they are given.
        embed: the embedding.
        final: the final norm.
        layers: the list of layers.
    """
    names: dict[str, Source] = {f"attn.{t}_proj": f"self_attn.{t}_proj" for t in "qkvo"}
    names |= {f"mlp.{t}_proj": f"mlp.{t}_proj" for t in ("gate", "up", "down")}
    for given in inside:
        names |= given
    found: dict[str, Source] = {"embed.weight": f"{{p}}{embed}.weight"}
    for leaf in ("weight", "bias"):
        found |= {f"ln_final.{leaf}": f"{{p}}{final}.{leaf}", f"unembed.{leaf}": f"lm_head.{leaf}"}
        for ours, theirs in names.items():
            found[f"blocks.{{i}}.{ours}.{leaf}"] = _in_layer(theirs, leaf, layers)
    return found


def _in_layer(source: Source, leaf: str, layers: str) -> Source:
    """A module's weight or bias, by its name in the whole checkpoint."""
    if isinstance(source, str):
        return f"{{p}}{layers}.{{i}}.{source}.{leaf}"
    return replace(source, name=f"{{p}}{layers}.{{i}}.{source.name}.{leaf}")


def stacked_qkv(name: str) -> dict[str, Source]:
    """All of q, then all of k, then all of v in one projection: views of it."""

    def take(which: int) -> Callable[[Tensor, HookedTransformerConfig], Tensor]:
        def cut(fused: Tensor, cfg: HookedTransformerConfig) -> Tensor:
            kv_width = cfg.n_kv_heads * cfg.d_head
            return fused.split([cfg.n_heads * cfg.d_head, kv_width, kv_width])[which]

        return cut

    return {f"attn.{t}_proj": Part(name, take(which)) for which, t in enumerate("qkv")}


def headwise_qkv(name: str) -> dict[str, Source]:
    """q, k and v of one head after another in one projection: copies, since their rows do not lie together."""

    def take(which: int) -> Callable[[Tensor, HookedTransformerConfig], Tensor]:
        return lambda fused, cfg: fused.unflatten(0, (cfg.n_heads, 3, cfg.d_head))[:, which].flatten(0, 1)

    return {f"attn.{t}_proj": Part(name, take(which)) for which, t in enumerate("qkv")}


def stacked_gate_up(name: str) -> dict[str, Source]:
    """The gate, then the linear branch of the MLP in one projection: views of it."""

    def take(which: int) -> Callable[[Tensor, HookedTransformerConfig], Tensor]:
        return lambda fused, cfg: fused.split(cfg.d_mlp)[which]

    return {f"mlp.{t}_proj": Part(name, take(which)) for which, t in enumerate(("gate", "up"))}


def norm_per_head(name: str) -> PerHead:
    """A list of norms, one for each head."""
    return PerHead(f"{name}.norms.{{h}}")


QK_NORMS: dict[str, Source] = {"attn.q_norm": "self_attn.q_norm", "attn.k_norm": "self_attn.k_norm"}
PRE_NORMS: dict[str, Source] = {"ln1": "input_layernorm", "ln2": "post_attention_layernorm"}
POST_NORMS: dict[str, Source] = {"ln1_post": "post_attention_layernorm", "ln2_post": "post_feedforward_layernorm"}
SANDWICH_NORMS: dict[str, Source] = {
    "ln1": "input_layernorm",
    "ln1_post": "post_attention_layernorm",
    "ln2": "pre_feedforward_layernorm",
    "ln2_post": "post_feedforward_layernorm",
}
SIZES: dict[str, Read] = {
    "d_model": "hidden_size",
    "d_head": head_dim,
    "d_mlp": "intermediate_size",
    "d_vocab": "vocab_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_key_value_heads": kv_heads,
    "n_ctx": "max_position_embeddings",
    "act_fn": activation("hidden_act"),
    "tie_word_embeddings": "tie_word_embeddings",
}
ATTENTION_BIAS: dict[str, Read] = {"attn_bias": "attention_bias", "attn_out_bias": "attention_bias"}
RMS: dict[str, Any] = {"normalization_type": "RMS", "gated_mlp": True}
# torch's LayerNorm multiplies by the gain before it casts.
LAYER_NORM: dict[str, Any] = {"normalization_type": "LN", "norm_scale_before_cast": True}
DEFAULTS: dict[str, Any] = {"hidden_act": "silu", "tie_word_embeddings": False, "rope_theta": 10_000.0}
RMS_SIZES: dict[str, Read] = {**SIZES, "eps": "rms_norm_eps"}
LAYER_NORM_SIZES: dict[str, Read] = {**SIZES, "eps": "layer_norm_eps"}
