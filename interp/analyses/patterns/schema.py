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
