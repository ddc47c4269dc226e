"""The words of the report, explained where they are read."""

GLOSSARY: dict[str, tuple[tuple[str, str], ...]] = {
    "panel": (
        ("attention, p", "the softmax of the scores: what share of a query's attention a key gets; a row sums to 1"),
        ("score, s", "scale · q·k, soft-cap and mask included: what enters softmax"),
        ("per pair", "attention at a distance divided by the number of pairs that lie that far apart"),
        ("share", "the part of all the head's attention that goes to a distance, whatever the number of pairs"),
        (
            "frequency pair",
            "RoPE turns features in pairs, each at its own speed. A score is a sum over pairs, so the mean score at a "
            "distance splits exactly into what bands of pairs of like wavelength add; the grey area spans all scores",
        ),
        ("wavelength, λ", "the distance in tokens over which a pair turns once, 2π / inv_freq"),
        (
            "bound",
            "the largest score that the norm's weights allow at this length; none without QK-norm, clip or cap",
        ),
        (
            "weighted by value",
            "the same share when each key counts by ‖v W_O‖, the size of what it moves: sinks often move little",
        ),
        ("kv head", "the key and value head that this query head reads; several query heads may share one"),
    ),
    "distance": (
        ("distance, Δ", "query position − key position, in tokens"),
        ("sliding layer", "a layer whose queries see the last keys only, as many as its window"),
        ("full layer", "a layer whose queries see every key before them"),
        ("visible pair", "a query and a key that the mask lets it see"),
    ),
    "ranges": (
        ("QK-norm", "normalises q and k of each head, so that their size is set by learned gains"),
        ("RoPE", "turns pairs of features of q and k by an angle that grows with the position"),
        ("bound", "scale · d_head · the largest gain of a frequency pair: the proof is in score_bound's documentation"),
        ("float16", "its largest number is 65,504: a larger q·k overflows when scores are computed in float16"),
    ),
    "sinks": (
        ("attention sink", "a token that takes attention whatever the query is about; mostly the first one"),
        ("sink head", "a head with more than 30% of its attention on the first token"),
        ("positional R²", "variance of the score between distances divided by all its variance"),
    ),
}
