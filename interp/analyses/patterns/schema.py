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
