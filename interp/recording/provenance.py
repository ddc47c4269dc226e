"""Where a result came from: model, text, settings, cited constants and versions, as plain strings."""

import hashlib
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from hooks import HookedTransformer, HookedTransformerConfig
from hooks.attached.transformer import AttachedTransformer
from interp.texts.texts import Text

STREAMED = "streamed "  # the hash of streamed weights begins so
_PACKAGES = ("ropescope", "torch", "transformers", "transformer_lens")


def describe(
    model: HookedTransformer | AttachedTransformer,
    text: Text | None,
    what: str,
    tokens: Int[Tensor, " pos"],
    str_tokens: list[str],
    settings: dict[str, str],
) -> dict[str, dict[str, str]]:
    """Sections of the provenance, each a table of plain strings."""
    text_section = {
        "read": what,
        "tokens": f"{len(tokens):,}",
        "token 0": f"{str_tokens[0]!r} (id {int(tokens[0])})",
        "SHA-256 of the token ids": token_hash(tokens),
    }
    if text is not None:
        text_section["SHA-256 of the text"] = text.sha256
    return {
        "model": _model_section(model.cfg),
        "text": text_section,
        "settings": {
            **settings,
            "dtype": str(model.dtype).removeprefix("torch."),
            "threads": str(torch.get_num_threads()),
        },
        "constants and sources": {str(key): str(value) for key, value in model.cfg.provenance.items()},
        "versions": versions(),
    }


def token_hash(tokens: Int[Tensor, " pos"]) -> str:
    """SHA-256 of token ids, as little-endian 64-bit numbers."""
    return hashlib.sha256(tokens.cpu().numpy().astype("<i8").tobytes()).hexdigest()


def weight_hash(model: HookedTransformer | AttachedTransformer) -> str:
    """SHA-256 over the names, types, shapes and bytes of a model's parameters, shared ones once.

    Of a streamed model, whose weights are read as they are used, it is over what tells their files from others. What an
    attached model does is not all in our config, so its own is part of it, and so are its buffers.
    """
    stream = getattr(model, "stream", None)
    if stream is not None:
        return f"{STREAMED}{stream.stamp}"
    digest = hashlib.sha256()
    tensors = dict(model.named_parameters())
    original: Any = getattr(model, "original_model", None)
    if original is not None:
        # Rotary frequencies may change as it runs, and follow from the config.
        own = {name: x for name, x in original.named_buffers() if not name.endswith("inv_freq")}
        tensors |= {f"buffer {name}": x for name, x in own.items()}
        digest.update(json.dumps(_lasting(original.config.to_dict()), sort_keys=True, default=str).encode())
    for name, parameter in sorted(tensors.items()):
        weight = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _lasting(config: Any) -> Any:
    """What a transformers config says of the model: not where it lies, nor what runs it."""
    if not isinstance(config, dict):
        return config
    aside = {"transformers_version", "dtype", "torch_dtype", "attn_implementation"}
    return {key: _lasting(x) for key, x in config.items() if not str(key).startswith("_") and key not in aside}


def environment(model: HookedTransformer | AttachedTransformer) -> dict[str, str | int]:
    """What the last bits of a result depend on, beside the model and the text."""
    device = model.device.type
    return {
        "ropescope": versions()["ropescope"],
        "torch": torch.__version__,
        **({"transformers": versions()["transformers"]} if hasattr(model, "original_model") else {}),
        "threads": torch.get_num_threads(),
        "device": device,
        "processor": _processor(model.device),
    }


def _processor(device: torch.device) -> str:
    """What computes: the instruction set of a CPU, the name of a GPU; nothing where torch does not say."""
    if device.type == "cpu":
        return torch.backends.cpu.get_cpu_capability()
    return torch.cuda.get_device_name(device) if device.type == "cuda" and torch.cuda.is_available() else ""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a number depends on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found | {"torch": torch.__version__}  # which build it is, too: 2.13.0+cu130


def _model_section(cfg: HookedTransformerConfig) -> dict[str, str]:
    """The settings of a model that decide what its attention does."""
    full = [layer for layer in range(cfg.n_layers) if cfg.window(layer) is None]
    every = [cfg.window(layer) for layer in range(cfg.n_layers)]
    windows = sorted({window for window in every if window is not None})
    section = {
        "name": str(cfg.model_name),
        "size": f"{cfg.n_layers} layers, {cfg.n_heads} heads, {cfg.n_kv_heads} kv heads, d_head {cfg.d_head}",
        "layers": f"{len(full)} full, {cfg.n_layers - len(full)} sliding"
        + (f" (window {', '.join(map(str, windows))})" if windows else ""),
        "score scale": f"{cfg.scale:.6g}",
        "trained length": f"{cfg.n_ctx:,} tokens",
        "QK-norm": str(cfg.qk_norm) if cfg.qk_norm is not None else "none",
    }
    ropes = {cfg.layer_type(layer): cfg.rope_for(layer) for layer in range(cfg.n_layers)}
    for layer_type, rope in ropes.items():
        section[f"RoPE, {layer_type}"] = _only_set(rope)
    if cfg.clip_qkv is not None:
        section["clip_qkv"] = f"{cfg.clip_qkv:g} ({cfg.clip_position})"
    if cfg.softcap is not None:
        section["soft-cap"] = f"{cfg.softcap:g}"
    return section


def _only_set(rope: object) -> str:
    """A RopeConfig by the fields that are set."""
    if rope is None:
        return "no rotation"
    values = rope.to_dict()  # pyright: ignore[reportAttributeAccessIssue]
    return ", ".join(f"{k} {v}" for k, v in values.items() if v is not None and v is not False)
