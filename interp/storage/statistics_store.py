"""Statistics kept beside a capture: one file for each layer and choice of settings, reused by every later process."""

import hashlib
import json
import re
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from hooks.errors import CaptureDamagedError, CaptureError, CaptureWarning
from interp.common.files import TEMPORARY, remove_file
from interp.common.schema import digest
from interp.measure.schema import VARIABLES
from interp.storage.own_files import is_begun
from interp.storage.tensor_files import MARK, read_header, read_note, read_tensor, write_tensors

DIRECTORY = "statistics"
# Statistics of another version, or of variables described otherwise, are not reused. Count up when a number changes
# its meaning while its description stays.
VERSION = 1
_STALE_SECONDS = 3600
_NAME = re.compile(r"layer_\d{3,6}_[0-9a-f]{16}\.safetensors", re.ASCII)
_NOTED = ["key", "variables", "attrs", "sha256", "signature"]


class StatisticsStore:
    """The ``statistics`` directory of a capture.

    Args:
        directory: the capture's.
        layers: SHA-256 of the file of each layer, so that statistics never outlive the tensors they were made from.
    """

    def __init__(self, directory: Path, layers: Mapping[int, str]):
        self._directory, self._layers = directory / DIRECTORY, layers
        self._writable = True

    def load(self, layer: int, settings: Mapping[str, Any]) -> xr.Dataset | None:
        """The statistics of a layer under these settings, if they were kept and are whole."""
        path, key = self._place(layer, settings)
        if not path.is_file():
            return None
        try:
            return read_dataset(path, key)
        except CaptureError as error:
            warnings.warn(f"{error}; computing them again", CaptureWarning, stacklevel=3)
            return None

    def save(self, layer: int, settings: Mapping[str, Any], dataset: xr.Dataset) -> None:
        """Keep the statistics of a layer; where that cannot be, say so once."""
        if not self._writable:
            return
        path, key = self._place(layer, settings)
        try:
            path.parent.mkdir(exist_ok=True)
            self._remove_stale()
            write_dataset(path, dataset, key)
        except OSError as error:
            self._writable = False
            warnings.warn(
                f"statistics are not kept beside the capture ({error.strerror or error}); they stay in memory",
                CaptureWarning,
                stacklevel=3,
            )

    def _remove_stale(self) -> None:
        """Delete what a killed process was writing; several may write at once, so only what is old."""
        for left in self._directory.glob(TEMPORARY):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                remove_file(left, is_begun)

    def damaged(self) -> list[str]:
        """Every kept file that is not what it was, in words; reads all of them."""
        problems = []
        for path in sorted(self._directory.glob("*.safetensors")):
            if not _NAME.fullmatch(path.name):
                continue  # somebody's own
            try:
                read_dataset(path)
            except CaptureError as error:
                problems.append(str(error))
        return problems

    def _place(self, layer: int, settings: Mapping[str, Any]) -> tuple[Path, str]:
        """File and full key of a layer's statistics under some settings."""
        about = {"version": VERSION, "schema": digest(VARIABLES), "layer": layer, "tensors": self._layers[layer]}
        key = json.dumps({**about, **settings}, sort_keys=True)
        short = hashlib.sha256(key.encode()).hexdigest()[:16]
        return self._directory / f"layer_{layer:03d}_{short}.safetensors", key


def write_dataset(path: Path, dataset: xr.Dataset, key: str = "") -> None:
    """Write a Dataset of numbers, booleans and texts to one safetensors file: tensors as data, the rest as JSON.

    Raises:
        OutputError: something stands there that is none of ours.
        OSError: it cannot be written.
        TypeError: an attribute is not JSON, or a variable of a type that is neither number, boolean nor text.
    """
    tensors, variables = {}, []
    for name, variable in dataset.variables.items():
        values = variable.values
        texts = values.tolist() if values.dtype.kind == "U" else None
        if texts is None:
            tensors[str(name)] = torch.from_numpy(np.array(values, order="C"))
        about = {"name": name, "dims": variable.dims, "coord": name in dataset.coords, "attrs": variable.attrs}
        variables.append({**about, "dtype": values.dtype.str, "texts": texts})
    note = {"key": key, "variables": variables, "attrs": dataset.attrs, "sha256": _digest(tensors)}
    text = json.dumps({**note, "signature": _signature(note)})
    write_tensors(path, tensors, text, kind="statistics", ours=is_statistics)


def is_statistics(path: Path) -> bool:
    """Whether `write_dataset` wrote a file, this version's or one without the mark; it need not be whole."""
    found = read_header(path)
    if found is None:
        return False
    try:
        return found[2].get(MARK) == "statistics" or list(json.loads(found[2]["note"])) == _NOTED
    except (KeyError, TypeError, ValueError, RecursionError):
        return False


def read_dataset(path: Path, key: str | None = None) -> xr.Dataset:
    """Read what `write_dataset` wrote, bit for bit.

    Raises:
        CaptureDamagedError: the file is not whole, changed since, or kept under another key.
        CaptureError: it may not be read.
    """
    try:
        note = json.loads(read_note(path))
        signature = note.pop("signature")
        names = [about["name"] for about in note["variables"] if about["texts"] is None]
        tensors = {name: read_tensor(path, name) for name in names}
        if signature != _signature(note) or note["sha256"] != _digest(tensors) or key not in (None, note["key"]):
            raise CaptureDamagedError(f"{path} was changed after it was written")
        return _dataset(note, tensors)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise CaptureDamagedError(f"{path} does not hold statistics ({type(error).__name__})") from None


def _dataset(note: dict[str, Any], tensors: dict[str, torch.Tensor]) -> xr.Dataset:
    """The Dataset of a note and its tensors."""
    data, coords = {}, {}
    for about in note["variables"]:
        dtype, texts = np.dtype(about["dtype"]), about["texts"]
        values = tensors[about["name"]].numpy() if texts is None else np.array(texts, dtype=dtype)
        variable = xr.Variable(tuple(about["dims"]), values.astype(dtype, copy=False), about["attrs"])
        (coords if about["coord"] else data)[about["name"]] = variable
    return xr.Dataset(data, coords, note["attrs"])


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of all values, by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _signature(note: dict[str, Any]) -> str:
    """SHA-256 of everything that is not a tensor."""
    return hashlib.sha256(json.dumps(note).encode()).hexdigest()
