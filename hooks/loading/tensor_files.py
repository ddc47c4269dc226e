"""The tensors of a model directory: which safetensors file holds which one, by the index where there is one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hooks.checks import shown
from hooks.errors import ConfigError, WeightError
from hooks.loading.files import check_regular, kind_of, read_json

_WEIGHTS = "model.safetensors"
_INDEX = f"{_WEIGHTS}.index.json"


def read_safetensors(directory: Path) -> tuple[dict[str, Tensor], dict[str, Path]]:
    """Every tensor of a directory, memory-mapped: pages are read when a tensor is used; and the file of each.

    Where there is an index, a tensor comes from the file that the index names, whatever other files hold under its
    name. A tensor that no index places may lie in several files only with the same values.

    Raises:
        WeightError: no weights, a damaged or missing file, or two tensors of one name.
        ConfigError: the index cannot be read.
    """
    placed: dict[str, str] = {}
    if kind_of(directory / _INDEX) is not None:
        placed = _index(directory / _INDEX)
        files = sorted(set(placed.values()))
    elif kind_of(directory / _WEIGHTS) is not None:
        files = [_WEIGHTS]
    else:
        files = sorted(path.name for path in directory.glob("*.safetensors"))
    if not files:
        raise WeightError(_no_safetensors(directory))
    tensors: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    for name in files:
        for key, tensor in _read(directory / name).items():
            if placed.get(key, name) != name:
                continue
            if key in tensors and not torch.equal(tensors[key], tensor):
                raise WeightError(
                    f"{key} is in {source[key]} and in {name} of {directory} with other values, and no index says "
                    "which one counts; remove the file that does not belong to the model"
                )
            tensors[key], source[key] = tensor, name
    missing = sorted(key for key in placed if key not in tensors)
    if missing:
        raise WeightError(
            f"{_INDEX} places {missing[0]} in {placed[missing[0]]}, which does not hold it"
            f"{f' ({len(missing) - 1} more like it)' if len(missing) > 1 else ''}; fetch that file of {directory} again"
        )
    return tensors, {key: directory / name for key, name in source.items()}


def _index(path: Path) -> dict[str, str]:
    """The file of each tensor, as the index has it.

    Raises:
        ConfigError: the index is not of that form, or names a file outside of its directory.
    """
    places: Any = read_json(path).get("weight_map")
    if not isinstance(places, Mapping) or not places:
        raise ConfigError(f"{path} has weight_map={shown(places)}; it must map tensor names to file names")
    for tensor, file in places.items():
        if not isinstance(file, str) or not file or Path(file).name != file or "\0" in file:
            raise ConfigError(
                f"{path} places {shown(tensor)} in {shown(file)}; it must be a file of the same directory"
            )
    return dict(places)


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of one file."""
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        raise WeightError(f"{path} is not a whole safetensors file ({error}); fetch it again") from error


def _no_safetensors(directory: Path) -> str:
    """What to say of a directory without safetensors."""
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt*")):
        return (
            f"{directory} has only pickled weights, which can run code when read; convert them where you trust them: "
            "AutoModelForCausalLM.from_pretrained(…).save_pretrained(directory)"
        )
    return f"{directory} has a config.json and no *.safetensors beside it; fetch the weights"
