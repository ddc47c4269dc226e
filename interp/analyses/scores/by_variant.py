"""score_ranges: how large scores get as the model ran, and would get without its norm, its rotation or their order."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from hooks import AttentionSpec, checks
from hooks.errors import InputError, StageError
from interp.analyses.counterfactual.recompute import recompute
from interp.analyses.counterfactual.variants import VARIANTS, StepVariant, step_variant
from interp.analyses.scores.by_stage import finite, rms_norm, stage_label, stages_in_order, utilisation
from interp.analyses.scores.layer_bounds import bound_reason, bound_side, chosen_layers, is_linear, layer_bound, linear
from interp.analyses.scores.moments import PerHead, ScoreMoments, score_shape
from interp.analyses.scores.schema import SCORE_RANGES
from interp.common.labels import labelled, result_of
from interp.common.progress import track
from interp.measure.statistics import attention_statistics
from interp.measure.visibility import reach
from interp.tensors.capture_data import CaptureData

QUANTILES = (0.001, 0.01, 0.05, 0.5, 0.95, 0.99, 0.999)
FLOAT16_MAX = 65504.0
_PER_VARIANT, _PER_STAGE = (
    [name for name, said in SCORE_RANGES.items() if said.dims == ("layer", "head", dim)] for dim in ("variant", "stage")
)


def score_ranges(
    cap: CaptureData, layers: int | Sequence[int] | None = None, quantiles: float | Sequence[float] = QUANTILES
) -> xr.Dataset:
    """Range, moments and bound of each head's scores, as run and with norm and rotation changed.

    The variants take this text's q and k from before the step that changes through the layer's other steps: no_norm
    leaves out QK-norm, no_rope the rotation, swapped_order does the two in the other order with the same gains. It is
    the direct effect in each layer; what the layers before it would then do is not in it.

    Extremes, mean and standard deviation are exact over all visible pairs. Quantiles are off by at most 1/32 of their
    distance from the mean (1/32 of the quantile itself under a soft-cap). Kurtosis comes from the same bins: off by
    some per mille for a hundred thousand pairs, by some per cent for a hundred.

    Args:
        cap: a capture with the stages before norm and rotation, which it keeps by default.
        layers: which of its layers; None is all of them.
        quantiles: levels from 0 to 1.

    Returns:
        Dataset over (layer, head, variant): min, max, mean, std, kurtosis, bound, utilisation, float16_headroom,
        sharpness_cap; over (layer, head, variant, q): quantile, the score at each level; over (layer, variant):
        bound_reason, why there is no bound or no such variant (then all is NaN), empty where the bound exists; over
        (layer, head, stage): q_norm, k_norm, q_norm_max, k_norm_max at every captured stage; over (layer):
        float16_limit, and n_keys, the most that a query of this text sees.

    Raises:
        StageError: the capture lacks the stage that a variant starts from, or a layer.
        InputError: NaN or infinity in q or k; a quantile outside 0 … 1.
        TextError: fewer than two tokens.

    Source:
        float16's 65504: IEEE 754 binary16. Variants as in arXiv 2302.05442 and 2309.14322, which motivate QK-norm.
    """
    chosen = chosen_layers(cap, layers)
    levels = list(checks.numbers("quantiles", quantiles, at_least=0, at_most=1))
    shape = (len(chosen), cap.cfg.n_heads, len(VARIANTS))
    values = {name: np.full(shape, np.nan) for name in _PER_VARIANT}
    at_level = np.full((*shape, len(levels)), np.nan)
    reasons = np.full((len(chosen), len(VARIANTS)), "", dtype=object)
    for row, layer in enumerate(track(chosen, "measuring score ranges")):
        for column, name in enumerate(VARIANTS):
            with _named(layer, name):
                variant, reasons[row, column] = step_variant(cap, layer, name)
                if variant is None:
                    continue
                reasons[row, column] = bound_reason(cap, layer, cfg=variant.cfg, steps=variant.steps)
                measured, at_level[row, :, column] = _measure(cap, layer, variant, levels)
            for variable, per_head in measured.items():
                values[variable][row, :, column] = per_head
    values |= {
        "quantile": at_level,
        "bound_reason": reasons.astype(str),
        "float16_limit": np.array([_float16_limit(cap.spec(layer)) for layer in chosen]),
        "n_keys": np.array([_n_keys(cap, layer) for layer in chosen]),
        **_vector_norms(cap, chosen),
    }
    out = xr.Dataset(
        {name: (SCORE_RANGES[name].dims, array) for name, array in values.items()},
        coords={
            "layer": list(chosen),
            "head": np.arange(cap.cfg.n_heads),
            "variant": ("variant", list(VARIANTS), {"description": "which steps q and k went through"}),
            "q": levels,
            "layer_type": ("layer", [cap.cfg.layer_type(layer) for layer in chosen]),
            "stage": stages_in_order(cap),
            "stage_label": ("stage", [stage_label(cap, stage) for stage in stages_in_order(cap)]),
        },
    )
    out["bound"].attrs["side"] = bound_side(cap, chosen)
    what = "range, moments and bound of each head's scores, by variant of its steps"
    return result_of("score_ranges", labelled(out, SCORE_RANGES), what)


def _measure(
    cap: CaptureData, layer: int, variant: StepVariant, levels: Sequence[float]
) -> tuple[dict[str, PerHead], np.ndarray]:
    """One variant of one layer: every variable per head, and the scores at the quantiles."""
    cfg, steps = variant
    spec, rope = cap.spec(layer), cfg.rope_for(layer)
    q, k = recompute(cap, layer, "q", steps, rope), recompute(cap, layer, "k", steps, rope)
    known = ScoreMoments.of(cap.statistics([layer]).isel(layer=0)) if cfg is cap.cfg else None
    shape = score_shape(q, k, spec, levels, known, cap.standing)
    bound = layer_bound(cap, layer, cfg=cfg, steps=steps)
    with np.errstate(divide="ignore"):
        measured = {
            "min": shape.low,
            "max": shape.high,
            "mean": shape.mean,
            "std": shape.std,
            "kurtosis": shape.kurtosis,
            "bound": finite(bound),
            "utilisation": utilisation(shape, finite(bound), spec),
            "float16_headroom": FLOAT16_MAX / largest_product(q, k, spec, shape, cap.documents),
            "sharpness_cap": _sharpness_cap(bound, _n_keys(cap, layer), spec),
        }
    return measured, shape.quantiles


def largest_product(
    q: Tensor,
    k: Tensor,
    spec: AttentionSpec,
    moments: ScoreMoments,
    documents: Int[Tensor, " document"] | None,
) -> PerHead:
    """The largest |q·k| over the visible pairs, before scale, soft-cap and ALiBi; `moments` are those of the scores."""
    if not is_linear(spec):
        moments = ScoreMoments.of(attention_statistics(q, k, linear(spec), groups=("distances",), documents=documents))
    return moments.largest / abs(spec.scale)


def _sharpness_cap(bound: PerHead, n_keys: int, spec: AttentionSpec) -> PerHead:
    """The pattern of one key at +B, beside the query, and all others at −B: 1 / (1 + Σ_{0<Δ<n} e^(−2B − slope Δ))."""
    slopes = np.zeros(len(bound)) if spec.alibi_slopes is None else np.asarray(spec.alibi_slopes, dtype=np.float64)
    others = np.exp(-slopes[:, None] * np.arange(1, n_keys)).sum(-1)
    return 1 / (1 + others * np.exp(-2 * bound))


def _float16_limit(spec: AttentionSpec) -> float:
    """The score of a product that reaches float16's largest number."""
    limit = FLOAT16_MAX * abs(spec.scale)
    return limit if spec.softcap is None else float(spec.softcap * np.tanh(limit / spec.softcap))


