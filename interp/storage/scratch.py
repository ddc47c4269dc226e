"""Tensors that were computed once, kept in memory for whoever reads them next, within a bound."""

import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock

import torch
from torch import Tensor

from interp.tensors.layers import TensorInfo

_MOST_BYTES, _FEWEST_BYTES = 512 * 2**20, 2**20  # of all, of one
_MOST_FILES = 16


class Scratch:
    """Keeps what was computed last. Each reader gets a mapping of its own, so that changing it changes no other's.

    Where the system has no files in memory (Linux has), nothing is kept.

    Args:
        most_bytes: what is kept at most; a tensor larger than that never is.
        fewest_bytes: a tensor smaller than this is computed anew as quickly.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES, fewest_bytes: int = _FEWEST_BYTES):
        self._most_bytes, self._fewest_bytes, self._lock = most_bytes, fewest_bytes, Lock()
        self._kept: OrderedDict[Hashable, _FileInMemory] = OrderedDict()

    def find(self, key: Hashable) -> Tensor | None:
        """The tensor of this key, if it is kept."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key].mapped()

    def make(self, key: Hashable, info: TensorInfo, fill: Callable[[Tensor], None]) -> Tensor:
        """The tensor that a function fills, kept if it can be."""
        wanted = sys.platform == "linux" and self._fewest_bytes <= info.n_bytes <= self._most_bytes
        if not wanted:
            out = torch.empty(info.shape, dtype=info.dtype)
            fill(out)
            return out
        file = _FileInMemory(info)
        fill(file.mapped(shared=True))
        with self._lock:
            self._kept[key] = file
            while len(self._kept) > _MOST_FILES or sum(f.info.n_bytes for f in self._kept.values()) > self._most_bytes:
                self._kept.popitem(last=False)
        return file.mapped()


class _FileInMemory:
    """A file that no directory names, of a tensor's size; its memory is freed with it and the last mapping."""

    def __init__(self, info: TensorInfo):
        self.info, self._handle = info, os.memfd_create("ropescope")
        os.ftruncate(self._handle, info.n_bytes)

    def mapped(self, *, shared: bool = False) -> Tensor:
        """Its bytes as a tensor: shared, or those of now for oneself."""
        place, size = f"/proc/self/fd/{self._handle}", torch.Size(self.info.shape).numel()
        return torch.from_file(place, shared=shared, size=size, dtype=self.info.dtype).view(self.info.shape)

    def __del__(self) -> None:
        os.close(self._handle)
