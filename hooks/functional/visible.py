"""Which keys each query sees under an AttentionSpec: as cells, as runs, as a mask."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hooks.config.attention_spec import AttentionSpec
from hooks.functional.place import Place

_NO_END = torch.iinfo(torch.int64).max


class RowBlock(NamedTuple):
    """A run of query rows and the run of keys that at least one of them may see."""

    rows: slice
    keys: slice


def visible_keys(
    spec: AttentionSpec,
    query_index: Int[Tensor, " query"],
    key_index: Int[Tensor, " key"],
    key_mask: Bool[Tensor, "batch key"] | None = None,
    documents: Int[Tensor, "*batch document"] | None = None,
) -> Bool[Tensor, "*batch query key"]:
    """Which keys each query may see: ``j ≤ i`` when causal, ``|i − j| < window``, of its document, and not padding.

    Args:
        spec: The attention; only ``causal`` and ``window`` matter here.
        query_index: Indices of the queries in the sequence.
        key_index: Indices of the keys.
        key_mask: True where a key is real, for the same keys as ``key_index``.
        documents: Indices at which documents begin, as `AttentionSpec.seen` takes them.

    Returns:
        True where visible, with a leading batch axis only when ``key_mask`` is given or ``documents`` has one.
    """
    # The keys of key_index are there, so no end cuts a run off.
    first, stop = spec.seen(query_index, _NO_END, documents)
    visible = (key_index >= first[..., None]).logical_and_(key_index < stop[..., None])
    return visible if key_mask is None else visible & key_mask[:, None, :]


def row_blocks(
    spec: AttentionSpec,
    n_queries: int,
    n_keys: int,
    height: int,
    query_start: int = 0,
    documents: Int[Tensor, "*batch document"] | None = None,
) -> Iterator[RowBlock]:
    """Cut the queries into runs of ``height`` rows, each with the keys it may see (never fewer than one)."""
    start = torch.arange(0, n_queries, height, device="cpu")
    stop = (start + height).clamp_max(n_queries)
    # Runs only move on from row to row: a block's keys begin with its first row's and end with its last row's.
    low, _ = spec.seen(query_start + start, n_keys, documents)
    _, high = spec.seen(query_start + stop - 1, n_keys, documents)
    low, high = low.view(-1, len(start)).amin(0).clamp_max(n_keys - 1), high.view(-1, len(start)).amax(0)
    edges = (start, stop, low, torch.maximum(high, low + 1))
    for top, bottom, left, right in zip(*(edge.tolist() for edge in edges), strict=True):
        yield RowBlock(slice(top, bottom), slice(left, right))


def additive_mask(
    spec: AttentionSpec,
    block: RowBlock,
    place: Place,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor | None:
    """0 where visible and −inf elsewhere, to add to [batch head row key]; None when everything is visible."""
    first, stop = (place.query_start + edge for edge in (block.rows.start, block.rows.stop))
    key_mask, documents = place.key_mask, place.documents
    if key_mask is None and documents is None and _whole(spec, first, stop, block.keys):
        return None
    visible = visible_keys(
        spec,
        torch.arange(first, stop, device=device),
        torch.arange(block.keys.start, block.keys.stop, device=device),
        None if key_mask is None else key_mask[:, block.keys],
        documents,
    )
    # Only the CPU is asked whether padding hides something here: a device would have to be waited for.
    if visible.is_cpu and bool(visible.all()):
        return None
    # Adding a float mask is 30 times faster than masked_fill_ with a mask broadcast over heads.
    mask = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, -torch.inf)
    return mask if mask.ndim == 2 else mask[:, None]


def _whole(spec: AttentionSpec, first: int, stop: int, keys: slice) -> bool:
    """Whether the queries of these indices all see all of these keys, from plain numbers."""
    # Runs only move on from row to row: the last row's begins last, the first row's ends first.
    low, high = spec.seen(torch.tensor([first, stop - 1], device="cpu"), _NO_END)
    return int(low[1]) <= keys.start and keys.stop <= int(high[0])
