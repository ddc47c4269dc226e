"""TransformerLens' ActivationCache with the registry's names: aliases, shorthand, and errors that say what is there."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from transformer_lens.utilities.slice import Slice

from hooks.base.decomposition import DecomposableCache
from hooks.base.registry import HookRegistry
from hooks.errors import HookNameError, MaterializationError
from hooks.memory import free_bytes


class HasRegistry(Protocol):
    """A model whose hook names a registry resolves."""

    registry: HookRegistry


class ActivationCache(DecomposableCache):
    """Cached activations by canonical name, alias (``"hook_q_pre_rope", 3``) or TransformerLens shorthand.

    Attributes:
        position_ids: positions that the model was run with, [batch pos] or [pos]; None where none were given.
    """

    def __init__(
        self,
        cache_dict: Mapping[str, Tensor],
        model: HasRegistry,
        has_batch_dim: bool = True,
        position_ids: Tensor | None = None,
    ):
        super().__init__(dict(cache_dict), model, has_batch_dim=has_batch_dim)
        self.registry, self.position_ids = model.registry, position_ids

    def __getitem__(self, key: str | tuple) -> torch.Tensor:
        """The activation under a name, an alias, or ``(name, layer[, layer_type])``.

        Raises:
            HookNameError: no such hook on the model, or the hook was not cached.
        """
        parts = (key,) if isinstance(key, str) else tuple(key)
        if parts[0] in self.cache_dict:
            return self.cache_dict[parts[0]]
        name, gradient = (parts[0][:-5], "_grad") if parts[0].endswith("_grad") else (parts[0], "")
        canonical = self.registry.canonical(name, *parts[1:]) + gradient
        if canonical not in self.cache_dict:
            raise HookNameError(
                f"{canonical} was not cached: the names_filter left it out; this cache holds {len(self.cache_dict)} "
                f"activations, the first {', '.join(list(self.cache_dict)[:4]) or 'none'}"
            )
        return self.cache_dict[canonical]

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> "ActivationCache":
        """A cache of some rows of the batch; an int drops the batch axis."""
        kept, positions = super().apply_slice_to_batch_dim(batch_slice), self.position_ids
        if positions is not None and positions.ndim == 2 and len(positions) > 1:
            positions = Slice.unwrap(batch_slice).apply(positions, dim=0)
        return ActivationCache(kept.cache_dict, self.model, kept.has_batch_dim, positions)

    def __contains__(self, key: object) -> bool:
        """Whether a name, alias or shorthand is cached."""
        if not isinstance(key, str | tuple):
            return False
        try:
            self[key]
        except HookNameError:
            return False
        return True

    def __repr__(self) -> str:
        held = sum(t.numel() * t.element_size() for t in self.cache_dict.values())
        return f"ActivationCache({len(self.cache_dict)} activations, {held / 2**20:.1f} MiB): {list(self.cache_dict)}"


def check_full_fits(count: int, tokens: Tensor, n_heads: int, dtype: torch.dtype) -> None:
    """Raise MaterializationError when caching `count` full scores and patterns would not fit in free memory."""
    batch, n = tokens.shape
    # One live copy in the pass beside those kept; scores and pattern of a layer both exist while it runs.
    need = (count + 2) * batch * n_heads * n * n * dtype.itemsize
    free = free_bytes(tokens.device)
    if need > free:
        raise MaterializationError(
            f"caching {count} tensors of scores and patterns at {n} tokens takes {need / 2**30:.1f} GiB and "
            f"{free / 2**30:.1f} GiB are free; leave them out with "
            "names_filter=lambda name: not name.endswith(('attn_scores', 'pattern')), or hook "
            "hook_pattern_rows, which passes one block of rows at a time"
        )
