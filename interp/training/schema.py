"""What the variables of a watched training are."""

from interp.common.schema import Variable

_STEP = ("step", "layer", "head")

WATCH_SCORES: dict[str, Variable] = {
    "score_max": Variable(
        _STEP,
        "score",
        "largest score of a visible pair in the forward passes of the step",
        "max s_ij over the batch",
        label="largest score",
    ),
    "score_min": Variable(
        _STEP,
        "score",
        "smallest score of a visible pair in the forward passes of the step",
        "min s_ij over the batch",
        label="smallest score",
    ),
    "bound": Variable(
        _STEP,
        "score",
        "no score of this head can be larger in size (under ALiBi: higher) with the weights of the step, whatever the "
        "text and its length; NaN where there is no bound",
        "see interp.score_bound",
    ),
    "bound_reason": Variable(("layer",), "", "why there is no bound; empty where there is one", ""),
    "float16_limit": Variable(
        ("layer",), "score", "score at which q·k reaches float16's largest number", "65504 scale, soft-capped"
    ),
}
