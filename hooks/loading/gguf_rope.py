"""The rotation of a GGUF file, from its keys and from the tensors that hold divisors of the frequencies.

Source: llama.cpp, ``src/llama-model.cpp`` (an absent rope.scaling.type is "linear", a factor of 0 none) and
``convert_hf_to_gguf.py`` (Llama 3's rope_freqs, Phi-3's rope_factors_long and rope_factors_short).
"""

import math
from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np
from jaxtyping import Float

from hooks.checks import choice, number, shown, whole
from hooks.errors import ConfigError, WeightError
from hooks.loading.gguf_header import StoredTensor

ROPE_KEYS = frozenset(
    {
        "rope.dimension_count",
        "rope.scale_linear",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.attn_factor",
        "rope.scaling.finetuned",  # a note: llama.cpp prints it
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
    }
)
ROPE_TENSORS = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})
_LLAMA3_BANDS = (1.0, 4.0)  # low_freq_factor, high_freq_factor of every Llama 3
_SAME = 1e-4  # divisors are stored in float32


def decimal(name: str, value: Any) -> float:
    """A number that the file has in float32: its shortest decimal is what was written."""
    return float(str(np.float32(number(name, value, error=ConfigError))))


def rope_settings(
    own: Mapping[str, Any], tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]
) -> dict[str, Any]:
    """What config.json would say of the rotation, its base and width apart.

    Args:
        own: the file's keys, without the architecture's prefix.
        tensors: its tensors.
        config: what is known of its config.json so far.

    Raises:
        ConfigError: the schedule is unknown, or two are given at once.
        WeightError: divisors that cannot be.
    """
    kind, factor = _scaling(own)
    attention_factor = decimal("rope.scaling.attn_factor", own.get("rope.scaling.attn_factor", 1.0))
    divided = ROPE_TENSORS & tensors.keys()
    if divided and kind in ("linear", "yarn"):
        raise ConfigError(f"the GGUF file scales its rotation twice: {kind} by {factor}, and {', '.join(divided)}")
    if "rope_freqs.weight" in divided:
        return {"rope_scaling": _divided(_divisors(tensors["rope_freqs.weight"]), config)}
    if divided:
        return _longrope(own, tensors, attention_factor, config)
    if kind == "longrope":
        raise ConfigError("rope.scaling.type='longrope' in the GGUF file, which has no rope_factors_long.weight")
    if attention_factor != 1.0:
        raise ConfigError(f"rope.scaling.attn_factor={attention_factor} in the GGUF file: not known beside {kind}")
    if kind == "none":
        return {}
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        trained = own.get("rope.scaling.original_context_length")
        scaling |= {} if trained is None else {"original_max_position_embeddings": trained}
        for name in ("beta_fast", "beta_slow"):
            key = f"rope.scaling.yarn_{name}"
            scaling |= {name: decimal(key, own[key])} if key in own else {}
    return {"rope_scaling": scaling}


def _scaling(own: Mapping[str, Any]) -> tuple[str, float | None]:
    """The schedule that the file names, and its factor; without a factor none is meant."""
    key = next((key for key in ("rope.scaling.factor", "rope.scale_linear") if key in own), None)
    factor = None if key is None else decimal(key, own[key]) or None
    kind = choice(
        "rope.scaling.type",
        own.get("rope.scaling.type", "none" if factor is None else "linear"),
        ("none", "linear", "yarn", "longrope"),
        error=ConfigError,
    )
    if kind in ("linear", "yarn") and factor is None:
        raise ConfigError(f"rope.scaling.type={kind!r} in the GGUF file, which has no rope.scaling.factor")
    return kind, factor


def _divisors(tensor: StoredTensor) -> Float[np.ndarray, " pair"]:
    """The values of a tensor of divisors."""
    if len(tensor.shape) != 1 or tensor.kind not in (
        gguf.GGMLQuantizationType.F32,
        gguf.GGMLQuantizationType.F16,
    ):
        raise WeightError(f"{tensor.name} has shape {tensor.shape} and type {tensor.kind.name}, not a number a pair")
    values = gguf.dequantize(tensor.data, tensor.kind).astype(np.float64)
    if not (np.isfinite(values) & (values > 0)).all():
        raise WeightError(f"{tensor.name} has values that are not above 0; download the file again")
    return values


