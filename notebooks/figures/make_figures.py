"""Draw the README's figures with the tool itself: attention against distance in Gemma 3 270M, the report, the explorer.

The figure of the claims is taken as it stands from the executed notebook.

    .venv/bin/python notebooks/figures/make_figures.py

Needs playwright and Chromium or Chrome on the PATH, which render the figures to PNG.
"""

import base64
import shutil
import sys
import tempfile
import threading
from pathlib import Path

import nbformat
from playwright.sync_api import sync_playwright

from hooks import HookedTransformer
from interp import Capture, capture, plots, report
from interp.analyses.position.distance import positional_bias
from interp.common.binning import bin_distances
from interp.explorer.questions import Explorer
from interp.explorer.server import ExplorerServer
from interp.texts.texts import standard_text

HERE = Path(__file__).parent
N_TOKENS = 4096
WIDTH, HEIGHT = 1280, 460
REPORT_HEIGHT = 1320
SHOWN_HEAD = "L5H1"
MAP_TOKENS, MAP_HEIGHT = 32_768, 720
# A head over the whole text, and one pair of it: a token looks 5,925 tokens back, to what followed it there.
MAP_VIEWS = {"explorer_whole": "h=5.1", "explorer_tokens": "h=5.1&q=8115&k=2190&at=2191.5,8116.5,0.024"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def distance_page(cap: Capture) -> str:
    """Both kinds of layers side by side, as an HTML page."""
    bias = bin_distances(positional_bias(cap)).assign_attrs(n_layers=cap.cfg.n_layers)
    kinds = {"sliding_attention": "Sliding layers (window 512)", "full_attention": "Full layers"}
    parts = []
    for kind, title in kinds.items():
        layers = [layer for layer in cap.layers if cap.cfg.layer_type(layer) == kind]
        figure = plots.attention_by_distance(bias.sel(layer=layers), title=title, y_range=(1e-5, 1.0))
        figure.update_layout(width=WIDTH // 2 - 8, height=HEIGHT - 16)
        parts.append(figure.to_html(full_html=False, include_plotlyjs=not parts, config={"displayModeBar": False}))
    return f'<body style="margin:8px 0;display:flex;background:white">{"".join(parts)}</body>'


def screenshot(address: str, target: Path, height: int, wait_for: str) -> None:
    """Screenshot a page of a file, once an element is there."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"no browser found: install one of {', '.join(BROWSERS)}")
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = started.new_page(viewport={"width": WIDTH, "height": height})
        page.goto(address)
        page.wait_for_selector(wait_for)
        page.wait_for_timeout(1000)
        page.screenshot(path=target)
        started.close()


def explorer_stills(cap: Capture) -> None:
    """The explorer at each of its views."""
    server = ExplorerServer(Explorer(cap))
    threading.Thread(target=server.serve).start()
    for name, view in MAP_VIEWS.items():
        screenshot(f"{server.address}#{view}", HERE / f"{name}.png", MAP_HEIGHT, "#explorer[data-ready=true]")
    server.stop()


def claims_figure() -> bytes:
    """The PNG under the one cell of notebook 6 that says the README shows its figure."""
    notebook = nbformat.read(HERE.parent / "06_claims.ipynb", as_version=4)
    (cell,) = (cell for cell in notebook.cells if "README.md shows this figure" in cell.source)
    (png,) = (out.data["image/png"] for out in cell.outputs if "image/png" in out.get("data", {}))
    return base64.b64decode(png)


if __name__ == "__main__":
    (HERE / "claims.png").write_bytes(claims_figure())
    model = HookedTransformer.from_pretrained("gemma3-270m")
    text = capture(model, standard_text(), n_tokens=N_TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(distance_page(text), encoding="utf-8")
        screenshot(page.as_uri(), HERE / "attention_by_distance.png", HEIGHT, ".scatterlayer")
        made = report(text, Path(folder) / "report.html")
        screenshot(f"{made.as_uri()}#{SHOWN_HEAD}", HERE / "report.png", REPORT_HEIGHT, "html[data-drawn=true]")
    explorer_stills(capture(model, standard_text(), n_tokens=MAP_TOKENS, layers=(4, 5), loss=False))
