"""What every variable of attention_statistics is: its group, dimensions, unit, one line, formula, source."""

from interp.common.schema import Variable

SINK_SIZES = (1, 4)
LOCAL_DISTANCE = 64

_ROW = ("head", "query")
_KEY = ("head", "key")
_DISTANCE = ("head", "distance")
_MAP = ("head", "map_query", "map_key")


_BY_GROUP: dict[str, dict[str, Variable]] = {
    "rows": {
        "lse": Variable(
            _ROW, "nat", "log-sum-exp of the row's scores, a learned sink logit included", "ln Σ_j exp s_ij"
        ),
        "max_score": Variable(_ROW, "score", "largest score of the row", "max_j s_ij", "arXiv:2507.20534 (QK-Clip)"),
        "min_score": Variable(_ROW, "score", "smallest score of the row", "min_j s_ij"),
        "argmax_key": Variable(
            _ROW, "key index", "index of the key with the largest score; -1 if nothing is visible", "argmax_j s_ij"
        ),
        "entropy": Variable(
            _ROW,
            "nat",
            "entropy of the row; with a sink logit, the part that the real keys carry",
            "-Σ_j p_ij ln p_ij = lse Σ_j p_ij - Σ_j p_ij s_ij",
            "arXiv:2303.06296",
        ),
        "varentropy": Variable(
            _ROW,
            "nat^2",
            "variance of the score under the row's attention, normalised over the real keys",
            "Σ_j p_ij (s_ij - E_p[s])² / Σ_j p_ij",
            "github.com/xjdr-alt/entropix",
        ),
        "mean_distance": Variable(_ROW, "token", "mean distance attended to", "Σ_j p_ij Δ_ij", "arXiv:1906.04284"),
        "local_mass": Variable(
            _ROW,
            "1",
            f"attention to keys nearer than {LOCAL_DISTANCE} tokens",
            f"Σ_j p_ij [|Δ_ij| < {LOCAL_DISTANCE}]",
            "arXiv:2410.10819 (DuoAttention)",
        ),
        "max_prob": Variable(_ROW, "1", "largest attention of the row", "max_j p_ij"),
        "sink_mass": Variable(
            (*_ROW, "sink_size"),
            "1",
            "attention to the first sink_size valid keys",
            "Σ_{j < sink_size} p_ij",
            "arXiv:2309.17453",
        ),
    },
    "keys": {
        "received": Variable(_KEY, "query", "attention that the key receives from all queries", "Σ_i p_ij"),
        "received_max": Variable(_KEY, "1", "largest attention that any query pays to the key", "max_i p_ij"),
        "received_value": Variable(
            _KEY,
            "value norm",
            "received attention, weighted by the size of what it moves",
            "Σ_i p_ij ‖v_j W_O‖",
            "arXiv:2004.10102",
        ),
    },
    "distances": {
        "count": Variable(("distance",), "pair", "visible query-key pairs at the distance", "Σ_ij [Δ_ij = Δ]"),
        "attention": Variable(_DISTANCE, "query", "attention summed over pairs at the distance", "Σ_{Δ_ij = Δ} p_ij"),
        "attention_value": Variable(
            _DISTANCE,
            "value norm",
            "attention at the distance, weighted by the size of what it moves",
            "Σ_{Δ_ij = Δ} p_ij ‖v_j W_O‖",
            "arXiv:2004.10102",
        ),
        "score_mean": Variable(
            _DISTANCE,
            "score",
            "mean score over pairs at the distance",
            "Σ_{Δ_ij = Δ} s_ij / count",
            "arXiv:2502.01951",
        ),
        "score_m2": Variable(
            _DISTANCE,
            "score^2",
            "centred second moment of the scores at the distance; variance times count",
            "Σ_{Δ_ij = Δ} (s_ij - score_mean)²",
        ),
        "score_min": Variable(_DISTANCE, "score", "smallest score at the distance", "min_{Δ_ij = Δ} s_ij"),
        "score_max": Variable(_DISTANCE, "score", "largest score at the distance", "max_{Δ_ij = Δ} s_ij"),
        "positional_r2": Variable(
            ("head",),
            "1",
            "share of the score's variance that lies between distances",
            "Σ_Δ count (score_mean - μ)² / Σ_ij (s_ij - μ)²",
        ),
    },
    "map": {
        "map_mean": Variable(
            _MAP, "1", "mean attention over the valid cells of the bin; NaN where there is none", "mean p_ij"
        ),
        "map_max": Variable(_MAP, "1", "largest attention in the bin; NaN where no cell is valid", "max p_ij"),
    },
    "scores": {
        "score_count": Variable(
            ("head", "score_bin"),
            "pair",
            "histogram of the scores; a quantile read from it is off by at most one bin",
            "Σ_ij [left ≤ s_ij < right]",
        ),
    },
}

GROUPS = tuple(_BY_GROUP)
VARIABLES: dict[str, Variable] = {
    name: variable._replace(group=group) for group, table in _BY_GROUP.items() for name, variable in table.items()
}

# Beside their variables where queries are sampled.
STANDARD_ERRORS: dict[str, Variable] = {
    f"{name}_stderr": VARIABLES[name]._replace(
        description=f"standard error of {name} from subsampled queries (random groups)",
        formula="standard deviation of the groups' estimates / sqrt(number of groups)",
        source="Wolter, Introduction to Variance Estimation, 2nd ed., chapter 2",
    )
    for name in ("received", "received_value", "attention", "attention_value", "score_mean", "map_mean")
}

ATTENTION_STATISTICS: dict[str, Variable] = {**VARIABLES, **STANDARD_ERRORS}

SCORE_QUANTILE: dict[str, Variable] = {
    "score_quantile": Variable(
        ("head", "quantile"),
        "score",
        "quantile of the score, off by at most one histogram bin",
        "smallest s with P(s_ij ≤ s) ≥ quantile",
    )
}
