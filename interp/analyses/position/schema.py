"""What the variables of position, distance, sinks and loss are."""

from interp.common.schema import Variable, led_by
from interp.measure.schema import VARIABLES

_STATISTICS = led_by(VARIABLES, "layer")
_HEAD = ("layer", "head")
_DISTANCE = ("layer", "head", "distance")

POSITIONAL_BIAS: dict[str, Variable] = {
    "attention_mean": Variable(_DISTANCE, "1", "mean attention of a pair at this distance", "Σ p / count"),
    "attention_share": Variable(
        _DISTANCE, "1", "share of all the head's attention that goes to this distance", "Σ p at Δ / Σ p"
    ),
    "score_mean": _STATISTICS["score_mean"],
    "score_std": Variable(
        _DISTANCE, "score", "standard deviation of the score between pairs at this distance", "sqrt(score_m2 / count)"
    ),
    "score_min": _STATISTICS["score_min"],
    "score_max": _STATISTICS["score_max"],
    "count": _STATISTICS["count"],
    "positional_r2": _STATISTICS["positional_r2"]._replace(label="positional R²"),
    "attention_value_mean": Variable(
        _DISTANCE,
        "value norm",
        "mean attention, weighted by the size of the value that it moves, of a pair at this distance",
        "Σ p ‖v W_O‖ / count",
        "arXiv:2004.10102",
    ),
    "attention_value_share": Variable(
        _DISTANCE,
        "1",
        "share of all the head's attention, weighted by the size of the value that it moves, that goes to this "
        "distance",
        "Σ p ‖v W_O‖ at Δ / Σ p ‖v W_O‖",
        "arXiv:2004.10102",
    ),
    "window": Variable(
        ("layer",),
        "token",
        "keys that a query of this layer can see, itself included; 0 means all before it",
        "0 ≤ Δ < window",
    ),
}

TYPICAL_DISTANCE: dict[str, Variable] = {
    "typical_distance": Variable(
        _HEAD,
        "token",
        "distance within which the head spends <percent> of its attention",
        "smallest Δ with Σ over distances of at most Δ of attention_share ≥ <share>",
        label="half within",
    )
}

FREQUENCY_BIAS: dict[str, Variable] = {
    "score_mean": Variable(
        ("layer", "head", "pair", "distance"),
        "score",
        "mean score that the frequency pair contributes, over the query-key pairs at the distance",
        "scale · Σ_{i−j=Δ} (q_ia k_ja + q_ib k_jb) / count, a and b the two features of the frequency pair",
        "arXiv:2410.06205",
    ),
    "score_mean_rest": Variable(
        _DISTANCE,
        "score",
        "the same for the features of no frequency pair (partial rotary); with it the pairs sum to the whole",
        "scale · Σ_{i−j=Δ} Σ_{c in no pair} q_ic k_jc / count",
    ),
    "count": Variable(("layer", "distance"), "pair", "visible query-key pairs at the distance", "Σ_ij [i − j = Δ]"),
    "inv_freq": Variable(
        ("layer", "pair"),
        "rad/token",
        "angle by which one token of distance turns the pair",
        "f_i",
        "arXiv:2104.09864",
    ),
    "wavelength": Variable(
        ("layer", "pair"), "token", "distance over which the pair turns once; inf where it does not turn", "2π / f_i"
    ),
    "q_norm": Variable(
        ("layer", "head", "pair"),
        "1",
        "size of the pair's two query features: massive values show here",
        "sqrt(mean_i (q_ia² + q_ib²))",
        "arXiv:2502.01563, arXiv:2410.06205",
    ),
    "k_norm": Variable(
        ("layer", "head", "pair"),
        "1",
        "size of the pair's two key features, in the kv head that the head uses",
        "sqrt(mean_j (k_ja² + k_jb²))",
        "arXiv:2502.01563, arXiv:2410.06205",
    ),
}

RECEIVED_BY_POSITION: dict[str, Variable] = {
    "received_mean": Variable(
        ("layer", "head", "position_bin"),
        "1",
        "mean attention that a key of this stretch gets from a query that can see it",
        "mean_j (Σ_i p_ij / |{i sees j}|)",
    ),
    "received_share": Variable(
        ("layer", "head", "part"), "1", "share of all the head's attention that goes to this part", "Σ p / Σ p"
    ),
    "received_value_mean": Variable(
        ("layer", "head", "position_bin"),
        "value norm",
        "the same, weighted by the size of the value that it moves",
        "mean_j (Σ_i p_ij ‖v_j W_O‖ / |{i sees j}|)",
        "arXiv:2004.10102",
    ),
    "received_value_share": Variable(
        ("layer", "head", "part"),
        "1",
        "share of all that the head's attention moves, by the size of the values, that comes from this part",
        "Σ p ‖v W_O‖ / Σ p ‖v W_O‖",
        "arXiv:2004.10102",
    ),
    "uniform_mean": Variable(
        ("layer", "position_bin"),
        "1",
        "received_mean of a head that attends alike to every key it sees",
        "the same with p_ij = 1 / |{j seen by i}|",
    ),
    "uniform_share": Variable(("layer", "part"), "1", "received_share of such a head", "Σ p / Σ p"),
}

