"""What the variables of `attribution` and its kin are."""

from interp.common.schema import Variable

_HEAD = ("layer", "head")
_EFFECT = "a_ij = p_ij (g_i · v_j), g = ∂m/∂z"
_SOURCE = "arXiv:2310.10348 (attribution patching)"


def _signed(name: str, axis: tuple[str, ...], over: str, formula: str) -> dict[str, Variable]:
    """A sum of effects, and that of the positive and of the negative cells alone."""
    return {
        f"{name}{suffix}": Variable((*_HEAD, *axis), "metric", f"{what}{over}", formula.replace("a_", mark), _SOURCE)
        for suffix, what, mark in (
            ("", "effect ", "a_"),
            ("_positive", "effect of what speaks for the metric ", "a⁺_"),
            ("_negative", "effect of what speaks against it ", "a⁻_"),
        )
    }


ATTRIBUTION: dict[str, Variable] = {
    **_signed("effect", (), "of a head, to first order: what m would lose without it", "Σ_i z_i · g_i = Σ_ij a_ij"),
    **_signed("effect_by_key", ("key",), "of what heads read at this token", "Σ_i a_ij"),
    **_signed("effect_by_query", ("query",), "of what heads give to this token", "Σ_j a_ij"),
    **_signed("effect_by_distance", ("distance",), "of reading at this distance", "Σ_{i−j=Δ} a_ij"),
    **_signed("effect_map", ("map_query", "map_key"), "of the pairs in this cell of the map", "Σ a_ij"),
    **_signed("effect_by_pair", ("pair",), "on scores of a frequency pair of q", "Σ_i q_i,pair · ∂m/∂q_i,pair"),
    "effect_of_rest": Variable(
        _HEAD, "metric", "the same of the features of q that do not turn", "Σ_i q_i,rest · ∂m/∂q_i,rest", _SOURCE
    ),
    "score_effect": Variable(
        _HEAD,
        "metric",
        "effect of a head's scores: how m moves as all of them are scaled alike; the sum over pairs and rest",
        "Σ_ij x_ij ∂m/∂x_ij, x = scale · q·k, ∂m/∂s_ij = p_ij (g_i·v_j − g_i·z_i)",
        _SOURCE,
    ),
    "query_effect": Variable(
        (*_HEAD, "stage"), "metric", "effect of a head's queries at this stage", "Σ_i q_i · ∂m/∂q_i", _SOURCE
    ),
    "key_effect": Variable(
        ("layer", "kv_head", "stage"),
        "metric",
        "effect of a kv head's keys at this stage",
        "Σ_j k_j · ∂m/∂k_j",
        _SOURCE,
    ),
    "value_effect": Variable(
        ("layer", "kv_head"),
        "metric",
        "effect of a kv head's values: that of the heads that use it",
        "Σ_j v_j · ∂m/∂v_j",
        _SOURCE,
    ),
}

TOP_EDGES: dict[str, Variable] = {
    "layer": Variable(("rank",), "", "layer of the head", ""),
    "head": Variable(("rank",), "", "the head", ""),
    "effect": Variable(("rank",), "metric", "effect of one query reading one key", _EFFECT, _SOURCE),
    "query": Variable(("rank",), "", "index of the query", ""),
    "key": Variable(("rank",), "", "index of the key", ""),
    "distance": Variable(("rank",), "token", "query position − key position", "Δ"),
    "query_token": Variable(("rank",), "", "the query's token", "str_tokens of the capture"),
    "key_token": Variable(("rank",), "", "the key's token", "str_tokens of the capture"),
}

TOP_TOKENS: dict[str, Variable] = {
    "token": Variable(("rank",), "", "the token", "str_tokens of the capture"),
    "position": Variable(("rank",), "", "its position", ""),
    "effect": Variable(("rank",), "metric", "effect of the token over the heads asked for", "Σ_heads Σ a_ij", _SOURCE),
    "effect_positive": Variable(("rank",), "metric", "its part that speaks for the metric", "Σ a⁺_ij", _SOURCE),
    "effect_negative": Variable(("rank",), "metric", "its part that speaks against it", "Σ a⁻_ij", _SOURCE),
}

_PATCHING = "arXiv:2004.12265, arXiv:2202.05262"
ACTIVATION_PATCHING: dict[str, Variable] = {
    "metric": Variable(_HEAD, "metric", "the metric with this part put in from the clean text", "m", _PATCHING),
    "restored": Variable(
        _HEAD,
        "1",
        "share of the gap between corrupted and clean that this part brings back",
        "(m(patched) − m(corrupted)) / (m(clean) − m(corrupted))",
        _PATCHING,
    ),
}

ATTRIBUTION_PATCHING: dict[str, Variable] = {
    "change": Variable(
        _HEAD, "metric", "change of the metric by a patch, to first order", "Σ (x_clean − x) · ∂m/∂x", _SOURCE
    )
}

KNOCK_OUT_SWEEP: dict[str, Variable] = {
    "metric": Variable(_HEAD, "metric", "the metric without this", "m", "arXiv:1905.10650"),
    "change": Variable(
        _HEAD, "metric", "change of the metric by doing without", "m(without) − m", "arXiv:1905.10650, arXiv:2304.14767"
    ),
}

DIRECT_LOGIT_ATTRIBUTION: dict[str, Variable] = {
    "logit": Variable(
        (*_HEAD, "key"),
        "logit",
        "what a head adds to the token's logit by reading this key, later layers left out",
        "p_ij v_j W_O · direction",
        "arXiv:2211.00593",
    )
}
