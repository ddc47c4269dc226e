"""The table of heads: one row a head, one column a named score, and which heads are the most typical of each kind."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from hooks import checks
from hooks.errors import InputError
from interp.analyses.heads.copies import Copies
from interp.analyses.heads.retrieval import check_needle
from interp.analyses.heads.schema import KINDS, SCORES, TYPICAL_HEADS
from interp.analyses.heads.scores import TextFacts, layer_scores
from interp.common.labels import check_one_result, labelled, result_of
from interp.common.progress import track
from interp.tensors.capture_data import CaptureData, check_capture
from interp.tensors.selection import asked_layers
from interp.texts.needles import Needle


def head_summary(
    cap: CaptureData, layers: int | Sequence[int] | None = None, *, needle: Needle | None = None
) -> xr.Dataset:
    """One named score after another for every head, each with its definition and source.

    Everything is exact and needs O(n) memory. Induction and duplicate-token scores read best on
    `interp.repeated_text.repeated_tokens`; on natural text they count every earlier copy. Where the copies of frequent
    tokens make more pairs than are worth computing, queries are subsampled, and the Dataset's attribute ``copies``
    says how many were measured.

    Args:
        cap: the capture.
        layers: which of its layers; None is all of them.
        needle: what `interp.needles.plant_needle` planted in the text that was captured; adds the retrieval scores.

    Returns:
        Over (layer, head): first_token_mass, previous_token, local_mass, induction, duplicate_token, retrieval and
        needle_mass (with a needle), mean_distance, entropy, normalised_entropy, positional_r2, utilisation; with
        coordinates layer_type and kv_head.

    Raises:
        StageError: no layer, or one that was not captured.
        InputError: fewer than two tokens, scores that are not finite, or a needle that is not in this text.
    """
    chosen = asked_layers(check_capture(cap).layers, layers)
    if needle is not None:
        checks.instance("needle", needle, Needle, "what plant_needle made, or None")
    if len(cap.positions) < 2:
        raise InputError(f"{len(cap.positions)} token: heads show from 2 tokens on; capture with a larger n_tokens")
    if needle is not None:
        check_needle(cap, needle)
    copies = Copies.of(_by_document(cap)) if len(cap.tokens) else None
    facts = TextFacts(copies, needle)
    rows = [layer_scores(cap, layer, facts) for layer in track(chosen, "scoring heads")]
    heads = np.arange(cap.q(chosen[0]).shape[1])
    out = xr.Dataset(
        {name: (("layer", "head"), np.stack([row[name] for row in rows]).astype(np.float64)) for name in rows[0]},
        coords={
            "layer": list(chosen),
            "head": heads,
            "layer_type": ("layer", [cap.cfg.layer_type(layer) for layer in chosen]),
            "kv_head": ("head", heads // (len(heads) // cap.k(chosen[0]).shape[1])),
        },
    )
    missing = "this capture has no tokens: Capture.from_cache(cache, spec, tokens) keeps them"
    out = out.assign_attrs(n_tokens=len(cap.positions), copies=missing if copies is None else copies.extent)
    return result_of("head_summary", labelled(out, SCORES), "named scores of every head")


def _by_document(cap: CaptureData) -> Int[Tensor, " pos"]:
    """Ids that are the same for the same token of the same document."""
    if cap.documents is None:
        return cap.tokens
    number = torch.searchsorted(cap.documents, torch.arange(len(cap.tokens)), right=True)
    return cap.tokens + number * (cap.tokens.max() + 1)


def head_table(summary: xr.Dataset, sort_by: str | None = None, *, ascending: bool = False) -> pd.DataFrame:
    """The summary as a table, a row a head, for reading and for ``.to_csv(path, index=False)``.

    Args:
        summary: what `head_summary` returned.
        sort_by: a score to sort by; None keeps the order of layers and heads.
        ascending: smallest first instead of largest first; heads without the score come last either way.

    Raises:
        InputError: there is no such score.
    """
    _check_summary(summary)
    ascending = checks.flag("ascending", ascending)
    columns = ["layer", "head", "layer_type", "kv_head", *map(str, summary.data_vars)]
    table = summary.to_dataframe().reset_index().reindex(columns=columns)
    if sort_by is None:
        return table
    if not isinstance(sort_by, str) or sort_by not in table.columns:
        raise InputError(f"no score {checks.shown(sort_by)} to sort by; there are {', '.join(map(str, table.columns))}")
    return table.sort_values(by=sort_by, ascending=ascending, kind="stable", ignore_index=True)


def typical_heads(summary: xr.Dataset, n: int = 3) -> xr.Dataset:
    """The heads that score highest on each kind's own score.

    Args:
        summary: what `head_summary` returned.
        n: heads of each kind; fewer where the model has fewer.

    Returns:
        layer, head and score over (kind, rank), with the coordinates score_name and units; −1 and NaN where a kind has
        fewer heads with a score.

    Raises:
        InputError: n below 1.
    """
    _check_summary(summary)
    n = checks.whole("n", n, at_least=1)
    names = [name for name in KINDS if name in summary]
    n = min(n, summary.sizes["layer"] * summary.sizes["head"])
    shape = len(names), n
    layer, head, score = np.full(shape, -1), np.full(shape, -1), np.full(shape, np.nan)
    for row, name in enumerate(names):
        values = summary[name].transpose("layer", "head").values
        best = np.argsort(-values, axis=None, kind="stable")[:n]
        best = best[~np.isnan(values.flat[best])]
        at = np.unravel_index(best, values.shape)
        layer[row, : len(best)] = summary["layer"].values[at[0]]
        head[row, : len(best)] = summary["head"].values[at[1]]
        score[row, : len(best)] = values[at]
    found = {"layer": layer, "head": head, "score": score}
    out = xr.Dataset(
        {name: (TYPICAL_HEADS[name].dims, values) for name, values in found.items()},
        coords={
            "kind": [KINDS[name] for name in names],
            "rank": np.arange(n),
            "score_name": ("kind", names),
            "units": ("kind", [str(summary[name].attrs.get("units", "")) for name in names]),
        },
    )
    return result_of(
        "typical_heads", labelled(out, TYPICAL_HEADS), "the heads that score highest on each kind's own score"
    )


def _check_summary(summary: object) -> None:
    """Raise unless this is what `head_summary` returned."""
    if not isinstance(summary, xr.Dataset) or not {"layer", "head"} <= set(summary.dims):
        raise InputError(f"summary={checks.shown(summary)}: give what interp.head_summary returned")
    for values in summary.data_vars.values():
        check_one_result("summary", values, ("layer", "head"))
