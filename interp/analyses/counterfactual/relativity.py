"""Whether scores depend on distance alone: how much they change when every position moves by the same number."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from hooks import checks
from hooks.errors import InputError, StageError
from hooks.functional.float64 import to_float64
from hooks.functional.visible import visible_keys
from interp.analyses.counterfactual.recompute import recompute
from interp.analyses.counterfactual.schema import RELATIVITY_ERROR
from interp.common.finite import not_finite
from interp.common.labels import labelled, result_of
from interp.common.progress import track
from interp.tensors.capture_data import CaptureData, check_capture
from interp.tensors.rotation import rotating_layers

_FURTHEST = 2**53  # positions that float64 tells apart


@torch.no_grad()
def relativity_error(
    cap: CaptureData,
    shifts: int | Sequence[int] = (1, 1_000, 100_000),
    *,
    layers: int | Sequence[int] | None = None,
    n_queries: int = 64,
    dtype: torch.dtype = torch.float64,
) -> xr.Dataset:
    """How far each head's scores are from depending on distance alone.

    s'_ij is the score with `shift` added to every position, all else equal. RoPE makes q·k a function of the distance
    as long as nothing after it treats the two features of a pair differently: with QK-norm before the rotation, or
    after it with equal gains in each pair, the error is rounding. Unequal gains after the rotation, LayerNorm after it,
    or clipping after it break the relation, and this says by how much.

    Args:
        cap: a capture with the stage ``pre_rope``.
        shifts: how many tokens to move by, one or several.
        layers: which of the captured layers that rotate; None is all of them.
        n_queries: queries to compare, evenly spread over the text, each with all the keys it sees.
        dtype: float64 leaves the formula's own error; float32 adds what rounding of angles and products costs.

    Returns:
        Dataset: relativity_error, score_change_rms and score_change_max (layer, head, shift), score_std (layer, head).
        Scores are taken before the soft-cap. NaN where a head's scores do not vary.

    Raises:
        StageError: the capture lacks the stage before the rotation or does not know the schedule, or a layer that does
            not rotate was asked for.
        InputError: a setting out of range, or scores that are not finite.

    Source:
        arXiv 2104.09864 §3.2 (scores depend on i − j), 2411.13476 (low precision breaks it).
    """
    chosen = rotating_layers(check_capture(cap), layers)
    moves = checks.wholes("shifts", shifts, at_least=-_FURTHEST, at_most=_FURTHEST)
    n_queries = checks.whole("n_queries", n_queries, at_least=1)
    dtype = checks.choice("dtype", dtype, (torch.float64, torch.float32))
    if not moves:
        raise InputError("shifts is empty: give at least one")
    n = len(cap.positions)
    rows = torch.linspace(0, n - 1, min(n_queries, n), dtype=torch.float64).round().long()
    shape = (len(chosen), cap.cfg.n_heads, len(moves))
    out = {name: np.full(shape[: len(said.dims)], np.nan) for name, said in RELATIVITY_ERROR.items()}
    for row, layer in enumerate(track(chosen, "shifting positions")):
        seen, scale = (
            visible_keys(cap.spec(layer), rows, torch.arange(n), documents=cap.documents),
            cap.spec(layer).scale,
        )
        tensors = {shift: _moved(cap, layer, rows, shift, dtype) for shift in (0, *moves)}
        seen = seen.to(tensors[0][0].device)
        for head in range(shape[1]):
            scores = {
                shift: scale * (q[:, head] @ k[:, head * k.shape[1] // shape[1]].T)[seen]
                for shift, (q, k) in tensors.items()
            }
            out["score_std"][row, head] = float(scores[0].std(correction=0))
            if not np.isfinite(out["score_std"][row, head]):
                raise not_finite(f"scores of layer {layer}, head {head} hold NaN or infinity")
            for column, shift in enumerate(moves):
                change = to_float64(scores[shift] - scores[0])
                out["score_change_rms"][row, head, column] = float(change.square().mean().sqrt())
                out["score_change_max"][row, head, column] = float(change.abs().max())
    spread = out["score_std"][..., None]
    np.divide(out["score_change_rms"], spread, out=out["relativity_error"], where=spread > 0)
    result = xr.Dataset(
        {name: (RELATIVITY_ERROR[name].dims, array) for name, array in out.items()},
        coords={
            "layer": list(chosen),
            "head": np.arange(cap.cfg.n_heads),
            "shift": list(moves),
            "steps": ("layer", [", ".join(cap.steps(layer)) for layer in chosen]),
        },
        attrs={"compared": f"{len(rows)} of {n} queries, in {str(dtype).removeprefix('torch.')}"},
    )
    what = "change of the scores when all positions move"
    return result_of("relativity_error", labelled(result, RELATIVITY_ERROR), what)


def _moved(
    cap: CaptureData, layer: int, rows: Int[Tensor, " row"], shift: int, dtype: torch.dtype
) -> tuple[Float[Tensor, "row head d_head"], Float[Tensor, "pos kv_head d_head"]]:
    """Some queries and every key as they enter the score, all positions shifted."""
    rope = cap.cfg.rope_for(layer)
    if rope is None:
        raise StageError(
            f"the schedule of layer {layer} is not known to this capture, so its positions cannot be moved: capture "
            "with HookedTransformer.from_pretrained"
        )
    steps = cap.steps(layer)
    q = recompute(cap, layer, "q", steps, rope, shift=shift, rows=rows, dtype=dtype)
    return q, recompute(cap, layer, "k", steps, rope, shift=shift, dtype=dtype)
