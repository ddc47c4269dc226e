"""Keys and values of the tokens that a model has read, so that the next ones need only themselves.

The tensors lie in transformers' cache layers; positions and padding of every token are kept here, because neither
follows from what those layers hold.

Source: transformers 5.23.0, ``cache_utils.py``.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from hooks.base.inputs import packed_documents, token_positions
from hooks.checks import shown
from hooks.config.transformer import HookedTransformerConfig
from hooks.errors import InputError
from hooks.functional.place import Place
from hooks.functional.rope import inv_freq, length_dependent

# Layers whose update makes new tensors and leaves the old ones as they were.
_NEVER_OVERWRITTEN = (DynamicLayer, DynamicSlidingWindowLayer)


class KeepsKeyValues(Protocol):
    """A model that can go on from what it has read."""

    @property
    def cfg(self) -> HookedTransformerConfig:
        """The architecture."""
        ...

    def empty_key_values(self) -> Cache:
        """Layers of a cache that hold nothing yet."""
        ...


class KeyValueCache:
    """What a model keeps of the tokens it has read: keys and values of every layer, positions and padding.

    Pass it as ``past``, and the model reads the next tokens as if those before stood in front of them. A sliding layer
    keeps the last window − 1 tokens; kv heads are kept as they are, never expanded. Frequencies that depend on the
    length of the input (dynamic, longrope) must be those of the whole in every part: give ``rope_length``.

        past = KeyValueCache(model)
        for part in tokens.split(1000, dim=1):
            logits = model(part, past=past)

    Args:
        model: the native or attached model that will fill it.

    Attributes:
        layers: transformers' cache, one layer for each of the model's.
        rope_length: length of the text to which the frequencies of its keys were adapted; None before the first.

    Raises:
        InputError: it is no model of ours, or attends in both directions.
        AttachError: the model keeps its past in another form.
    """

    def __init__(self, model: KeepsKeyValues):
        if not callable(getattr(model, "empty_key_values", None)):
            raise InputError(f"model={shown(model)}: give the native or attached model that will fill the cache")
        self._model = model
        self.layers = model.empty_key_values()
        self._positions: Int[Tensor, "rows past"] | None = None  # one row where all rows of the batch have the same
        self._real: Bool[Tensor, "batch past"] | None = None
        self._next: Int[Tensor, "rows 1"] | None = None
        self.rope_length: int | None = None
        self._batch = 0
        self._spoilt = False

    def __len__(self) -> int:
        """How many tokens of each row were read, padding included."""
        return 0 if self._positions is None else self._positions.shape[1]

    def __repr__(self) -> str:
        return f"KeyValueCache({self._batch} × {len(self)} tokens, {self.nbytes / 2**20:.1f} MiB)"

    @property
    def positions(self) -> Int[Tensor, "batch past"]:
        """Position of every token that was read."""
        if self._positions is None:
            return torch.empty(0, 0, dtype=torch.long)
        return self._positions.expand(self._batch, -1)

    @property
    def key_mask(self) -> Bool[Tensor, "batch past"] | None:
        """False where a token was padding; None when none was."""
        return self._real

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values that are kept: 2 · batch · tokens · kv heads · head width · itemsize a layer."""
        kept = (getattr(layer, name, None) for layer in self.layers.layers for name in ("keys", "values"))
        return sum(t.numel() * t.element_size() for t in kept if isinstance(t, Tensor))

    @property
    def next_position(self) -> int:
        """The position after the last one, in the row that is farthest."""
        return 0 if self._next is None else int(self._next.max())

    def copy(self) -> "KeyValueCache":
        """A cache that goes on from here by itself; keys and values are shared as long as nothing is added."""
        other = copy.copy(self)
        other.layers = copy.copy(self.layers)
        other.layers.layers = [
            copy.copy(layer) if type(layer) in _NEVER_OVERWRITTEN else copy.deepcopy(layer)
            for layer in self.layers.layers
        ]
        return other

    def following(
        self, tokens: Int[Tensor, "batch pos"], position_ids: Any = None, real: Bool[Tensor, "batch pos"] | None = None
    ) -> Int[Tensor, "batch pos"]:
        """Positions of the next tokens: those given, or counted on from the last token that is not padding.

        Args:
            tokens: give shape and device.
            position_ids: as `hooks.base.inputs.token_positions` takes them.
            real: False where a token is padding.

        Raises:
            InputError: positions that do not fit, or that start a new document.
        """
        positions = token_positions(position_ids, tokens, real)
        if self._next is None:
            if packed_documents(positions, real, masked=real is not None) is not None:
                raise InputError(
                    "position_ids start again: packed documents cannot be kept in a cache; read each by itself"
                )
            return positions
        if position_ids is None:
            counted = positions if real is None else real.long().cumsum(-1) - 1
            return (self._next + counted).clamp(min=0)
        behind = positions < self._next if real is None else (positions < self._next) & real
        if bool(behind.any()) or packed_documents(positions, real, masked=False) is not None:
            raise InputError(
                f"position_ids={shown(position_ids)}: after the {len(self)} tokens of this cache they must rise from "
                f"{self._next.flatten().tolist()} on; packed documents cannot be kept in a cache"
            )
        return positions

    @contextmanager
    def reading(
        self,
        model: KeepsKeyValues,
        positions: Int[Tensor, "batch pos"],
        real: Bool[Tensor, "batch pos"] | None,
        rope_length: int | None = None,
    ) -> Iterator[None]:
        """Take in tokens while the model runs on them; a pass that fails leaves the cache unusable.

        Args:
            model: the one that runs.
            positions: of the new tokens, from `following`.
            real: False where one of them is padding.
            rope_length: length that dynamic and longrope schedules adapt to in this pass; default last position + 1.

        Raises:
            InputError: the cache belongs to another model or batch, holds the rest of a pass that failed, or its keys
                were rotated by frequencies of another length.
        """
        length = int(positions.max()) + 1 if rope_length is None else rope_length
        self._check(model, len(positions), length)
        self._take(positions, real)
        self.rope_length, self._spoilt = length, True
        yield
        self._spoilt = False
        for layer in self.layers.layers:
            _release(layer)

    def extend(
        self,
        layer: int,
        k: Float[Tensor, "batch pos kv_head d_head"],
        v: Float[Tensor, "batch pos kv_head d_head"],
    ) -> tuple[Float[Tensor, "batch key kv_head d_head"], Float[Tensor, "batch key kv_head d_head"], Place]:
        """Keys and values of one layer after those it keeps, and where they and the new queries stand."""
        keys, values = self.layers.update(k.transpose(1, 2), v.transpose(1, 2), layer)
        n_queries, n_keys = k.shape[1], keys.shape[2]
        assert self._positions is not None, "reading() comes first"
        place = Place(
            query_start=n_keys - n_queries,
            key_mask=None if self._real is None else self._real[:, -n_keys:],
            query_positions=self._positions[:, -n_queries:],
            key_positions=self._positions[:, -n_keys:],
        )
        return keys.transpose(1, 2), values.transpose(1, 2), place

    def _check(self, model: KeepsKeyValues, batch: int, length: int) -> None:
        """Refuse a pass whose result would be wrong."""
        if model is not self._model:
            raise InputError("past was made for another model: make one with KeyValueCache(model) for this one")
        if self._spoilt:
            raise InputError("past holds the rest of a pass that failed: start again with a new KeyValueCache(model)")
        if self._batch not in (0, batch):
            raise InputError(f"past holds a batch of {self._batch}, tokens have {batch} rows: give as many")
        if not same_rotation(model.cfg, self.rope_length, length):
            raise InputError(
                f"the keys in past were rotated by frequencies of a text of {self.rope_length} tokens, and those of "
                f"{length} are others: pass rope_length=<tokens in all> from the first part on, or read all at once"
            )

    def _take(self, positions: Tensor, real: Tensor | None) -> None:
        """Append positions and padding of new tokens."""
        self._batch = len(positions)
        if real is not None or self._real is not None:
            before = torch.ones(self._batch, len(self), dtype=torch.bool, device=positions.device)
            now = torch.ones_like(positions, dtype=torch.bool) if real is None else real
            self._real = torch.cat([before if self._real is None else self._real, now], 1)
        # One row, or one expanded to many, is known to be alike without a look at the device.
        rows = positions[:1] if len(positions) == 1 or positions.stride(0) == 0 else positions
        if self._positions is None or self._next is None:
            self._positions, last = rows, rows.new_full((len(rows), 1), -1)
        else:
            most = max(len(rows), len(self._positions))
            rows = rows.expand(most, -1)
            self._positions, last = (
                torch.cat([self._positions.expand(most, -1), rows], 1),
                self._next.expand(most, -1) - 1,
            )
        if real is not None:
            rows = positions.masked_fill(~real, -1)
            last = last.expand(len(rows), -1)
        self._next = torch.maximum(last, rows.amax(1, keepdim=True)) + 1


