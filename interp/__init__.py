"""Analysis of captured q and k: exact attention statistics at any length, bounds, figures and reports.

Names are imported on first use, so that ``import interp`` stays fast.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp import plots
    from interp.captures import Capture, capture
    from interp.comparison import compare, ranked
    from interp.frequencies import frequency_bias
    from interp.heads import head_summary, head_table, typical_heads
    from interp.layer_bounds import bound_by_distance
    from interp.losses import loss_by_position
    from interp.needles import plant_needle
    from interp.patterns import attention_map, attention_pattern
    from interp.positional import positional_bias, typical_distance
    from interp.precision import precision_cost
    from interp.ranges import score_bound, score_quantile
    from interp.received import received_by_position
    from interp.relativity import relativity_error
    from interp.repeated_text import repeated_tokens
    from interp.reports import report
    from interp.score_table import score_ranges
    from interp.sinks import first_token_mass, sink_rate
    from interp.statistics import attention_statistics
    from interp.storage.capture_files import open_capture
    from interp.storage.capture_resume import resume
    from interp.texts import standard_text
    from interp.what_if import what_if_rope

_HOME = {
    "Capture": "interp.captures",
    "attention_map": "interp.patterns",
    "attention_pattern": "interp.patterns",
    "attention_statistics": "interp.statistics",
    "bound_by_distance": "interp.layer_bounds",
    "capture": "interp.captures",
    "compare": "interp.comparison",
    "first_token_mass": "interp.sinks",
    "frequency_bias": "interp.frequencies",
    "head_summary": "interp.heads",
    "head_table": "interp.heads",
    "loss_by_position": "interp.losses",
    "open_capture": "interp.storage.capture_files",
    "plant_needle": "interp.needles",
    "plots": "interp.plots",
    "positional_bias": "interp.positional",
    "precision_cost": "interp.precision",
    "ranked": "interp.comparison",
    "received_by_position": "interp.received",
    "relativity_error": "interp.relativity",
    "repeated_tokens": "interp.repeated_text",
    "report": "interp.reports",
    "resume": "interp.storage.capture_resume",
    "score_bound": "interp.ranges",
    "score_quantile": "interp.ranges",
    "score_ranges": "interp.score_table",
    "sink_rate": "interp.sinks",
    "standard_text": "interp.texts",
    "typical_distance": "interp.positional",
    "typical_heads": "interp.heads",
    "what_if_rope": "interp.what_if",
}

__all__ = [
    "Capture",
    "attention_map",
    "attention_pattern",
    "attention_statistics",
    "bound_by_distance",
    "capture",
    "compare",
    "first_token_mass",
    "frequency_bias",
    "head_summary",
    "head_table",
    "loss_by_position",
    "open_capture",
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
    "typical_distance",
    "typical_heads",
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
    from interp.figures.display import register

    register()
