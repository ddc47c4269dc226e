"""Attention patterns on demand: exact windows anywhere, pooled maps of any size, the keys a query looks at most."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from hooks import checks
from hooks.errors import InputError, MaterializationError, PositionError, StageError
from hooks.memory import free_bytes
from interp.analyses.patterns.head_rows import HeadRows, checked_head
from interp.analyses.patterns.schema import ATTENTION_MAP, ATTENTION_PATTERN, TOP_KEYS
from interp.common.labels import labelled, result_of
from interp.tensors.capture_data import CaptureData, check_capture
from interp.tensors.tokens import TokenChoice, chosen_tokens

_ALL = slice(None)
_MAP_SIZE = 128


def attention_pattern(
    cap: CaptureData, layer: int, head: int, queries: TokenChoice = _ALL, keys: TokenChoice = _ALL
) -> xr.DataArray:
    """Exact attention of some queries to some keys of one head, at any place in a text of any length.

    ``p_ij = exp(s_ij − lse_i)``, with the log-sum-exp of query i over every key that it sees, not only those asked
    for: rows of a window sum to what the head spends there. Scores are float64; time is O(queries · n), memory that
    of the window.

    Args:
        cap: the capture.
        layer: which layer.
        head: which query head.
        queries: an index, a slice, several indices, or a text that occurs once in the capture.
        keys: the same for keys.

    Returns:
        float32 over (query, key), labelled with positions and tokens; 0 where a query does not see a key.

    Raises:
        StageError: the layer was not captured.
        PositionError: no such head, query or key.
        TextError: the text does not occur, or more than once.
        MaterializationError: the window would not fit in free memory.
        InputError: q or k are not finite.
    """
    rows, columns = chosen_tokens(cap, queries, "queries"), chosen_tokens(cap, keys, "keys")
    _check_fits(len(rows), len(columns))
    held = HeadRows.of(cap, layer, head)
    out = np.empty((len(rows), len(columns)), dtype=np.float32)
    for block, _, pattern in held.blocks(rows, columns):
        out[block] = pattern.numpy()
    said = ATTENTION_PATTERN["attention_pattern"].at(head=held.name)
    attrs = {"analysis": "attention_pattern", **said.attrs}
    return xr.DataArray(out, _labels(cap, query=rows, key=columns), said.dims, "attention_pattern", attrs)


def attention_map(
    cap: CaptureData,
    layer: int,
    head: int,
    size: int = _MAP_SIZE,
    reduce: Literal["mean", "max"] = "mean",
    *,
    queries: TokenChoice = _ALL,
    keys: TokenChoice = _ALL,
) -> xr.DataArray:
    """The pattern of one head pooled to a picture of at most size × size cells, at any length.

    Args:
        cap: the capture.
        layer: which layer.
        head: which query head.
        size: cells along each side; fewer where there are fewer tokens.
        reduce: "mean" over the visible pairs of a cell, or their "max".
        queries: which part of the text to draw; ascending, as in `attention_pattern`.
        keys: the same for keys.

    Returns:
        Array over (map_query, map_key), labelled with the middle position of each cell; NaN where no pair is visible.

    Raises:
        StageError: the layer was not captured.
        PositionError: no such head, query or key.
        InputError: an unknown reduction, fewer than one cell, or tokens out of order.
    """
    check_capture(cap)
    size = checks.whole("size", size, at_least=1)
    reduce = checks.choice("reduce", reduce, ("mean", "max"))
    head = checked_head(head, cap.q(layer).shape[1])
    if all(isinstance(part, slice) and part == _ALL for part in (queries, keys)) and size == _MAP_SIZE:
        array = cap.statistics([layer])[f"map_{reduce}"].sel(layer=layer, head=head, drop=True)
    else:
        array = _pooled(cap, layer, head, size, reduce, queries, keys)
    said = ATTENTION_MAP["attention_map"].at(head=f"layer {layer}, head {head}", reduce=reduce)
    return array.rename("attention_map").assign_attrs(analysis="attention_map", **said.attrs)


def top_keys(cap: CaptureData, layer: int, head: int, query: int | str, k: int = 10) -> xr.Dataset:
    """The keys that one query attends to most, with their tokens.

    Args:
        cap: the capture.
        layer: which layer.
        head: which query head.
        query: index of the query, or a text that occurs once: its last token.
        k: how many keys; fewer where the query sees fewer.

    Returns:
        key, token, attention, score and distance over rank (0 is the largest); the query, its token and what its
        learned sink takes in the attributes.

    Raises:
        StageError: the layer was not captured.
        PositionError: no such head or query.
        InputError: k below 1, more than one query, or q or k that are not finite.
    """
    k = checks.whole("k", k, at_least=1)
    row = chosen_tokens(cap, query, "query")
    if isinstance(query, str):
        row = row[-1:]
    if len(row) != 1 or k < 1:
        raise InputError(f"top_keys takes one query and k ≥ 1, not {len(row)} queries and k={k}")
    held = HeadRows.of(cap, layer, head)
    total = held.log_sum_exp(row)
    seen = torch.arange(int(held.see.first[row]), int(held.see.stop[row]))
    scores = held.scores(row, seen)[0]
    best = scores.topk(min(k, len(seen)))
    keys = seen[best.indices]
    distance = held.see.query_position[row] - held.see.key_position[keys]
    index = int(row)
    columns = {
        "key": keys.numpy(),
        "attention": (best.values - total).exp().numpy(),
        "score": best.values.numpy(),
        "distance": distance.numpy(),
        "token": _strings(cap, keys),
    }
    table = xr.Dataset(
        {name: (TOP_KEYS[name].dims, values) for name, values in columns.items()},
        coords={"rank": np.arange(len(keys))},
    )
    table = result_of("top_keys", labelled(table, TOP_KEYS), f"what token {index} attends to in {held.name}")
    return table.assign_attrs(
        query=index,
        query_token=str(_strings(cap, row)[0]),
        attention_to_sink=0.0 if held.spec.sinks is None else float((held.spec.sinks[0].double() - total).exp()),
    )


@dataclass(frozen=True)
class PatternView:
    """Reads like an array over (layer, head, query, key) and computes what is read: ``cap.pattern[3, 5, 100:200]``.

    Whole numbers drop their dimension, as in numpy, and negative ones count from the end; queries and keys may be
    texts that occur once. What comes back is exact, a labelled DataArray. Layers that were not captured raise.
    """

    cap: CaptureData
    __iter__ = None  # iterating would materialise the whole

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Layers of the model, heads, queries, keys."""
        n = len(self.cap.positions)
        return (self.cap.cfg.n_layers, self.cap.cfg.n_heads, n, n)

    def __getitem__(self, index: Any) -> xr.DataArray:
        wanted = index if isinstance(index, tuple) else (index,)
        if len(wanted) > 4 or any(part is None or part is Ellipsis for part in wanted):
            raise PositionError(f"a pattern has four dimensions (layer, head, query, key); {index!r} does not fit them")
        layer, head, queries, keys = (*wanted, *(_ALL,) * (4 - len(wanted)))
        layers, heads = self._layers(layer), _which(head, self.shape[1], "head")
        if not layers or not heads:
            raise PositionError(f"{index!r} selects no head")
        rows, columns = (len(chosen_tokens(self.cap, x, y)) for x, y in ((queries, "queries"), (keys, "keys")))
        _check_fits(len(layers) * len(heads) * rows, columns)
        found = [attention_pattern(self.cap, i, j, queries, keys) for i in layers for j in heads]
        stacked = np.stack(found).reshape(len(layers), len(heads), *found[0].shape)
        coords = {"layer": layers, "head": heads} | dict(found[0].coords)
        array = xr.DataArray(stacked, coords, ("layer", "head", "query", "key"), "attention_pattern", found[0].attrs)
        parts = {"layer": layer, "head": head, "query": queries, "key": keys}
        whole = [name for name, part in parts.items() if isinstance(part, int | np.integer)]
        array = array.isel(dict.fromkeys(whole, 0))
        if array.dims == ("query", "key"):
            return array
        del array.attrs["analysis"]  # a figure shows one head's window
        return array.assign_attrs(description="attention of the queries to the keys")

    def __repr__(self) -> str:
        return f"PatternView(layer, head, query, key: {' × '.join(f'{n:,}' for n in self.shape)}; computed when read)"

    def _layers(self, layer: Any) -> list[int]:
        """The layers meant: all of those captured for a bare slice, else every one named, captured or not."""
        if isinstance(layer, slice) and layer == _ALL:
            return list(self.cap.layers)
        layers = _which(layer, self.shape[0], "layer")
        missing = [i for i in layers if i not in self.cap.layers]
        if missing:
            raise StageError(f"layer {missing[0]} is not in this capture; it holds {list(self.cap.layers)}")
        return layers


