"""What a figure is given, checked where it comes in: the result that it draws, and the options that figures share."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import plotly.graph_objects as go
import xarray as xr

from hooks import checks
from hooks.errors import InputError, RopescopeError

_P = ParamSpec("_P")
_FOREIGN = (KeyError, IndexError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError)


def drawn(draw: Callable[_P, go.Figure]) -> Callable[_P, go.Figure]:
    """A figure's function, that says by name what it cannot draw.

    Which variables and coordinates a result needs is what the function reads of it; where reading fails, so that the
    result is of another analysis or a part that lacks something, the error says which result was given.
    """

    @wraps(draw)
    def checked(*args: _P.args, **options: _P.kwargs) -> go.Figure:
        _check_options(options)
        try:
            return draw(*args, **options)
        except RopescopeError:
            raise
        except _FOREIGN as error:
            if isinstance(error, TypeError) and not args and not options:
                raise  # Python's own, of an argument that is missing
            given = [*args, *options.values()][0]
            first = (str(error).splitlines() or [""])[0]
            raise InputError(
                f"plots.{draw.__name__} cannot draw {in_words(given)} ({type(error).__name__}: {first}); its "
                "description says which result it draws, and plots.show picks the figure of a result"
            ) from error

    return checked


def in_words(given: object) -> str:
    """What a figure was given: of a Dataset its variables and dimensions."""
    if isinstance(given, xr.Dataset):
        return f"a Dataset of {', '.join(map(str, given)) or 'nothing'} over {', '.join(map(str, given.sizes))}"
    if isinstance(given, xr.DataArray):
        return f"a DataArray {given.name or ''} over ({', '.join(map(str, given.dims))})"
    return checks.shown(given)


def _check_options(options: dict[str, Any]) -> None:
    """Raise for an option of many figures that is none."""
    if options.get("title") is not None:
        checks.text("title", options["title"])
    if options.get("ceiling") is not None:
        checks.number("ceiling", options["ceiling"], above=0)
    if "weighted" in options:
        checks.flag("weighted", options["weighted"])
    for name in ("layer", "head"):
        if options.get(name) is not None:
            checks.whole(name, options[name])
    y_range = options.get("y_range")
    if y_range is not None:
        if not isinstance(y_range, tuple | list) or len(y_range) != 2:
            raise InputError(f"y_range={checks.shown(y_range)}: give the lowest and the highest value")
        low, high = (checks.number("y_range", end, above=0) for end in y_range)
        if low >= high:
            raise InputError(f"y_range={checks.shown(y_range)}: the lowest value comes first")
