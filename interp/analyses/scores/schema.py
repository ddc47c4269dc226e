"""What the variables of score ranges, bounds and precision are."""

from interp.common.schema import Variable, led_by
from interp.measure.schema import VARIABLES

_STATISTICS = led_by(VARIABLES, "layer")
_WHY = ("why there is no bound; empty where there is one", "")

# The range of a head's scores over all visible pairs, which several analyses give.
SCORE_RANGE: dict[str, Variable] = {
    "score_min": Variable(
        ("layer", "head"), "score", "smallest score of a visible pair", "min s_ij", label="smallest score"
    ),
    "score_max": Variable(
        ("layer", "head"), "score", "largest score of a visible pair", "max s_ij", label="largest score"
    ),
    "score_mean": Variable(("layer", "head"), "score", "mean score of the visible pairs", "mean s_ij"),
    "score_std": Variable(("layer", "head"), "score", "standard deviation of the score", "sqrt(mean (s_ij − mean)²)"),
}

_BOUNDED: dict[str, Variable] = {
    "bound": Variable(
        ("layer", "head"),
        "score",
        "no score of this head can be larger in size (under ALiBi: higher), whatever the text of this length",
        "see interp.score_bound",
    ),
    "utilisation": Variable(
        ("layer", "head"),
        "1",
        "largest observed score as a share of the bound",
        "max |s_ij| / bound; max s_ij with ALiBi",
        label="share of bound",
    ),
}

_NORMS: dict[str, Variable] = {
    "q_norm": Variable(("layer", "head", "stage"), "1", "root mean square of the queries' norms", "sqrt(mean ‖q_i‖²)"),
    "k_norm": Variable(
        ("layer", "head", "stage"),
        "1",
        "root mean square of the norms of the keys that the head reads",
        "sqrt(mean ‖k_j‖²)",
    ),
}


def _by(dim: str, table: dict[str, Variable]) -> dict[str, Variable]:
    """The same variables with a dimension behind the others."""
    return {name: variable._replace(dims=(*variable.dims, dim)) for name, variable in table.items()}


STAGE_RANGES: dict[str, Variable] = {**_by("stage", SCORE_RANGE | _BOUNDED), **_NORMS}

_VARIANTS = _by(
    "variant",
    {name.removeprefix("score_"): variable for name, variable in SCORE_RANGE.items()}
    | {
        "kurtosis": Variable(
            ("layer", "head"),
            "1",
            "fourth moment of the score, not excess: 3 for a normal distribution. From a histogram around the mean: "
            "off by some per mille for a hundred thousand pairs; NaN where scores do not vary",
            "mean (s_ij − mean)⁴ / std⁴",
        ),
        **_BOUNDED,
        "float16_headroom": Variable(
            ("layer", "head"),
            "1",
            "how many times the largest product q·k, before it is scaled, fits under float16's largest number",
            "65504 / max |q_i · k_j|",
        ),
        "sharpness_cap": Variable(
            ("layer", "head"),
            "1",
            "no key can get more attention from a query that sees n_keys keys; 1 where there is no bound",
            "1 / (1 + (n_keys − 1) e^(−2 bound)); with ALiBi Σ_{0<Δ<n_keys} e^(−slope Δ) for n_keys − 1",
        ),
    },
)

SCORE_RANGES: dict[str, Variable] = {
    **_VARIANTS,
    "quantile": Variable(
        ("layer", "head", "variant", "q"),
        "score",
        "score that this share of the visible pairs stays below",
        "smallest s with P(s_ij ≤ s) ≥ q",
    ),
    "bound_reason": Variable(
        ("layer", "variant"), "", "why there is no bound, or no such variant; empty where the bound exists", ""
    ),
    "float16_limit": Variable(
        ("layer",), "score", "score at which q·k reaches float16's largest number", "65504 scale, soft-capped"
    ),
    "n_keys": Variable(
        ("layer",), "key", "keys that a query with the longest view sees in this text", "min(n_tokens, window)"
    ),
    **_NORMS,
    "q_norm_max": Variable(("layer", "head", "stage"), "1", "largest norm of a query", "max ‖q_i‖"),
    "k_norm_max": Variable(("layer", "head", "stage"), "1", "largest norm of a key that the head reads", "max ‖k_j‖"),
}

