"""segment_mass: how much attention goes from each part of a text to each other part."""

from collections.abc import Mapping

import numpy as np
import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from hooks import AttentionSpec, checks
from hooks.errors import InputError
from interp.analyses.position.schema import SEGMENT_MASS
from interp.common.labels import labelled, result_of
from interp.common.progress import track
from interp.common.stacking import named_layer
from interp.measure.statistics import attention_statistics
from interp.tensors.capture_data import CaptureData, check_capture
from interp.tensors.selection import asked_layers
from interp.tensors.tokens import TokenChoice, chosen_tokens

REST = "rest"


def segment_mass(
    cap: CaptureData, segments: Mapping[str, TokenChoice], *, layers: int | list[int] | tuple[int, ...] | None = None
) -> xr.Dataset:
    """The attention that queries of one part of the text spend on the keys of another, for every pair of parts.

    ``mean_{i in A} Σ_{j in B} p_ij``, exact, in O(n) memory. Begin, needle, context and question of a long prompt are
    such parts; tokens of no part are the part "rest". Over B the masses sum to 1, but for what a learned sink takes.

    Args:
        cap: the capture.
        segments: each part's name and tokens: an index, a slice, several indices, or a text that occurs once. No
            token is in two of them.
        layers: which of its layers; None is all of them.

    Returns:
        Dataset: segment_mass (layer, head, query_segment, key_segment); uniform_mass (layer, query_segment,
        key_segment), that of a head that attends alike to every key it sees; queries (query_segment), how many tokens
        a part has.

    Raises:
        InputError: no part, one without tokens, one called "rest", or two that share a token.
        StageError: no layer, or one that the capture does not hold.
        PositionError: a token that is not there.
        TextError: a text that does not occur, or more than once.

    Source:
        arXiv 2501.18795, table 2 (begin, needle, context, query).
    """
    chosen = asked_layers(check_capture(cap).layers, layers)
    parts = _parts(cap, segments)
    shape = len(chosen), cap.cfg.n_heads, len(parts), len(parts)
    mass, uniform = np.zeros(shape), np.zeros((shape[0], *shape[2:]))
    for at, layer in enumerate(track(chosen, "measuring segments")):
        q, k, spec = cap.q(layer), cap.k(layer), cap.spec(layer)
        for row, queries in enumerate(parts.values()):
            with named_layer(layer):
                found = attention_statistics(q, k, spec, groups="keys", queries=queries, **cap.standing)
            received = found["received"].values / len(queries)
            mass[at, :, row] = np.stack([received[:, keys.numpy()].sum(-1) for keys in parts.values()], axis=-1)
            uniform[at, row] = _uniform(spec, cap, queries, list(parts.values()))
    names = list(parts)
    values = {"segment_mass": mass, "uniform_mass": uniform, "queries": [len(part) for part in parts.values()]}
    out = xr.Dataset(
        {name: (SEGMENT_MASS[name].dims, numbers) for name, numbers in values.items()},
        {"layer": list(chosen), "head": np.arange(shape[1]), "query_segment": names, "key_segment": names},
    )
    return result_of("segment_mass", labelled(out, SEGMENT_MASS), "attention from each part of the text to each other")


def _parts(cap: CaptureData, segments: Mapping[str, TokenChoice]) -> dict[str, Int[Tensor, " token"]]:
    """Tokens of each part in ascending order, and of the rest."""
    if not isinstance(segments, Mapping) or not segments or not all(isinstance(name, str) for name in segments):
        raise InputError(
            f"segments={checks.shown(segments)}: give the name and the tokens of each part, such as "
            '{"begin": slice(0, 10), "needle": "a warm custard tart"}'
        )
    owner, parts = np.full(len(cap.positions), "", dtype=object), {}
    for name, which in segments.items():
        tokens = chosen_tokens(cap, which, f"segments[{name!r}]").unique()
        if name == REST or not len(tokens):
            why = "that is what the tokens of no part are called" if name == REST else "it holds no token"
            raise InputError(f"segments[{name!r}]: {why}; give each part another name, and at least one token")
        taken = [other for other in owner[tokens.numpy()] if other]
        if taken:
            raise InputError(f"segments {taken[0]!r} and {name!r} share a token: a token is in one part at most")
        owner[tokens.numpy()], parts[name] = name, tokens
    rest = np.flatnonzero(owner == "")
    return parts | ({REST: torch.from_numpy(rest)} if rest.size else {})


def _uniform(
    spec: AttentionSpec, cap: CaptureData, queries: Int[Tensor, " query"], parts: list[Int[Tensor, " token"]]
) -> np.ndarray:
    """Share of the keys that the queries see which lies in each part, on average."""
    n = len(cap.positions)
    first, stop = (edge.numpy() for edge in spec.seen(queries, n, cap.documents))
    shares = []
    for part in parts:
        before = np.concatenate([[0], np.cumsum(np.bincount(part.numpy(), minlength=n))])
        shares.append(((before[stop] - before[first]) / (stop - first)).mean())
    return np.asarray(shares)
