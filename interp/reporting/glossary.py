"""The words of the report, explained where they are read; what is a variable says what its table says."""

from interp.analyses.patterns.schema import TOP_KEYS
from interp.analyses.position.schema import FREQUENCY_BIAS, POSITIONAL_BIAS
from interp.analyses.position.sinks import SINK_THRESHOLD
from interp.analyses.scores.schema import STAGE_RANGES
from interp.common.schema import COORDINATES, Variable
from interp.measure.schema import VARIABLES


def _said(variable: Variable, besides: str = "") -> str:
    """What a variable is and how it is computed, and a remark for the reader of a report."""
    said = f"{variable.description}: {variable.formula}"
    return f"{said}; {besides}" if besides else said


_BOUND = ("bound", _said(STAGE_RANGES["bound"], "none without QK-norm, clip or cap"))

GLOSSARY: dict[str, tuple[tuple[str, str], ...]] = {
    "panel": (
        ("attention, p", _said(TOP_KEYS["attention"], "the softmax of the scores, so that a row sums to 1")),
        ("score, s", _said(TOP_KEYS["score"], "scale · q·k, soft-cap and mask included")),
        ("per pair", _said(POSITIONAL_BIAS["attention_mean"])),
        ("share", _said(POSITIONAL_BIAS["attention_share"], "whatever the number of pairs")),
        (
            "frequency pair",
            "RoPE turns features in pairs, each at its own speed. A score is a sum over pairs, so the mean score at a "
            "distance splits exactly into what bands of pairs of like wavelength add; the grey area spans all scores",
        ),
        ("wavelength, λ", _said(FREQUENCY_BIAS["wavelength"])),
        _BOUND,
        ("weighted by value", _said(VARIABLES["received_value"], "as a share of all of it; sinks often move little")),
        ("kv head", "the key and value head that this query head reads; several query heads may share one"),
    ),
    "distance": (
        ("distance, Δ", f"{COORDINATES['distance']['description']}, in {COORDINATES['distance']['units']}s"),
        ("sliding layer", "a layer whose queries see the last keys only, as many as its window"),
        ("full layer", "a layer whose queries see every key before them"),
        ("visible pair", "a query and a key that the mask lets it see"),
    ),
    "ranges": (
        ("QK-norm", "normalises q and k of each head, so that their size is set by learned gains"),
        ("RoPE", "turns pairs of features of q and k by an angle that grows with the position"),
        _BOUND,
        ("float16", "its largest number is 65,504: a larger q·k overflows when scores are computed in float16"),
    ),
    "sinks": (
        ("attention sink", "a token that takes attention whatever the query is about; mostly the first one"),
        ("sink head", f"a head with more than {SINK_THRESHOLD:.0%} of its attention on the first token"),
        ("positional R²", _said(POSITIONAL_BIAS["positional_r2"])),
    ),
}
