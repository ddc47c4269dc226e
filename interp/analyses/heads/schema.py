"""What the scores of the head table and the variables of a comparison are."""

from interp.analyses.position.schema import FIRST_TOKEN_MASS, LOSS_BY_POSITION, POSITIONAL_BIAS
from interp.analyses.scores.schema import SCORE_RANGE, STAGE_RANGES
from interp.common.schema import Variable, led_by
from interp.measure.schema import LOCAL_DISTANCE

_HEAD, _DISTANCE = ("layer", "head"), ("layer", "head", "distance")

SCORES: dict[str, Variable] = {
    "first_token_mass": FIRST_TOKEN_MASS["first_token_mass"],
    "previous_token": Variable(
        _HEAD,
        "1",
        "mean attention to the token before",
        "mean_i p_i,i−1",
        "transformer_lens.head_detector",
    ),
    "local_mass": Variable(
        _HEAD,
        "1",
        f"mean attention to keys nearer than {LOCAL_DISTANCE} tokens, over the queries that could look further back; "
        "1 in a layer whose window is no wider, NaN in a text that is no longer",
        f"mean_i Σ_j p_ij [Δ_ij < {LOCAL_DISTANCE}], i ≥ {LOCAL_DISTANCE}",
        "arXiv:2410.10819 (DuoAttention)",
        label="local",
    ),
    "induction": Variable(
        _HEAD,
        "1",
        "mean attention to the tokens right after earlier copies of the current token (prefix matching), over the "
        "queries that see one; NaN where none does",
        "mean_i Σ_{c<i, t_c=t_i} p_i,c+1",
        "arXiv:2209.11895; transformer_lens.head_detector",
    ),
    "duplicate_token": Variable(
        _HEAD,
        "1",
        "mean attention to earlier copies of the current token, over the queries that see one; NaN where none does",
        "mean_i Σ_{c<i, t_c=t_i} p_ic",
        "transformer_lens.head_detector",
    ),
    "retrieval": Variable(
        _HEAD,
        "1",
        "share of the needle's distinct tokens that the head, with its largest attention, copies while the answer is "
        "read (teacher-forced: given, not generated)",
        "|{t_j : j in the needle, j = argmax p_i, t_j = t_i+1}| / |{t_j : j in the needle}|",
        "arXiv:2404.15574",
    ),
    "needle_mass": Variable(
        _HEAD,
        "1",
        "mean attention to the needle, over the queries that predict the answer",
        "mean_i Σ_{j in needle} p_ij",
        label="needle",
    ),
    "mean_distance": Variable(_HEAD, "token", "mean distance attended to", "mean_i Σ_j p_ij Δ_ij", "arXiv:1906.04284"),
    "entropy": Variable(_HEAD, "nat", "mean entropy of the rows", "mean_i −Σ_j p_ij ln p_ij", "arXiv:2303.06296"),
    "normalised_entropy": Variable(
        _HEAD,
        "1",
        "mean entropy of the rows as a share of what it would be if the visible keys got equal attention, over the "
        "queries that see more than one",
        "mean_i H_i / ln(visible keys of i)",
        "arXiv:2303.06296",
        label="entropy of uniform",
    ),
    "positional_r2": POSITIONAL_BIAS["positional_r2"],
    "utilisation": STAGE_RANGES["utilisation"]._replace(
        dims=_HEAD,
        description="largest observed score as a share of the bound that the QK-norm's weights, clipping or soft-cap "
        "prove; NaN where nothing bounds it",
        source="see interp.score_bound",
    ),
}

# What a head that scores high is called; scores without such a name are left out.
KINDS: dict[str, str] = {
    "first_token_mass": "sink",
    "previous_token": "previous token",
    "local_mass": "local",
    "induction": "induction",
    "duplicate_token": "duplicate token",
    "retrieval": "retrieval",
    "mean_distance": "far-looking",
    "normalised_entropy": "uniform",
    "positional_r2": "positional",
}

TYPICAL_HEADS: dict[str, Variable] = {
    "layer": Variable(("kind", "rank"), "", "layer of the head", "−1 where there is none"),
    "head": Variable(("kind", "rank"), "", "the head", "−1 where there is none"),
    "score": Variable(("kind", "rank"), "", "its score, in its kind's unit", "see score_name"),
}

_SWEEP = ("length", "depth")
NEEDLE_SWEEP: dict[str, Variable] = {
    "answer_loss": Variable(_SWEEP, "nat", "mean loss of the answer's tokens", "mean_i −ln P(t_i), i in the answer"),
    "needle_mass": Variable(
        _SWEEP,
        "1",
        "mean attention to the needle, over the queries that predict the answer and all heads",
        "mean_i Σ_{j in needle} p_ij",
    ),
    "found": Variable(
        _SWEEP,
        "",
        "whether greedy decoding gives the answer: each of its tokens is the likeliest after those before",
        "∧_i t_i = argmax P(t | t_<i), i in the answer",
    ),
}

RETRIEVAL_SCORE: dict[str, Variable] = {
    "retrieval_score": Variable(
        _HEAD,
        "1",
        "share of the needle's distinct tokens that the head, with its largest attention, copies while the model "
        "generates its answer; the mean over the needles",
        "|{t_j : j in the needle, j = argmax p_i, t_j = t_i+1 as generated}| / |{t_j : j in the needle}|",
        "arXiv:2404.15574",
    ),
}

# What is compared, of each of two captures.
MEASURED: dict[str, Variable] = {
    **{name: SCORES[name] for name in ("first_token_mass", "mean_distance", "entropy")},
    **{name: SCORE_RANGE[name] for name in ("score_mean", "score_std", "score_min", "score_max")},
    "positional_r2": SCORES["positional_r2"]._replace(
        formula="Σ_Δ count (score_at_distance − μ)² / Σ_ij (s_ij − μ)²"  # score_mean is that of all pairs here
    ),
    "attention_at_distance": Variable(
        _DISTANCE, "1", "mean attention of a pair at this distance", "Σ p at Δ / pairs at Δ"
    ),
    "score_at_distance": Variable(_DISTANCE, "score", "mean score of a pair at this distance", "Σ s at Δ / pairs at Δ"),
    "loss": LOSS_BY_POSITION["loss"]._replace(units="nat"),
}

COMPARE: dict[str, Variable] = {
    **led_by(MEASURED, "capture"),
    **{
        f"{name}_difference": variable._replace(
            description=f"{variable.description}: <b> − <a>", formula=f"difference of {variable.formula}"
        )
        for name, variable in MEASURED.items()
    },
    "profile_divergence": Variable(
        _HEAD,
        "1",
        "share of its attention that the head moved to other distances (total variation of the two profiles)",
        "½ Σ_Δ |share_b − share_a|, share = Σ p at Δ / Σ p",
    ),
}

RANKED: dict[str, Variable] = {
    "layer": Variable(("rank",), "", "layer of the head", ""),
    "head": Variable(("rank",), "", "the head", ""),
    **{name: variable._replace(dims=("rank",)) for name, variable in COMPARE.items() if variable.dims == _HEAD},
}
