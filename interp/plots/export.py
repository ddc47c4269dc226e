"""Figures as files: PNG, SVG and PDF through kaleido and the system's Chromium, or a page of their own."""

from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from hooks import checks
from hooks.errors import ImageExportError, OutputError
from interp.common.files import check_writable, write_bytes
from interp.common.marks import marked

_IMAGES = ("png", "svg", "pdf", "webp", "jpg", "jpeg")
_WIDTH = 960

_LARGEST = 100_000  # pixels


def save(
    figure: go.Figure, path: str | Path, *, width: int = _WIDTH, height: int | None = None, scale: float = 2
) -> Path:
    """Write a figure to a file; its ending says how: .png, .svg, .pdf, .webp, .jpg or .html.

    Args:
        figure: what any function of `interp.plots` returns.
        path: where to put it. A figure that was saved there before is replaced; nothing else ever is.
        width: width in CSS pixels.
        height: height in CSS pixels; by default the figure's own.
        scale: pixels of a PNG per CSS pixel.

    Raises:
        ImageExportError: an unknown ending, or no kaleido or no browser to draw images with.
        OutputError: the file cannot be written, or another one stands there.
    """
    checks.instance("figure", figure, go.Figure, "a figure of interp.plots")
    width = checks.whole("width", width, at_least=1, at_most=_LARGEST)
    height = None if height is None else checks.whole("height", height, at_least=1, at_most=_LARGEST)
    scale = checks.number("scale", scale, above=0, at_most=100)
    kind = checks.path("path", path, error=OutputError).suffix.lower().lstrip(".")
    if kind == "html":
        page = figure.to_html(include_plotlyjs=True, full_html=True)
        return write_bytes(path, marked(page.encode("utf-8", errors="backslashreplace"), kind))
    if kind not in _IMAGES:
        raise ImageExportError(f"{str(path)!r}: the ending must be one of .{', .'.join(_IMAGES)} or .html")
    check_writable(path)
    try:
        import kaleido  # noqa: F401  (plotly's own message would tell to install an unsuitable version)
    except ImportError:
        raise ImageExportError(
            "images need kaleido: pip install 'ropescope[images]'; or save the figure as .html, which needs nothing"
        ) from None
    drawn: Any = figure.layout
    try:
        image = figure.to_image(kind, width=width, height=height or drawn.height, scale=scale)
    except Exception as error:
        if not _browser_is_missing(error):
            raise
        raise ImageExportError(
            "images are drawn by Chromium or Chrome, and none was found: install one (apt install chromium, or "
            "plotly_get_chrome), or set BROWSER_PATH to it; .html needs none"
        ) from None
    return write_bytes(path, marked(image, kind))


def _browser_is_missing(error: Exception) -> bool:
    """Whether kaleido failed because it found no browser that it can start."""
    names = {type(cause).__name__ for cause in (error, error.__cause__, error.__context__)}
    return bool(names & {"ChromeNotFoundError", "BrowserDepsError", "BrowserFailedError"}) or "Chrome" in str(error)
