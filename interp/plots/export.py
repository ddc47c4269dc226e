"""Figures as files: PNG, SVG and PDF through kaleido and the system's Chromium, or a page of their own."""

from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from hooks.errors import ImageExportError
from interp.common.files import check_writable, write_text

_IMAGES = ("png", "svg", "pdf", "webp", "jpg", "jpeg")
_WIDTH = 960


def save(
    figure: go.Figure, path: str | Path, *, width: int = _WIDTH, height: int | None = None, scale: float = 2
) -> Path:
    """Write a figure to a file; its ending says how: .png, .svg, .pdf, .webp, .jpg or .html.

    Args:
        figure: what any function of `interp.plots` returns.
        path: where to put it.
        width: width in CSS pixels.
        height: height in CSS pixels; by default the figure's own.
        scale: pixels of a PNG per CSS pixel.

    Raises:
        ImageExportError: an unknown ending, or no kaleido or no browser to draw images with.
        OutputError: the file cannot be written.
    """
    kind = Path(path).suffix.lower().lstrip(".")
    if kind == "html":
        return write_text(path, figure.to_html(include_plotlyjs=True, full_html=True))
    if kind not in _IMAGES:
        raise ImageExportError(f"{str(path)!r}: the ending must be one of .{', .'.join(_IMAGES)} or .html")
    target = check_writable(path)
    try:
        import kaleido  # noqa: F401  (plotly's own message would tell to install an unsuitable version)
    except ImportError:
        raise ImageExportError(
            "images need kaleido: pip install 'ropescope[images]'; or save the figure as .html, which needs nothing"
        ) from None
    layout: Any = figure.layout
    try:
        figure.write_image(target, width=width, height=height or layout.height, scale=scale)
    except Exception as error:
        if not _browser_is_missing(error):
            raise
        raise ImageExportError(
            "images are drawn by Chromium or Chrome, and none was found: install one (apt install chromium, or "
            "plotly_get_chrome), or set BROWSER_PATH to it; .html needs none"
        ) from None
    return target


def _browser_is_missing(error: Exception) -> bool:
    """Whether kaleido failed because it found no browser that it can start."""
    names = {type(cause).__name__ for cause in (error, error.__cause__, error.__context__)}
    return bool(names & {"ChromeNotFoundError", "BrowserDepsError", "BrowserFailedError"}) or "Chrome" in str(error)
