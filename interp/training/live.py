"""A figure in Jupyter that is drawn again as its numbers change."""

import sys
import time
from typing import Any

import xarray as xr

from hooks.errors import InputError
from interp import plots

_SECONDS = 2.0


class LiveFigure:
    """One output of a notebook's cell, replaced at most every other second.

    Raises:
        InputError: there is no Jupyter to show it in.
    """

    def __init__(self) -> None:
        ipython = sys.modules.get("IPython")
        if ipython is None or ipython.get_ipython() is None:
            raise InputError(
                "show() draws in Jupyter, which is not running: plots.show(watch.dataset()) works anywhere"
            )
        self._handle: Any = None
        self._drawn = -_SECONDS

    def due(self) -> bool:
        """Whether it is time to draw again."""
        return time.monotonic() - self._drawn >= _SECONDS

    def update(self, result: xr.Dataset) -> None:
        """Draw this result in the place of the last one."""
        from IPython.display import display

        # As plotly would show it, but in an output that can be replaced.
        bundle = plots.show(result)._repr_mimebundle_()
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)
        self._drawn = time.monotonic()
