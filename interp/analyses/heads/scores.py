"""What each score of the head table is, and how it is read off one layer."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from interp.analyses.heads.copies import Copies, attention_to_copies
from interp.analyses.heads.retrieval import needle_mass, retrieval_score
from interp.analyses.position.sinks import first_token_mass
from interp.analyses.scores.by_stage import finite, utilisation
from interp.analyses.scores.layer_bounds import layer_bound
from interp.analyses.scores.moments import ScoreMoments
from interp.measure.schema import LOCAL_DISTANCE
from interp.tensors.capture_data import CaptureData
from interp.texts.needles import Needle

PerHead = Float[np.ndarray, " head"]


class Score(NamedTuple):
    """One column of the head table; `kind` is what a head that scores high is called, empty if there is no name."""

    kind: str
    units: str
    description: str
    formula: str
    source: str = ""


SCORES: dict[str, Score] = {
    "first_token_mass": Score(
        "sink",
        "1",
        "mean attention to the first token, over the later queries that see it",
        "mean_i p_i0, 1 ≤ i (< window)",
        "arXiv:2410.10781",
    ),
    "previous_token": Score(
        "previous token",
        "1",
        "mean attention to the token before",
        "mean_i p_i,i−1",
        "transformer_lens.head_detector",
    ),
    "local_mass": Score(
        "local",
        "1",
        f"mean attention to keys nearer than {LOCAL_DISTANCE} tokens, over the queries that could look further back; "
        "1 in a layer whose window is no wider, NaN in a text that is no longer",
        f"mean_i Σ_j p_ij [Δ_ij < {LOCAL_DISTANCE}], i ≥ {LOCAL_DISTANCE}",
        "arXiv:2410.10819 (DuoAttention)",
    ),
    "induction": Score(
        "induction",
        "1",
        "mean attention to the tokens right after earlier copies of the current token (prefix matching), over the "
        "queries that see one; NaN where none does",
        "mean_i Σ_{c<i, t_c=t_i} p_i,c+1",
        "arXiv:2209.11895; transformer_lens.head_detector",
    ),
    "duplicate_token": Score(
        "duplicate token",
        "1",
        "mean attention to earlier copies of the current token, over the queries that see one; NaN where none does",
        "mean_i Σ_{c<i, t_c=t_i} p_ic",
        "transformer_lens.head_detector",
    ),
    "retrieval": Score(
        "retrieval",
        "1",
        "share of the needle's distinct tokens that the head, with its largest attention, copies into the answer",
        "|{t_j : j in the needle, j = argmax p_i, t_j = t_i+1}| / |{t_j : j in the needle}|",
        "arXiv:2404.15574",
    ),
    "needle_mass": Score(
        "", "1", "mean attention to the needle, over the queries that predict the answer", "mean_i Σ_{j in needle} p_ij"
    ),
    "mean_distance": Score(
        "far-looking", "token", "mean distance attended to", "mean_i Σ_j p_ij Δ_ij", "arXiv:1906.04284"
    ),
    "entropy": Score("", "nat", "mean entropy of the rows", "mean_i −Σ_j p_ij ln p_ij", "arXiv:2303.06296"),
    "normalised_entropy": Score(
        "uniform",
        "1",
        "mean entropy of the rows as a share of what it would be if the visible keys got equal attention, over the "
        "queries that see more than one",
        "mean_i H_i / ln(visible keys of i)",
        "arXiv:2303.06296",
    ),
    "positional_r2": Score(
        "positional",
        "1",
        "share of the score's variance that lies between distances",
        "Σ_Δ count (score_mean − μ)² / Σ_ij (s_ij − μ)²",
    ),
    "utilisation": Score(
        "",
        "1",
        "largest observed score as a share of the bound that the QK-norm's weights, clipping or soft-cap prove; NaN "
        "where nothing bounds it",
        "max |s_ij| / bound",
        "see interp.score_bound",
    ),
}


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
            cap.q(layer).cpu(), cap.k(layer).cpu(), cap.spec(layer), lse, cap.positions, facts.copies
        )
    if facts.needle is not None:
        found["retrieval"] = retrieval_score(facts.needle, stats["argmax_key"].values)
        found["needle_mass"] = needle_mass(cap, layer, facts.needle, lse)
    return {name: found[name] for name in SCORES if name in found}


def _from_statistics(cap: CaptureData, layer: int, stats: xr.Dataset) -> dict[str, PerHead]:
    """The scores that are means of what the pass has measured."""
    far = stats["local_mass"].values[:, LOCAL_DISTANCE:]
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
    first, stop = cap.spec(layer).seen(torch.arange(n), n)
    return np.log((stop - first).numpy())
