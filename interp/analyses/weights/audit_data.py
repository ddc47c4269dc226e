"""What an audit found, as Datasets: handed down to whatever prints, draws or writes it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from hooks import HookedTransformerConfig

DATASETS = ("rotations", "schedules", "layers", "heads")


@dataclass(frozen=True, repr=False)
class AuditData:
    """What a model's settings and weights say.

    Attributes:
        name: the model's.
        cfg: its settings.
        rotations: (rotation, pair): wavelengths, the base's bound, the critical dimension.
        schedules: (rotation, schedule, pair): what each schedule would change.
        layers: (layer, head, distance, dtype): steps, gains, bounds, proofs.
        heads: (layer, head, pair, distance): what each pair can add to a score, and adds on average.
    """

    name: str
    cfg: HookedTransformerConfig
    rotations: xr.Dataset
    schedules: xr.Dataset
    layers: xr.Dataset
    heads: xr.Dataset

    @property
    def datasets(self) -> dict[str, xr.Dataset]:
        """The Datasets by name."""
        return {name: getattr(self, name) for name in DATASETS}

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values: of each variable its dimensions, words and numbers, null where there is none."""
        return {
            "model": self.name,
            "config": self.cfg.to_dict(),
            **{name: _as_json(dataset) for name, dataset in self.datasets.items()},
        }

    def swing(self) -> xr.DataArray:
        """How far the mean score of each head moves over the distances: largest minus smallest of Σ_i mean_score."""
        total = self.heads["mean_score"].sum("pair", skipna=True, min_count=1)
        return (total.max("distance") - total.min("distance")).rename("swing")


def _as_json(dataset: xr.Dataset) -> dict[str, Any]:
    """A Dataset as JSON values."""
    return {
        "description": dataset.attrs["description"],
        "coordinates": {str(name): values.values.tolist() for name, values in dataset.coords.items()},
        "variables": {
            str(name): {"dims": list(values.dims), **values.attrs, "values": _plain(values.values)}
            for name, values in dataset.data_vars.items()
        },
    }


def _plain(values: np.ndarray) -> Any:
    """An array as nested lists, numbers with seven digits."""
    if values.ndim:
        return [_plain(each) for each in values]
    value = values.item()
    if not isinstance(value, float):
        return value
    return float(f"{value:.7g}") if np.isfinite(value) else None