def _n_keys(cap: CaptureData, layer: int) -> int:
    """Keys that the query with the longest view sees, counted on one side of it."""
    return reach(cap.spec(layer), cap.longest)[1] + 1


def _vector_norms(cap: CaptureData, chosen: Sequence[int]) -> dict[str, np.ndarray]:
    """Norms of q and k over (layer, head, stage), NaN where a layer lacks a stage."""
    stages, heads = stages_in_order(cap), cap.cfg.n_heads
    values = {name: np.full((len(chosen), heads, len(stages)), np.nan) for name in _PER_STAGE}
    for row, layer in enumerate(chosen):
        for stage in cap.stages(layer):
            for name, x in (("q", cap.q(layer, stage)), ("k", cap.k(layer, stage))):
                at = (row, slice(None), stages.index(stage))
                longest = x.float().norm(dim=-1).amax(0).cpu().numpy()
                values[f"{name}_norm"][at] = rms_norm(x, heads)
                values[f"{name}_norm_max"][at] = np.repeat(longest, heads // len(longest))
    return values


@contextmanager
def _named(layer: int, variant: str) -> Iterator[None]:
    """Say which layer and variant an error of the measurement is about."""
    try:
        yield
    except (InputError, StageError) as error:
        about_it = str(error).removeprefix(f"layer {layer}: ")
        raise type(error)(f"layer {layer}, {variant}: {about_it}") from error
