"""One layer of a capture, in memory or on disk: q and k by the number of steps behind them, v, the constants."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from interp.tensors.constants import LayerConstants
from interp.tensors.selection import Choice, part_of
from interp.tensors.stages import stage_name, steps_before


@dataclass(frozen=True)
class TensorInfo:
    """Shape and type of a tensor in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def n_bytes(self) -> int:
        """Bytes of its data."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()

    @classmethod
    def of(cls, tensor: Tensor) -> "TensorInfo":
        """Of a tensor in memory."""
        return cls(tuple(tensor.shape), tensor.dtype)


class HeldLayer(Protocol):
    """What a capture asks of a layer that it holds."""

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps from projection to score, in order."""
        ...

    @property
    def q(self) -> Mapping[int, Float[Tensor, "pos head d_head"]]:
        """Queries by the number of steps behind them."""
        ...

    @property
    def k(self) -> Mapping[int, Float[Tensor, "pos kv_head d_head"]]:
        """Keys by the number of steps behind them."""
        ...

    @property
    def v(self) -> Float[Tensor, "pos kv_head d_head"] | None:
        """Values, if they are known."""
        ...

    @property
    def constants(self) -> LayerConstants:
        """What scores are made of beside q and k."""
        ...

    def part(self, which: str, done: int, positions: Choice = None, heads: Choice = None) -> Tensor:
        """Some positions and heads of q or k, as `part_of` cuts them; no more is read or computed than it takes."""
        ...

    def infos(self) -> dict[str, TensorInfo]:
        """Shape and type of each tensor by name (q.pre_norm, …, k.final, v); reads none of them."""
        ...

    @property
    def derived(self) -> tuple[str, ...]:
        """Names of those that are computed from others when they are read."""
        ...


@dataclass(frozen=True)
class LayerCapture:
    """q and k of one layer by the number of steps (clip, norm, rope) behind them, and what scores are made of."""

    steps: tuple[str, ...]
    q: dict[int, Float[Tensor, "pos head d_head"]]
    k: dict[int, Float[Tensor, "pos kv_head d_head"]]
    v: Float[Tensor, "pos kv_head d_head"] | None
    constants: LayerConstants

    @classmethod
    def of(cls, steps: tuple[str, ...], tensors: Mapping[str, Tensor], constants: LayerConstants) -> "LayerCapture":
        """A layer from its tensors by name."""
        by_steps: dict[str, dict[int, Tensor]] = {"q": {}, "k": {}}
        for name, tensor in tensors.items():
            which, _, stage = name.partition(".")
            done = steps_before(stage, steps) if stage else None
            if done is not None:
                by_steps[which][done] = tensor
        return cls(steps, by_steps["q"], by_steps["k"], tensors.get("v"), constants)

    @property
    def derived(self) -> tuple[str, ...]:
        """Nothing: everything is there."""
        return ()

    def part(self, which: str, done: int, positions: Choice = None, heads: Choice = None) -> Tensor:
        """Some positions and heads of q or k."""
        return part_of({"q": self.q, "k": self.k}[which][done], positions, heads)

    def infos(self) -> dict[str, TensorInfo]:
        """Shape and type of each tensor by name."""
        found = {}
        for which, tensors in (("q", self.q), ("k", self.k)):
            for done, tensor in sorted(tensors.items()):
                found[f"{which}.{stage_name(done, self.steps)}"] = TensorInfo.of(tensor)
        return found if self.v is None else {**found, "v": TensorInfo.of(self.v)}
