"""What many texts say together: means with their intervals, heads that differ between texts, two corpora compared."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import xarray as xr

from hooks.errors import InputError
from interp.common.schema import Variable
from interp.corpus.analyses import ANALYSES
from interp.corpus.kept import MERGE, Statistic, lined_up
from interp.corpus.reading import Reader
from interp.corpus.reduce import Estimate, Resamples, chunks, interval, simultaneous

_HEAD = ("layer", "head")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_EDGES = {
    "sem": "standard error over texts of: ",
    "low": "2.5 % of resamples of the texts are below this: ",
    "high": "97.5 % of resamples of the texts are below this: ",
}


@dataclass(frozen=True)
class Estimates:
    """Statistics of all texts of a corpus.

    Attributes:
        reader: their records.
        texts: places among the texts that were measured, of those that are meant.
    """

    reader: Reader
    texts: tuple[int, ...]

    @cached_property
    def resamples(self) -> Resamples:
        """The draws, the same for every statistic."""
        return Resamples(len(self.texts))

    def mean(self, analysis: str) -> xr.Dataset:
        """Every statistic of all texts, with standard error and interval where they say something."""
        variables: dict[str, tuple] = {}
        for name, statistic in ANALYSES[analysis].statistics.items():
            said = statistic.variable
            estimate = self._estimate(analysis, statistic)
            variables[name] = (said.dims, estimate.value, _said(said, statistic))
            if statistic.bootstrapped:
                for edge, words in _EDGES.items():
                    attrs = said.attrs | {"description": words + said.description}
                    variables[f"{name}_{edge}"] = (said.dims, getattr(estimate, edge), attrs)
        out = self.reader.described(analysis, xr.Dataset(variables, self.reader.coordinates(analysis)))
        n, draws = len(self.texts), len(self.resamples.counts)
        return out.assign_attrs(
            averaged=f"all of {n:,} texts together",
            band=f"95 % of {draws:,} resamples of the texts",
            n_texts=n,
        )

    def spread(self, analysis: str) -> xr.Dataset:
        """How far the texts lie apart in every statistic over (layer, head): deviation and quantiles over texts."""
        variables: dict[str, tuple] = {}
        for name, statistic in ANALYSES[analysis].statistics.items():
            said = statistic.variable
            if said.dims != _HEAD:
                continue
            runs = self._runs(analysis, statistic)
            parts = [self._over_texts(self._per_text(analysis, statistic, run)) for run in runs]
            deviation, quantiles = (np.concatenate([part[at] for part in parts], axis=-2) for at in (0, 1))
            words = f"standard deviation between texts of: {said.description}"
            variables[f"{name}_sd"] = (said.dims, deviation, said.attrs | {"description": words})
            words = f"quantiles over texts of: {said.description}"
            variables[f"{name}_quantile"] = (("q", *said.dims), quantiles, said.attrs | {"description": words})
        if not variables:
            raise InputError(f"{analysis} has no number for each head: ask for head_summary, sink_rate or score_ranges")
        coordinates = self.reader.coordinates(analysis) | {"q": list(QUANTILES)}
        out = self.reader.described(analysis, xr.Dataset(variables, coordinates))
        what = f"how far {len(self.texts):,} texts lie apart in each head"
        return out.assign_attrs(analysis="spread_over_texts", description=what, n_texts=len(self.texts))

    def _per_text(self, analysis: str, statistic: Statistic, layers: slice) -> np.ndarray:
        """A statistic of each text, of some layers."""
        return statistic.compute(*self.reader.fields(analysis, statistic, self.texts, layers))

    @staticmethod
    def _over_texts(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Standard deviation and quantiles over the texts that have a number; NaN where none has."""
        there = np.isfinite(values).any(axis=0)
        filled = np.where(there, values, 0.0)
        deviation = np.nanstd(filled, axis=0)
        quantiles = np.nanquantile(filled, QUANTILES, axis=0)
        return np.where(there, deviation, np.nan), np.where(there, quantiles, np.nan)

    def differences(self, other: "Estimates", analysis: str, labels: tuple[str, str]) -> xr.Dataset:
        """Other − this for every statistic over (layer, head), with intervals that hold for all heads at once."""
        variables: dict[str, tuple] = {}
        for name, statistic in ANALYSES[analysis].statistics.items():
            if not statistic.bootstrapped or statistic.variable.dims != _HEAD:
                continue
            found = [each._estimate(analysis, statistic, keep=True) for each in (self, other)]
            (value, drawn), (other_value, other_drawn) = ((e.value, e.low) for e in found)
            difference = other_value - value
            low, high = simultaneous(difference, other_drawn - drawn)
            said = statistic.variable
            words = {
                f"{name}_difference": (difference, f"{said.description}: {labels[1]} − {labels[0]}"),
                f"{name}_low": (low, f"lower end of that difference, all heads at once, 95 %: {said.description}"),
                f"{name}_high": (high, f"upper end of that difference, all heads at once, 95 %: {said.description}"),
            }
            for called, (values, text) in words.items():
                variables[called] = (said.dims, values, said.attrs | {"description": text})
        if not variables:
            raise InputError(f"{analysis} has no number for each head to compare: compare head_summary or score_ranges")
        out = self.reader.described(analysis, xr.Dataset(variables, self.reader.coordinates(analysis)))
        return out.assign_attrs(
            analysis="compare_corpora",
            description=f"{labels[1]} compared with {labels[0]} on the same {len(self.texts):,} texts",
            band="95 %, all heads of a score at once",
            n_texts=len(self.texts),
        )

    def _estimate(self, analysis: str, statistic: Statistic, *, keep: bool = False) -> Estimate:
        """One statistic, a run of layers at a time; with `keep` its resamples stand in the place of low and high."""
        shape = self.reader.shape(statistic)
        parts = [self._part(analysis, statistic, layers, keep) for layers in self._runs(analysis, statistic)]
        if len(parts) == 1:
            return parts[0]
        joined = [np.concatenate([p[at] for p in parts], axis=int(keep and at > 1)) for at in range(4)]
        assert joined[0].shape == shape
        return Estimate(*joined)

    def _part(self, analysis: str, statistic: Statistic, layers: slice, keep: bool) -> Estimate:
        """The same of some layers."""
        known, dims = ANALYSES[analysis].fields, statistic.variable.dims
        shape = list(self.reader.shape(statistic))
        if "layer" in dims:
            shape[dims.index("layer")] = len(range(*layers.indices(shape[dims.index("layer")])))
        whole, drawn = [], []
        for name in statistic.fields:
            values = self.reader.field(analysis, name, self.texts, layers)
            merged = MERGE[known[name].merge].reduce(values, axis=0, keepdims=True)
            whole.append(lined_up(merged, known[name], dims))
            if statistic.bootstrapped and len(self.texts) > 1:
                drawn.append(lined_up(self.resamples.sums(values), known[name], dims))
        value = np.broadcast_to(statistic.compute(*whole)[0], shape).copy()
        if not drawn:
            nothing = np.full(shape, np.nan)
            return Estimate(value, nothing, nothing, nothing)
        resampled = np.broadcast_to(statistic.compute(*drawn), (len(drawn[0]), *shape))
        if keep:
            return Estimate(value, np.zeros(shape), resampled, resampled)
        return interval(value, resampled)

    def _runs(self, analysis: str, statistic: Statistic) -> Iterator[slice] | Sequence[slice]:
        """Runs of layers that fit in memory, texts and resamples alike; all at once where there are no layers."""
        dims, sizes = statistic.variable.dims, self.reader.records.sizes
        if "layer" not in dims:
            return [slice(None)]
        inner = prod(sizes[dim] for dim in dims if dim != "layer") * len(statistic.fields)
        return chunks(sizes["layer"], inner, max(len(self.texts), len(self.resamples.counts)))


def _said(variable: Variable, statistic: Statistic) -> dict[str, str]:
    """The attributes of a statistic of all texts; a count and an extreme say that they are of all of them."""
    if statistic.bootstrapped:
        return variable.attrs
    return variable.attrs | {"description": f"{variable.description}, of all texts"}
