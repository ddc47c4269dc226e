"""float64 where a device has it, and on the CPU where it has none."""

import torch
from torch import Tensor


def float64_device(device: torch.device) -> torch.device:
    """The device itself, or the CPU where it has no float64, as Metal has none."""
    return torch.device("cpu") if device.type == "mps" else device


def to_float64(x: Tensor) -> Tensor:
    """A tensor in float64, on its own device or on the CPU where that has none."""
    return x.to(float64_device(x.device)).double()