def reading(
    past: KeyValueCache | None,
    model: KeepsKeyValues,
    positions: Int[Tensor, "batch pos"],
    real: Bool[Tensor, "batch pos"] | None,
    rope_length: int | None = None,
) -> AbstractContextManager[None]:
    """`KeyValueCache.reading` where there is a cache, and nothing where there is none."""
    return nullcontext() if past is None else past.reading(model, positions, real, rope_length)


def layers_of(windows: Sequence[int | None]) -> Cache:
    """An empty cache of one layer for each window; None keeps all tokens."""
    # A query that sees itself alone needs no past; transformers' sliding layer keeps everything at a window of 1.
    layers: list[Any] = [
        DynamicLayer() if window is None else DynamicSlidingWindowLayer(max(window, 2)) for window in windows
    ]
    return Cache(layers=layers)


def same_rotation(cfg: HookedTransformerConfig, before: int | None, after: int) -> bool:
    """Whether every layer's frequencies at one length of the input are those at another; None is no input yet."""
    if before is None or before == after:
        return True
    ropes = {rope for rope in map(cfg.rope_for, range(cfg.n_layers)) if rope is not None and length_dependent(rope)}
    for rope in ropes:
        (one, factor), (other, other_factor) = (inv_freq(rope, cfg.d_head, length) for length in (before, after))
        if factor != other_factor or not torch.equal(one, other):
            return False
    return True


def _release(layer: Any) -> None:
    """Let go of the tokens before a sliding window: what is kept is a view of all that were read with it."""
    for name in ("keys", "values"):
        kept = getattr(layer, name, None)
        if isinstance(kept, Tensor) and kept.untyped_storage().nbytes() > 2 * kept.numel() * kept.element_size():
            setattr(layer, name, kept.clone())
