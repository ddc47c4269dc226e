"""The type that a model computes in and the device that it lives on, from themselves or their names."""

from typing import Any

import torch

from hooks.checks import shown
from hooks.errors import ConfigError

_FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def computing_dtype(value: Any) -> torch.dtype:
    """A torch dtype from itself or its name."""
    found = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    if not isinstance(found, torch.dtype) or found not in _FLOATING:
        raise ConfigError(f"dtype={shown(value)} is no type to compute in; use float32, bfloat16, float16 or float64")
    return found


def device_name(value: Any) -> str:
    """The name of a device; whether this machine has it shows when a model is put there."""
    try:
        if isinstance(value, str | torch.device):
            return str(torch.device(value))
    except RuntimeError:
        pass
    raise ConfigError(f"device={shown(value)} is no device; use cpu, cuda, cuda:1, mps, …")
