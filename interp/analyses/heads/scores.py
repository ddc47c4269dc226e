"""What each score of the head table is, and how it is read off one layer."""

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from interp.analyses.heads.copies import Copies, attention_to_copies
from interp.analyses.heads.retrieval import needle_mass, share_copied
from interp.analyses.heads.schema import SCORES
from interp.analyses.position.sinks import first_token_mass
from interp.analyses.scores.by_stage import finite, utilisation
from interp.analyses.scores.layer_bounds import layer_bound
from interp.analyses.scores.moments import ScoreMoments
from interp.measure.schema import LOCAL_DISTANCE
from interp.tensors.capture_data import CaptureData
from interp.texts.needles import Needle

PerHead = Float[np.ndarray, " head"]


@dataclass(frozen=True)
class TextFacts:
    """What of the text the scores need: where tokens repeat, and the needle; None where there is none."""

    copies: Copies | None
    needle: Needle | None


def layer_scores(cap: CaptureData, layer: int, facts: TextFacts) -> dict[str, PerHead]:
    """Every score of one layer, in the order of the table; those that the text has nothing for are left out."""
    stats = cap.statistics([layer]).sel(layer=layer).transpose("head", ...)
    found = _from_statistics(cap, layer, stats)
    lse = torch.from_numpy(stats["lse"].values)
    if facts.copies is not None:
        found["duplicate_token"], found["induction"] = attention_to_copies(
            cap.q(layer).cpu(), cap.k(layer).cpu(), cap.spec(layer), lse, cap.positions, facts.copies, cap.documents
        )
    if facts.needle is not None:
        found["retrieval"] = share_copied(facts.needle, stats["argmax_key"].values)
        found["needle_mass"] = needle_mass(cap, layer, facts.needle, lse)
    return {name: found[name] for name in SCORES if name in found}


def _from_statistics(cap: CaptureData, layer: int, stats: xr.Dataset) -> dict[str, PerHead]:
    """The scores that are means of what the pass has measured."""
    far = stats["local_mass"].values[:, cap.places.numpy() >= LOCAL_DISTANCE]
    most = _uniform_entropy(cap, layer, stats.sizes["query"])
    entropy = stats["entropy"].values.astype(np.float64)
    return {
        "first_token_mass": first_token_mass(cap, [layer]).values[0],
        "previous_token": (stats["attention"] / stats["count"]).reindex(distance=[1]).values[:, 0],
        "local_mass": _mean(far),
        "mean_distance": _mean(stats["mean_distance"].values),
        "entropy": _mean(entropy),
        "normalised_entropy": _mean(entropy[:, most > 0] / most[most > 0]),
        "positional_r2": stats["positional_r2"].values,
        "utilisation": utilisation(ScoreMoments.of(stats), finite(layer_bound(cap, layer)), cap.spec(layer)),
    }


def _mean(rows: Float[np.ndarray, "head query"]) -> PerHead:
    """Mean over the queries, NaN where there are none."""
    return rows.mean(1, dtype=np.float64) if rows.size else np.full(len(rows), np.nan)


def _uniform_entropy(cap: CaptureData, layer: int, n: int) -> Float[np.ndarray, " query"]:
    """Entropy of equal attention to every visible key."""
    first, stop = cap.spec(layer).seen(torch.arange(n), n, cap.documents)
    return np.log((stop - first).numpy())
