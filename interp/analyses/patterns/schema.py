"""What the variables of attention patterns on demand are."""

from interp.common.schema import Variable

ATTENTION_PATTERN: dict[str, Variable] = {
    "attention_pattern": Variable(("query", "key"), "1", "attention of <head>", "exp(s_ij − lse_i)")
}

ATTENTION_MAP: dict[str, Variable] = {
    "attention_map": Variable(("map_query", "map_key"), "1", "attention of <head>", "<reduce> p_ij")
}

TOP_KEYS: dict[str, Variable] = {
    "key": Variable(("rank",), "", "index of the key", ""),
    "attention": Variable(("rank",), "1", "attention of the query to the key", "exp(s_ij − lse_i)"),
    "score": Variable(("rank",), "score", "score that enters softmax", "s_ij"),
    "distance": Variable(("rank",), "token", "query position − key position", "Δ"),
    "token": Variable(("rank",), "", "the key's token", "str_tokens of the capture"),
}

COVERAGE: dict[str, Variable] = {
    "coverage": Variable(
        ("layer", "head", "level", "query"),
        "key",
        "fewest keys that hold this share of the query's attention; NaN where a learned sink leaves them less",
        "min n with Σ over the n largest p_ij ≥ level",
        "arXiv:2502.20766 (FlexPrefill)",
    ),
    "coverage_mean": Variable(
        ("layer", "head", "level"),
        "key",
        "fewest keys that hold this share of a query's attention, on average",
        "mean_i coverage over the queries that reach the level",
    ),
    "coverage_max": Variable(
        ("layer", "head", "level"), "key", "the same of the query that needs the most keys", "max_i coverage"
    ),
    "coverage_queries": Variable(
        ("layer", "head", "level"), "query", "queries whose keys hold this share", "#{i: Σ_j p_ij ≥ level}"
    ),
    "gap_count": Variable(
        ("layer", "head", "gap", "query"),
        "key",
        "keys whose score is at most this far below the query's largest",
        "#{j: max_j s_ij − s_ij ≤ gap}",
        "arXiv:2605.12697",
    ),
    "gap_count_mean": Variable(
        ("layer", "head", "gap"), "key", "the same on average over the queries", "mean_i gap_count"
    ),
    "seen": Variable(("layer", "query"), "key", "keys that the query sees", "#{j: i sees j}"),
}

ENTROPY_SCALING: dict[str, Variable] = {
    "entropy_slope": Variable(
        ("layer", "head"),
        "nat",
        "growth of the entropy when a query sees e times as many keys: 1 of uniform attention, 0 of a fixed number",
        "slope of entropy_i against ln |{j: i sees j}|",
        "arXiv:2202.12172",
    ),
    "entropy_slope_stderr": Variable(
        ("layer", "head"), "nat", "standard error of entropy_slope", "Newey–West, 4 (n / 100)^(2/9) lags"
    ),
    "coverage_slope": Variable(
        ("layer", "head"),
        "1",
        "exponent with which the keys that hold <level> of the attention grow with the keys seen",
        "slope of ln coverage_i against ln |{j: i sees j}|",
    ),
    "coverage_slope_stderr": Variable(
        ("layer", "head"), "1", "standard error of coverage_slope", "Newey–West, 4 (n / 100)^(2/9) lags"
    ),
    "queries": Variable(("layer",), "query", "queries that the slopes are fitted to", "#{i: sees enough keys}"),
}

ROLLOUT: dict[str, Variable] = {
    "first_token": Variable(
        ("layer", "query"),
        "1",
        "rollout of the query on the first token, up to and including the layer",
        "(Π_{l ≤ layer} (A_l + I) / 2)_i0, A_l the mean over heads",
        "arXiv:2502.01951",
    ),
    "first_token_mean": Variable(
        ("layer",), "1", "the same on average over the queries after the first", "mean_{i > 0} first_token"
    ),
    "rollout": Variable(
        ("map_query", "map_key"),
        "1",
        "rollout through all layers of a stretch of queries, on average, on a stretch of keys",
        "mean_i Σ_j (Π_l (A_l + I) / 2)_ij",
        "arXiv:2005.00928",
    ),
}
