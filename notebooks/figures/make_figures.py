"""Draw the README's figure with the tool itself: attention against distance in Gemma 3 270M.

    .venv/bin/python notebooks/figures/make_figures.py

Needs Chromium or Chrome on the PATH, which renders the figure to PNG.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from hooks import HookedTransformer
from interp import capture, plots
from interp.positional import bin_distances, positional_bias
from interp.texts import standard_text

HERE = Path(__file__).parent
N_TOKENS = 4096
WIDTH, HEIGHT = 1280, 460
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def distance_page() -> str:
    """Both kinds of layers side by side, as an HTML page."""
    model = HookedTransformer.from_pretrained("gemma3-270m")
    cap = capture(model, standard_text(), n_tokens=N_TOKENS, stages=())
    bias = bin_distances(positional_bias(cap)).assign_attrs(n_layers=cap.cfg.n_layers)
    kinds = {"sliding_attention": "Sliding layers (window 512)", "full_attention": "Full layers"}
    parts = []
    for kind, title in kinds.items():
        layers = [layer for layer in cap.layers if cap.cfg.layer_type(layer) == kind]
        figure = plots.attention_by_distance(bias.sel(layer=layers), title=title, y_range=(1e-5, 1.0))
        figure.update_layout(width=WIDTH // 2 - 8, height=HEIGHT - 16)
        parts.append(figure.to_html(full_html=False, include_plotlyjs=not parts, config={"displayModeBar": False}))
    return f'<body style="margin:8px 0;display:flex;background:white">{"".join(parts)}</body>'


def render(html: str, target: Path) -> None:
    """Screenshot a page."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"no browser found: install one of {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "page.html"
        page.write_text(html, encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=10000"]
        options += [f"--user-data-dir={scratch}/profile", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={target}"]
        subprocess.run([browser, *options, page.as_uri()], check=True, capture_output=True)


if __name__ == "__main__":
    render(distance_page(), HERE / "attention_by_distance.png")
