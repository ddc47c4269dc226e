"""What the variables of another rotation and of shifted positions are."""

from interp.analyses.position.schema import LOSS_BY_POSITION
from interp.common.schema import Variable, led_by
from interp.measure.schema import VARIABLES

WHAT_IF_ROPE: dict[str, Variable] = {
    **led_by(VARIABLES, "variant", "layer"),
    **led_by({name: LOSS_BY_POSITION[name] for name in ("loss_mean", "loss_stderr")}, "variant"),
}

RELATIVITY_ERROR: dict[str, Variable] = {
    "relativity_error": Variable(
        ("layer", "head", "shift"),
        "1",
        "change of the scores when all positions move by the shift, as a share of their own spread; 0: relative",
        "score_change_rms / score_std",
        "arXiv:2104.09864 §3.2",
    ),
    "score_change_rms": Variable(
        ("layer", "head", "shift"), "score", "root mean square change of a score", "sqrt(mean (s'_ij − s_ij)²)"
    ),
    "score_change_max": Variable(
        ("layer", "head", "shift"), "score", "largest change of a score", "max |s'_ij − s_ij|"
    ),
    "score_std": Variable(
        ("layer", "head"),
        "score",
        "standard deviation of the scores where they are",
        "sqrt(mean (s_ij − mean)²)",
    ),
}
