"""Analysis of captured q and k: exact attention statistics at any length, bounds, figures and reports.

Names are imported on first use, so that ``import interp`` stays fast.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp import metrics, plots
    from interp.analyses.causes.attributing import attribution, top_edges, top_tokens
    from interp.analyses.causes.direct import direct_logit_attribution
    from interp.analyses.causes.patching import activation_patching, attribution_patching, knock_out_sweep
    from interp.analyses.counterfactual.relativity import relativity_error
    from interp.analyses.counterfactual.what_if import what_if_rope
    from interp.analyses.heads.comparison import compare, ranked
    from interp.analyses.heads.needle_grid import needle_sweep
    from interp.analyses.heads.summary import head_summary, head_table, typical_heads
    from interp.analyses.patterns.covering import coverage
    from interp.analyses.patterns.windows import attention_map, attention_pattern
    from interp.analyses.position.distance import positional_bias, typical_distance
    from interp.analyses.position.frequencies import frequency_bias
    from interp.analyses.position.losses import loss_by_position
    from interp.analyses.position.received import received_by_position
    from interp.analyses.position.sinks import first_token_mass, sink_rate
    from interp.analyses.scores.bound import score_bound
    from interp.analyses.scores.by_variant import score_ranges
    from interp.analyses.scores.layer_bounds import bound_by_distance
    from interp.analyses.scores.precision import precision_cost
    from interp.auditing.auditing import audit
    from interp.captures import Capture, capture, open_capture, resume
    from interp.corpus.corpora import Corpus, open_corpus
    from interp.corpus.measuring import measure_corpus
    from interp.measure.quantiles import score_quantile
    from interp.measure.statistics import attention_statistics
    from interp.reporting.page import report
    from interp.texts.needles import plant_needle
    from interp.texts.repeated import repeated_tokens
    from interp.texts.texts import standard_text
    from interp.training.watching import ScoreWatch, watch_scores

_HOME = {
    "Capture": "interp.captures",
    "Corpus": "interp.corpus.corpora",
    "ScoreWatch": "interp.training.watching",
    "activation_patching": "interp.analyses.causes.patching",
    "attention_map": "interp.analyses.patterns.windows",
    "attention_pattern": "interp.analyses.patterns.windows",
    "attention_statistics": "interp.measure.statistics",
    "audit": "interp.auditing.auditing",
    "attribution": "interp.analyses.causes.attributing",
    "attribution_patching": "interp.analyses.causes.patching",
    "bound_by_distance": "interp.analyses.scores.layer_bounds",
    "capture": "interp.captures",
    "compare": "interp.analyses.heads.comparison",
    "coverage": "interp.analyses.patterns.covering",
    "direct_logit_attribution": "interp.analyses.causes.direct",
    "first_token_mass": "interp.analyses.position.sinks",
    "frequency_bias": "interp.analyses.position.frequencies",
    "head_summary": "interp.analyses.heads.summary",
    "head_table": "interp.analyses.heads.summary",
    "knock_out_sweep": "interp.analyses.causes.patching",
    "loss_by_position": "interp.analyses.position.losses",
    "measure_corpus": "interp.corpus.measuring",
    "metrics": "interp.metrics",
    "needle_sweep": "interp.analyses.heads.needle_grid",
    "open_capture": "interp.captures",
    "open_corpus": "interp.corpus.corpora",
    "plant_needle": "interp.texts.needles",
    "plots": "interp.plots",
    "positional_bias": "interp.analyses.position.distance",
    "precision_cost": "interp.analyses.scores.precision",
    "ranked": "interp.analyses.heads.comparison",
    "received_by_position": "interp.analyses.position.received",
    "relativity_error": "interp.analyses.counterfactual.relativity",
    "repeated_tokens": "interp.texts.repeated",
    "report": "interp.reporting.page",
    "resume": "interp.captures",
    "score_bound": "interp.analyses.scores.bound",
    "score_quantile": "interp.measure.quantiles",
    "score_ranges": "interp.analyses.scores.by_variant",
    "sink_rate": "interp.analyses.position.sinks",
    "standard_text": "interp.texts.texts",
    "top_edges": "interp.analyses.causes.attributing",
    "top_tokens": "interp.analyses.causes.attributing",
    "typical_distance": "interp.analyses.position.distance",
    "typical_heads": "interp.analyses.heads.summary",
    "watch_scores": "interp.training.watching",
    "what_if_rope": "interp.analyses.counterfactual.what_if",
}

__all__ = [
    "Capture",
    "Corpus",
    "ScoreWatch",
    "activation_patching",
    "attention_map",
    "attention_pattern",
    "attention_statistics",
    "attribution",
    "attribution_patching",
    "audit",
    "bound_by_distance",
    "capture",
    "compare",
    "coverage",
    "direct_logit_attribution",
    "first_token_mass",
    "frequency_bias",
    "head_summary",
    "head_table",
    "knock_out_sweep",
    "loss_by_position",
    "measure_corpus",
    "metrics",
    "needle_sweep",
    "open_capture",
    "open_corpus",
    "plant_needle",
    "plots",
    "positional_bias",
    "precision_cost",
    "ranked",
    "received_by_position",
    "relativity_error",
    "repeated_tokens",
    "report",
    "resume",
    "score_bound",
    "score_quantile",
    "score_ranges",
    "sink_rate",
    "standard_text",
    "top_edges",
    "top_tokens",
    "typical_distance",
    "typical_heads",
    "watch_scores",
    "what_if_rope",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'interp' has no attribute {name!r}; it offers {', '.join(__all__)}")
    module = import_module(_HOME[name])
    return module if _HOME[name] == f"interp.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return __all__


if "IPython" in sys.modules:  # results draw themselves in a notebook; without one nothing of it is imported
    from interp.display import register

    register()