def _divided(divisors: Float[np.ndarray, " pair"], config: Mapping[str, Any]) -> dict[str, Any]:
    """Llama 3's schedule where its formula gives these divisors, else a schedule of these divisors.

    1/d_i = (1 − m_i)/s + m_i, m_i = (L0·f_i/2π − low)/(high − low): one pair between the bands gives L0.
    """
    low, high = _LLAMA3_BANDS
    factor = float(divisors.max())
    theta = config.get("rope_theta", 10_000.0)  # llama.cpp's own default
    frequencies = theta ** (-np.arange(len(divisors)) / len(divisors))
    if factor > 1 + _SAME:
        mixed = (1 / divisors - 1 / factor) / (1 - 1 / factor)
        between = (mixed > 1e-3) & (mixed < 1 - 1e-3)
        lengths = (low + mixed * (high - low)) * 2 * math.pi / frequencies
        trained = round(float(np.median(lengths[between]))) if between.any() else 8192
        share = np.clip((trained * frequencies / (2 * math.pi) - low) / (high - low), 0, 1)
        if np.allclose(1 / ((1 - share) / factor + share), divisors, rtol=_SAME, atol=0):
            bands = {"low_freq_factor": low, "high_freq_factor": high, "original_max_position_embeddings": trained}
            return {"rope_type": "llama3", "factor": float(str(np.float32(factor))), **bands}
    values = divisors.tolist()
    length = whole("context_length", config["max_position_embeddings"], at_least=2, error=ConfigError)
    return {
        **{"rope_type": "longrope", "short_factor": values, "long_factor": values},
        **{"original_max_position_embeddings": length, "attention_factor": 1.0},
    }


def _longrope(
    own: Mapping[str, Any],
    tensors: Mapping[str, StoredTensor],
    attention_factor: float,
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """Phi-3's schedule: divisors for short and for long texts."""
    missing = [name for name in ("rope_factors_long.weight", "rope_factors_short.weight") if name not in tensors]
    trained = own.get("rope.scaling.original_context_length")
    if missing or trained is None:
        lacks = missing[0] if missing else "rope.scaling.original_context_length"
        raise ConfigError(f"the GGUF file has divisors for long or short texts and lacks {lacks}")
    trained = whole("rope.scaling.original_context_length", trained, at_least=2, error=ConfigError)
    scaling: dict[str, Any] = {"rope_type": "longrope"}
    for name in ("short", "long"):
        scaling[f"{name}_factor"] = _divisors(tensors[f"rope_factors_{name}.weight"]).tolist()
    stretch = config["max_position_embeddings"] / trained
    formula = math.sqrt(1 + math.log(stretch) / math.log(trained)) if stretch > 1 else 1.0
    if abs(attention_factor - formula) > 1e-5:
        scaling["attention_factor"] = attention_factor
    return {"rope_scaling": scaling, "original_max_position_embeddings": trained}


def rotated_share(own: Mapping[str, Any], head_dim: int, *, partial: bool) -> dict[str, Any]:
    """The share of a head that rotates, for a family whose heads may rotate in part.

    Raises:
        ConfigError: a part of each head rotates, in a family that rotates whole ones.
    """
    width = own.get("rope.dimension_count", head_dim)
    if width == head_dim and not partial:
        return {}
    if not partial or width > head_dim or width % 2:
        raise ConfigError(f"rope.dimension_count={shown(width)} in the GGUF file, whose heads have {head_dim} features")
    # The width is the share's product with head_dim, cut off: half a feature more keeps it from being cut too far.
    return {"partial_rotary_factor": 1.0 if width == head_dim else (width + 0.5) / head_dim}
