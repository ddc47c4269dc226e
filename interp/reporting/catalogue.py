"""Every analysis with the table of its variables, in the order in which one would read them. Imports nothing heavy."""

from interp.analyses.causes.schema import (
    ACTIVATION_PATCHING,
    ATTRIBUTION,
    ATTRIBUTION_PATCHING,
    DIRECT_LOGIT_ATTRIBUTION,
    KNOCK_OUT_SWEEP,
    TOP_EDGES,
    TOP_TOKENS,
)
from interp.analyses.counterfactual.schema import RELATIVITY_ERROR, WHAT_IF_ROPE
from interp.analyses.heads.schema import COMPARE, NEEDLE_SWEEP, RANKED, SCORES, TYPICAL_HEADS
from interp.analyses.patterns.schema import ATTENTION_MAP, ATTENTION_PATTERN, COVERAGE, TOP_KEYS
from interp.analyses.position.schema import (
    FIRST_TOKEN_MASS,
    FREQUENCY_BIAS,
    LOSS_BY_POSITION,
    POSITIONAL_BIAS,
    RECEIVED_BY_POSITION,
    SINK_RATE,
    TYPICAL_DISTANCE,
)
from interp.analyses.scores.schema import BOUND_BY_DISTANCE, PRECISION_COST, SCORE_RANGES, STAGE_RANGES
from interp.analyses.weights.schema import AUDIT_HEADS, AUDIT_LAYERS, AUDIT_ROTATIONS, AUDIT_SCHEDULES
from interp.common.schema import Table
from interp.measure.schema import ATTENTION_STATISTICS, SCORE_QUANTILE
from interp.training.schema import WATCH_SCORES

CATALOGUE: dict[str, Table] = {
    "attention_statistics": ATTENTION_STATISTICS,
    "score_quantile": SCORE_QUANTILE,
    "positional_bias": POSITIONAL_BIAS,
    "typical_distance": TYPICAL_DISTANCE,
    "frequency_bias": FREQUENCY_BIAS,
    "received_by_position": RECEIVED_BY_POSITION,
    "first_token_mass": FIRST_TOKEN_MASS,
    "sink_rate": SINK_RATE,
    "loss_by_position": LOSS_BY_POSITION,
    "attention_pattern": ATTENTION_PATTERN,
    "attention_map": ATTENTION_MAP,
    "top_keys": TOP_KEYS,
    "coverage": COVERAGE,
    "what_if_rope": WHAT_IF_ROPE,
    "relativity_error": RELATIVITY_ERROR,
    "score_ranges": SCORE_RANGES,
    "stage_ranges": STAGE_RANGES,
    "bound_by_distance": BOUND_BY_DISTANCE,
    "precision_cost": PRECISION_COST,
    "audit_rotations": AUDIT_ROTATIONS,
    "audit_schedules": AUDIT_SCHEDULES,
    "audit_layers": AUDIT_LAYERS,
    "audit_heads": AUDIT_HEADS,
    "watch_scores": WATCH_SCORES,
    "head_summary": SCORES,
    "typical_heads": TYPICAL_HEADS,
    "needle_sweep": NEEDLE_SWEEP,
    "attribution": ATTRIBUTION,
    "top_edges": TOP_EDGES,
    "top_tokens": TOP_TOKENS,
    "attribution_patching": ATTRIBUTION_PATCHING,
    "activation_patching": ACTIVATION_PATCHING,
    "knock_out_sweep": KNOCK_OUT_SWEEP,
    "direct_logit_attribution": DIRECT_LOGIT_ATTRIBUTION,
    "compare": COMPARE,
    "ranked": RANKED,
}
