"""What the variables of an audit are."""

from interp.common.schema import Variable

_HEAD = ("layer", "head")
_AT = (*_HEAD, "distance")
_PAIR = (*_HEAD, "pair", "distance")
_ROTATION = ("rotation",)
_SCHEDULE = ("rotation", "schedule")
_CRITICAL = "arXiv 2310.05209"
_BASE = "arXiv 2405.14591"

_FIRST_NEGATIVE = Variable(
    _ROTATION,
    "token",
    "first distance at which similar keys stop being preferred to random ones; NaN: none up to 16,777,216",
    "smallest Δ with Σ_i cos(θ_i Δ) < 0",
    _BASE,
    label="Σ cos first below 0",
)
_STRETCH = Variable(_ROTATION, "1", "what cos and sin are multiplied by, so that scores grow by its square", "m")

AUDIT_ROTATIONS: dict[str, Variable] = {
    "layers": Variable(_ROTATION, "", "the layers that rotate this way", ""),
    "rope_type": Variable(_ROTATION, "", "the schedule", ""),
    "rope_theta": Variable(_ROTATION, "1", "the base θ", "θ_i = θ^(−2i/r) before the schedule"),
    "rotary_dim": Variable(_ROTATION, "feature", "features of a head that rotate, r", "2 · pairs that turn"),
    "trained_length": Variable(
        _ROTATION, "token", "length that was trained before the schedule stretched it, L0", "from the config"
    ),
    "context_length": Variable(_ROTATION, "token", "length that the model is made for", "from the config"),
    "span": Variable(
        _ROTATION, "token", "distances that these layers see: 0 … span − 1", "min(context length, window)"
    ),
    "attention_factor": _STRETCH,
    "wavelength": Variable(
        ("rotation", "pair"), "token", "tokens to one turn of the pair; inf: it does not turn", "2π / θ_i"
    ),
    "turns": Variable(("rotation", "pair"), "turn", "turns of the pair over what the layer sees", "span · θ_i / 2π"),
    "slow_pairs": Variable(
        _ROTATION,
        "pair",
        "pairs that never complete a turn: of these, a longer text brings angles that were not trained",
        "#{i: 2π / θ_i > span}",
        _CRITICAL,
    ),
    "critical_dimension": Variable(
        _ROTATION,
        "feature",
        "features of a head whose pairs complete a turn within the trained length, by the base alone",
        "2⌈(r/2) log_θ(L/2π)⌉, L = min(trained length, window), within 0 … r",
        _CRITICAL,
    ),
    "first_negative": _FIRST_NEGATIVE,
}

AUDIT_SCHEDULES: dict[str, Variable] = {
    "wavelength": Variable((*_SCHEDULE, "pair"), "token", "tokens to one turn of the pair", "2π / θ_i"),
    "kept": Variable(
        (*_SCHEDULE, "pair"),
        "1",
        "how fast the pair turns compared with the plain base: 1 untouched, 1/<factor> fully interpolated",
        "θ_i / θ^(−2i/r)",
        "arXiv 2309.00071",
    ),
    "changed_pairs": Variable(_SCHEDULE, "pair", "pairs that turn slower than by the plain base", "#{i: kept < 0.999}"),
    "attention_factor": _STRETCH._replace(dims=_SCHEDULE),
    "first_negative": _FIRST_NEGATIVE._replace(dims=_SCHEDULE),
}