def _which(index: Any, n: int, what: str) -> list[int]:
    """Indices along a dimension of n, by index, slice or several indices."""
    try:
        if isinstance(index, slice):
            return list(range(n))[index]
        several = np.atleast_1d(np.asarray(index))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} {checks.shown(index)}: give an index, a slice or a list of indices") from error
    if several.ndim != 1 or (several.size and not np.issubdtype(several.dtype, np.integer)):
        raise InputError(f"{what} {index!r}: give an index, a slice or a list of indices")
    outside = [int(i) for i in several if not -n <= i < n]
    if outside:
        raise PositionError(f"no {what} {outside[0]}: there are {n}, 0 to {n - 1}")
    return [int(i) % n for i in several]


def _pooled(
    cap: CaptureData, layer: int, head: int, size: int, reduce: str, queries: TokenChoice, keys: TokenChoice
) -> xr.DataArray:
    """The pooled map of a part of the pattern, one block of rows at a time."""
    rows, columns = chosen_tokens(cap, queries, "queries"), chosen_tokens(cap, keys, "keys")
    for name, chosen in (("queries", rows), ("keys", columns)):
        if not len(chosen) or bool((chosen.diff() <= 0).any()):
            raise InputError(f"{name}: a map needs at least one token, each once and in order")
    held = HeadRows.of(cap, layer, head)
    row_bin, column_bin = (torch.arange(len(x)) * min(size, len(x)) // len(x) for x in (rows, columns))
    shape = int(row_bin[-1]) + 1, int(column_bin[-1]) + 1
    pooled, count = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.int64)
    for block, scores, pattern in held.blocks(rows, columns):
        bins, height = row_bin[block], len(scores)
        if reduce == "mean":
            cells = torch.zeros(height, shape[1], dtype=torch.float64).index_add_(1, column_bin, pattern)
            pooled.index_add_(0, bins, cells)
        else:
            cells = torch.zeros(height, shape[1], dtype=torch.float64)
            cells.scatter_reduce_(1, column_bin.expand_as(pattern), pattern, "amax")
            pooled.scatter_reduce_(0, bins[:, None].expand_as(cells), cells, "amax")
        visible = torch.zeros(height, shape[1], dtype=torch.int64)
        count.index_add_(0, bins, visible.index_add_(1, column_bin, (scores > -torch.inf).long()))
    values = torch.where(count > 0, pooled / count if reduce == "mean" else pooled, torch.nan)
    middles = {
        name: _middles(cap.labels[chosen], bins)
        for name, chosen, bins in (("map_query", rows, row_bin), ("map_key", columns, column_bin))
    }
    return xr.DataArray(values.numpy(), middles, ("map_query", "map_key"))