BOUND_BY_DISTANCE: dict[str, Variable] = {
    "bound": Variable(
        ("layer", "head", "distance"),
        "score",
        "no score of this head at this distance can be larger in size (under ALiBi: higher), whatever the text",
        "scale · sqrt(D_q D_k) · max_i σ_i(Δ); see interp.score_bound",
    ),
    "score_min": _STATISTICS["score_min"],
    "score_max": _STATISTICS["score_max"],
    "bound_reason": Variable(("layer",), "", *_WHY),
}

_FORMAT = ("layer", "head", "dtype")

PRECISION_COST: dict[str, Variable] = {
    "kl": Variable(
        _FORMAT,
        "nat",
        "mean Kullback-Leibler divergence of the rounded pattern from the exact one",
        "mean_i Σ p ln(p/p̂)",
    ),
    "kl_max": Variable(_FORMAT, "nat", "largest such divergence of a sampled query", "max_i Σ_j p_ij ln(p_ij / p̂_ij)"),
    "score_error_max": Variable(_FORMAT, "score", "largest change of a score that enters softmax", "max |ŝ_ij − s_ij|"),
    "score_error_rms": Variable(_FORMAT, "score", "root mean square change of a score", "sqrt(mean (ŝ_ij − s_ij)²)"),
    "headroom": Variable(
        _FORMAT,
        "1",
        "how many times the largest number on this text fits under the format's largest",
        "limit / max(|q·k|, |q_j|, |k_j|), observed; limit 65504, 3.39e38, and 2³¹ − 1 for int8's sums",
    ),
    "proven_headroom": Variable(
        _FORMAT,
        "1",
        "how many times the largest number that any text makes fits under the format's largest",
        "limit / max(|q·k|, |q_j|, |k_j|), bound; limit 65504, 3.39e38, and 2³¹ − 1 for int8's sums",
    ),
    "verdict": Variable(_FORMAT, "", "whether q·k fits into the format", ""),
    "bound_reason": Variable(("layer",), "", *_WHY),
}

_PAIR = ("layer", "head", "pair")

PAIR_ATTAINMENT: dict[str, Variable] = {
    "largest": Variable(
        _PAIR,
        "score",
        "most that the frequency pair adds to a score of this text",
        "scale · max (q_ia k_ja + q_ib k_jb) over visible i, j; a and b the pair's features",
    ),
    "pair_bound": Variable(
        _PAIR, "score", "most that the pair's norms allow (Cauchy–Schwarz)", "scale · max_i ‖q_i,ab‖ · max_j ‖k_j,ab‖"
    ),
    "attainment": Variable(
        _PAIR,
        "1",
        "how near the pair comes to the most that its norms allow",
        "largest / pair_bound",
        "arXiv:2410.06205",
    ),
    "wavelength": Variable(
        ("layer", "pair"), "token", "distance over which the pair turns once; inf where it does not turn", "2π / f_i"
    ),
}

_KEYS = ("layer", "head", "stage", "grouping", "dtype")
_VALUES = ("layer", "head", "grouping", "dtype")
_KIVI = "arXiv:2402.02750 (KIVI), arXiv:2401.18079 (KVQuant)"

KV_PRECISION: dict[str, Variable] = {
    "kl": PRECISION_COST["kl"]._replace(
        dims=_KEYS,
        description="mean Kullback-Leibler divergence of the pattern with rounded keys from the exact one",
        source=_KIVI,
    ),
    "kl_max": PRECISION_COST["kl_max"]._replace(dims=_KEYS),
    "score_error_max": PRECISION_COST["score_error_max"]._replace(dims=_KEYS),
    "score_error_rms": PRECISION_COST["score_error_rms"]._replace(dims=_KEYS),
    "key_error": Variable(
        _KEYS, "1", "size of what rounding changes of the keys, relative to them", "‖k̂ − k‖ / ‖k‖", _KIVI
    ),
    "value_error": Variable(
        _VALUES, "1", "size of what rounding changes of the values, relative to them", "‖v̂ − v‖ / ‖v‖", _KIVI
    ),
    "output_error": Variable(
        _VALUES,
        "1",
        "size of what rounding the values changes of the head's output, relative to it",
        "‖P v̂ − P v‖ / ‖P v‖ over the sampled queries",
        _KIVI,
    ),
}