AUDIT_LAYERS: dict[str, Variable] = {
    "layer_type": Variable(("layer",), "", "kind of attention", ""),
    "window": Variable(("layer",), "token", "keys that a query sees, itself included; 0: all before it", "window"),
    "steps": Variable(("layer",), "", "what happens to q and k between projection and score, in order", ""),
    "norm": Variable(("layer",), "", "kind and scope of the QK-norm; empty without one", ""),
    "relative": Variable(
        ("layer",), "", "whether position enters the score by the distance alone: yes, no, or unknown", ""
    ),
    "relative_reason": Variable(("layer",), "", "why it is relative, or not", ""),
    "gain_q": Variable(_HEAD, "1", "largest gain of the QK-norm of queries", "max_j |γ_j|"),
    "gain_k": Variable(_HEAD, "1", "largest gain of the QK-norm of keys that the head reads", "max_j |γ_j|"),
    "gain_q_rms": Variable(_HEAD, "1", "root mean square gain of queries", "sqrt(mean γ²)"),
    "gain_k_rms": Variable(_HEAD, "1", "root mean square gain of keys", "sqrt(mean γ²)"),
    "bound": Variable(
        _AT,
        "score",
        "no score of this head at this distance can be larger in size (under ALiBi: higher), whatever the text",
        "QK-norm: see interp.score_bound; none: scale · d_model · ‖Γ W_Qᵀ R(Δ) W_K Γ‖₂ and what biases add",
    ),
    "largest_bound": Variable(
        _HEAD,
        "score",
        "no score of this head can be larger in size (under ALiBi: higher), on any text of the model's length",
        "QK-norm: see interp.score_bound; none: scale · max ‖q‖ · max ‖k‖, ‖q‖ ≤ √d_model ‖W_Q Γ‖₂ + ‖b‖",
        label="bound",
    ),
    "bound_source": Variable(("layer",), "", "what proves the bound", ""),
    "bound_reason": Variable(("layer",), "", "why there is no bound; empty where there is one", ""),
    "sharpness_cap": Variable(
        _HEAD,
        "1",
        "no key can get more attention from a query that sees all that the layer sees; 1 without a bound",
        "1 / (1 + (n − 1) e^(−2 bound)), n = min(context length, window)",
    ),
    "headroom": Variable(
        (*_HEAD, "dtype"),
        "1",
        "how many times the largest number that any text makes fits under the format's largest; NaN without a bound",
        "float16: 65504 / max(|q·k|, |q_j|, |k_j|); float8: 448 (e4m3) or 57344 (e5m2) / max(|q_j|, |k_j|), q·k "
        "being summed in float32",
        "IEEE 754 binary16; arXiv 2209.05433",
    ),
    "verdict": Variable((*_HEAD, "dtype"), "", "whether the weights prove that nothing overflows", ""),
}

AUDIT_HEADS: dict[str, Variable] = {
    "singular_value": Variable(
        _PAIR,
        "score",
        "what the pair adds for inputs of length 1 in its best directions; a QK-norm divides by the root mean "
        "square of q and k over random inputs",
        "scale · σ_max(Γ W_Q,iᵀ R(θ_i Δ) W_K,i Γ), Γ the gain of the norm before attention",
        "arXiv 2410.06205 for the split into pairs",
    ),
    "largest_score": Variable(
        _PAIR,
        "score",
        "no input makes the pair add more at this distance (before a soft-cap); NaN where nothing limits q and k",
        "d_model · singular_value; with a QK-norm scale · sqrt(D_q D_k) · σ_max(Dγq,i R(θ_i Δ) Dγk,i)",
    ),
    "mean_score": Variable(
        _PAIR,
        "score",
        "what the pair adds on average over the model's own token embeddings, as if this layer read them: its part of "
        "the positional bias",
        "scale · mean_t q_i(t) · R(θ_i Δ) · mean_t k_i(t), over <n_tokens> tokens",
    ),
    "rest_singular_value": Variable(
        _HEAD, "score", "the same of the features that do not rotate", "scale · σ_max(Γ W_Qᵀ W_K Γ) over them"
    ),
    "rest_mean_score": Variable(
        _HEAD, "score", "what the features that do not rotate add on average, at any distance", "scale · q̄ · k̄"
    ),
    "wavelength": Variable(("layer", "pair"), "token", "tokens to one turn of the pair", "2π / θ_i"),
    "reason": Variable(("layer",), "", "why the numbers of a layer are missing; empty where they are there", ""),
}
