"""Results show themselves in Jupyter: a Dataset with a known figure as that figure above xarray's own table.

`register` tells a running IPython by class name, so nothing heavy is imported before something is shown. A Dataset
that none of our analyses made is left to xarray, as if this module were not there.
"""

import sys
from typing import Any

_TYPES = (("xarray.core.dataset", "Dataset"), ("xarray.core.dataarray", "DataArray"))


def register() -> None:
    """Teach a running IPython to draw results; nothing happens outside of one, and a second call changes nothing."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None:
        return
    formatter = shell.display_formatter.ipython_display_formatter
    for module, name in _TYPES:
        formatter.for_type_by_name(module, name, _show_result)


def _show_result(result: Any) -> None:
    """Figure and table of a result; NotImplementedError hands anything else back to IPython's usual display."""
    if "analysis" not in result.attrs:
        raise NotImplementedError
    from interp import plots

    if not plots.can_show(result):
        raise NotImplementedError
    try:
        figure = plots.show(result)
    except (KeyError, IndexError, ValueError):  # a part from which a variable that the figure needs was dropped
        raise NotImplementedError from None
    _display(figure, result._repr_html_())


def _display(*parts: Any) -> None:
    """Show figures as plotly does and text as HTML."""
    from IPython.display import HTML, display

    for part in parts:
        display(HTML(part) if isinstance(part, str) else part)