def _middles(labels: Int[Tensor, " chosen"], bins: Int[Tensor, " chosen"]) -> np.ndarray:
    """Middle of each bin."""
    first = torch.searchsorted(bins, torch.arange(int(bins[-1]) + 1))
    last = torch.cat([first[1:], torch.tensor([len(bins)])]) - 1
    return ((labels[first] + labels[last]).double() / 2).numpy()


def _labels(cap: CaptureData, **chosen: Int[Tensor, " chosen"]) -> dict[str, tuple[str, Any]]:
    """Coordinates: position (in a row of several documents the index) and token of every chosen query and key."""
    labels: dict[str, tuple[str, Any]] = {}
    for name, indices in chosen.items():
        labels[name] = (name, cap.labels[indices].numpy())
        labels[f"{name}_token"] = (name, _strings(cap, indices))
    return labels


def _strings(cap: CaptureData, indices: Int[Tensor, " chosen"] | Sequence[int]) -> np.ndarray:
    """Tokens as strings that any table takes (half a surrogate pair is escaped); empty ones where there are none."""
    strings = [cap.str_tokens[int(i)] if cap.str_tokens else "" for i in indices]
    return np.array([s.encode("utf-8", "backslashreplace").decode() for s in strings], dtype=object)


def _check_fits(rows: int, columns: int) -> None:
    """Raise MaterializationError when a float32 window would not fit in free memory."""
    needed, free = 4 * rows * columns, free_bytes()
    if needed > free:
        raise MaterializationError(
            f"a window of {rows:,} rows × {columns:,} keys needs {needed:,} bytes and {free:,} are free: choose fewer "
            "queries or keys, or look at the whole pooled, with attention_map(cap, layer, head, size=…)"
        )
