"""Analysis of captured q and k: exact attention statistics at any length, bounds, figures and reports.

Names are imported on first use, so that ``import interp`` stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp import plots
    from interp.captures import Capture, capture
    from interp.positional import positional_bias
    from interp.ranges import score_bound
    from interp.reports import report
    from interp.statistics import attention_statistics
    from interp.texts import standard_text

_HOME = {
    "Capture": "interp.captures",
    "attention_statistics": "interp.statistics",
    "capture": "interp.captures",
    "plots": "interp.plots",
    "positional_bias": "interp.positional",
    "report": "interp.reports",
    "score_bound": "interp.ranges",
    "standard_text": "interp.texts",
}

__all__ = [
    "Capture",
    "attention_statistics",
    "capture",
    "plots",
    "positional_bias",
    "report",
    "score_bound",
    "standard_text",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'interp' has no attribute {name!r}; it offers {', '.join(__all__)}")
    module = import_module(_HOME[name])
    return module if _HOME[name] == f"interp.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
