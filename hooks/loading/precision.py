"""The type that a checkpoint's weights are kept in: what its config says, or the widest that it holds."""

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from hooks.checks import shown
from hooks.errors import ConfigError, WeightError

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_BY_NAME = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATING}


def widest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The narrowest type that holds every value of all of them; float32 where none is a type to compute in."""
    known = [dtype for dtype in dtypes if dtype in FLOATING]
    return reduce(torch.promote_types, known) if known else torch.float32


def stored_dtype(hf: Mapping[str, Any], nested: str | None, weights: Mapping[str, Tensor], where: str) -> torch.dtype:
    """The type that a checkpoint's weights are to have when nobody asks for one.

    Args:
        hf: its config.json.
        nested: the key under which the language model's own config lies, if it does.
        weights: its tensors.
        where: what errors call it.

    Raises:
        ConfigError: the config names a type that nothing here computes in.
        WeightError: it names a narrower one than float64, in which there are tensors.
    """
    inner = (hf.get(nested) if nested else None) or {}
    found = [places[key] for places in (inner, hf) for key in ("dtype", "torch_dtype") if places.get(key) is not None]
    held = widest(tensor.dtype for tensor in weights.values())
    if not found or found[0] == "auto":
        return held
    name = str(found[0]).removeprefix("torch.")
    if name not in _BY_NAME:
        raise ConfigError(
            f"the config of {where} has dtype={shown(found[0])}; it must be one of {', '.join(_BY_NAME)} (a quantised "
            "checkpoint has to be dequantised first)"
        )
    if held == torch.float64 and _BY_NAME[name] != torch.float64:
        doubles = [key for key, tensor in weights.items() if tensor.dtype == torch.float64]
        raise WeightError(
            f"{doubles[0]} in {where} is float64 and the config says {name}: pass dtype='float64' to keep its digits, "
            f"or dtype={name!r} to drop them"
        )
    return _BY_NAME[name]