FIRST_TOKEN_MASS: dict[str, Variable] = {
    "first_token_mass": Variable(
        _HEAD,
        "1",
        "mean attention to the first token, over the later queries that see it",
        "mean_i p_i0, 1 ≤ i (< window)",
        "arXiv:2410.10781",
        label="first token",
    )
}

SINK_RATE: dict[str, Variable] = {
    "sink_score": Variable(
        _HEAD,
        "1",
        "mean attention to token <k> over the queries that see it, itself included",
        "α_k = Σ_{i ≥ k} p_ik / (T − k + 1)",
        "arXiv:2410.10781",
    ),
    "is_sink": Variable(_HEAD, "", "whether the head uses the token as a sink", "α_k > <epsilon>"),
    "sink_rate": Variable(
        (),
        "1",
        "share of heads that give token <k> more than <epsilon> of their attention",
        "mean over heads of [α_k > <epsilon>]",
        "arXiv:2410.10781",
    ),
}

LOSS_BY_POSITION: dict[str, Variable] = {
    "loss": Variable(("position",), "nats", "loss of the token at this position", "−ln p(token)"),
    "running_mean": Variable(("position",), "nats", "mean loss of all tokens up to this position", "−ln p(token)"),
    "loss_mean": Variable(("position_bin",), "nats", "mean loss in this stretch of positions", "−ln p(token)"),
    "loss_stderr": Variable(
        ("position_bin",),
        "nats",
        "standard error of that mean, tokens taken as independent; NaN of one token",
        "−ln p(token)",
    ),
    "count": Variable(("position_bin",), "token", "predicted tokens in this stretch", "Σ_i [i in the stretch]"),
}

SEGMENT_MASS: dict[str, Variable] = {
    "segment_mass": Variable(
        ("layer", "head", "query_segment", "key_segment"),
        "1",
        "mean attention that a query of one part of the text pays to all keys of another",
        "mean_{i in query_segment} Σ_{j in key_segment} p_ij",
        "arXiv:2501.18795",
    ),
    "uniform_mass": Variable(
        ("layer", "query_segment", "key_segment"),
        "1",
        "the same of a head that attends alike to every key it sees",
        "mean_{i in query_segment} |{j in key_segment: i sees j}| / |{j: i sees j}|",
    ),
    "queries": Variable(("query_segment",), "token", "tokens of the part", "|query_segment|"),
}

FIND_SINKS: dict[str, Variable] = {
    "sink_score": Variable(
        ("layer", "head", "sink"),
        "1",
        "mean attention that the token gets from the queries that see it, itself included",
        "Σ_i p_ij / |{i sees j}|",
        "arXiv:2410.10781",
    ),
    "heads": Variable(("sink",), "head", "heads whose sink the token is", "#{heads: sink_score > <epsilon>}"),
    "sinks": Variable(_HEAD, "key", "sinks of the head", "#{j: sink_score > <epsilon>}"),
    "sink_mass": Variable(
        _HEAD, "1", "mean attention that a query leaves on the head's sinks", "mean_i Σ_{j is a sink} p_ij"
    ),
    "sink_rate": Variable((), "1", "share of heads that have a sink", "mean [sinks > 0]", "arXiv:2410.10781"),
}


def _features(name: str, dims: tuple[str, ...], what: str) -> dict[str, Variable]:
    """Norm, multiple of the mean and number of massive features of q, k or v."""
    return {
        f"{name}_norm": Variable(dims, "1", f"size of the feature of {what} over the whole text", f"‖{name}_:hd‖"),
        f"{name}_ratio": Variable(
            dims,
            "1",
            f"size of the feature of {what} as a multiple of the head's mean; massive above <factor>",
            f"‖{name}_:hd‖ / mean_d ‖{name}_:hd‖",
            "arXiv:2502.01563",
        ),
        f"{name}_massive": Variable(
            dims[:2], "feature", f"massive features of {what}", f"#{{d: {name}_ratio > <factor>}}", "arXiv:2502.01563"
        ),
    }


MASSIVE_VALUES: dict[str, Variable] = {
    **_features("q", ("layer", "head", "feature"), "the queries"),
    **_features("k", ("layer", "kv_head", "feature"), "the keys"),
    **_features("v", ("layer", "kv_head", "value_feature"), "the values"),
    "pair": Variable(
        ("layer", "feature"), "", "RoPE pair that the feature turns in, the fastest first; −1 for none", ""
    ),
}
