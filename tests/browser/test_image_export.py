"""Figures become images through the system's browser, and say what to install where there is none."""

import shutil
import struct

import plotly.graph_objects as go
import pytest

from hooks.errors import ImageExportError
from interp import plots

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture
def figure():
    return go.Figure(go.Scatter(x=[1, 2, 3], y=[3, 1, 2])).update_layout(title={"text": "Three points"}, height=300)


@pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="images need Chromium or Chrome on the PATH")
def test_png_and_svg(figure, tmp_path):
    png = plots.save(figure, tmp_path / "f.png", width=500, scale=2).read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", png[16:24]) == (1000, 600)
    svg = plots.save(figure, tmp_path / "f.svg").read_text(encoding="utf-8")
    assert svg.startswith("<svg") and "Three points" in svg


def test_no_browser_is_said(figure, tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "nothing"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageExportError, match="apt install chromium"):
        plots.save(figure, tmp_path / "f.png")
    assert not (tmp_path / "f.png").exists()
