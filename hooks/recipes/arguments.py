"""What recipes are given: numbers, and sets of positions and heads, checked where they come in."""

from collections.abc import Callable, Iterable
from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from hooks.checks import shown
from hooks.errors import ConfigError

_LARGEST = 2**53
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def whole(name: str, value: object, least: int) -> int:
    """An integer that is at least so large."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
        raise ConfigError(f"{name} is {shown(value)}: give an integer ≥ {least}")
    return value


def finite(name: str, value: float) -> float:
    """A finite number."""
    most = torch.finfo(torch.float32).max
    if isinstance(value, bool) or not isinstance(value, int | float) or not -most <= value <= most:
        raise ConfigError(f"{name} is {shown(value)}: give a finite number, as far as float32 reaches")
    return float(value)


def index_set(name: str, values: Iterable[int] | Tensor) -> Int[Tensor, " n"]:
    """A set of integers ≥ 0 as a tensor."""
    array = isinstance(values, Tensor) or len(getattr(values, "shape", (1,))) == 1
    if isinstance(values, str) or not isinstance(values, Iterable) or not array:
        raise ConfigError(f"{name} is {shown(values)}: give a sequence of integers ≥ 0")
    listed = values if isinstance(values, Tensor) else list(values)
    if not isinstance(listed, Tensor):
        for value in listed:
            whole(f"{name} holds a value that", value, 0)
        listed = torch.tensor(listed, dtype=torch.long)
    if listed.ndim != 1 or not len(listed) or listed.dtype not in _INTEGERS or bool((listed < 0).any()):
        raise ConfigError(f"{name} is {shown(values)}: give at least one integer ≥ 0, and nothing else")
    return listed.long()


def heads_by_layer(heads: Iterable[tuple[int, int]]) -> dict[int, Int[Tensor, " n"]]:
    """Heads as (layer, head) pairs, by layer, each once and in order.

    Raises:
        ConfigError: no pairs of integers ≥ 0, or none at all.
    """
    pairs = None if isinstance(heads, str | dict | Tensor) or not isinstance(heads, Iterable) else list(heads)
    if not pairs or any(not isinstance(pair, tuple | list) or len(pair) != 2 for pair in pairs):
        raise ConfigError(f"heads is {shown(heads)}: give (layer, head) pairs, such as [(5, 2), (7, 0)]")
    found: dict[int, set[int]] = {}
    for layer, head in pairs:
        whole("heads holds a layer that", layer, 0)
        found.setdefault(layer, set()).add(whole("heads holds a head that", head, 0))
    return {layer: torch.tensor(sorted(found[layer])) for layer in sorted(found)}


def on_device(values: Tensor) -> Callable[[torch.device], Tensor]:
    """A tensor on the device asked for, copied there once and not for every block of rows."""

    @lru_cache(maxsize=1)
    def copied(device: torch.device) -> Tensor:
        with torch.inference_mode(False):  # a graph may want it later
            return values.to(device)

    return copied
