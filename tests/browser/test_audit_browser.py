"""The page of an audit in a real browser: from disk, the network cut, on a desk and on a phone, in both colours."""

import contextlib
import itertools
import shutil
from pathlib import Path

import pytest
from tiny_hooked import tiny_config, tiny_model

from hooks import RopeConfig
from interp import audit

playwright = pytest.importorskip(
    "playwright.sync_api", reason="the browser tests need playwright: pip install playwright"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the browser tests need Chromium or Chrome on the PATH")

HERE = Path(__file__).parent
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
OVERLAPS, LOW_CONTRAST, UNNAMED = (
    (HERE / f"{name}.js").read_text(encoding="utf-8") for name in ("overlaps", "low_contrast", "unnamed")
)
KINDS = ("sliding_attention", "full_attention")
ROPES = {KINDS[0]: RopeConfig(rope_theta=100.0), KINDS[1]: RopeConfig(rope_theta=1e4)}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A model of two rotations, one without any, a config alone; as addresses."""
    folder = tmp_path_factory.mktemp("audits")
    hostile = "</script><img src=x onerror=alert(1)>{{ 7 * 7 }}"
    models = {
        "two": tiny_model(layer_types=KINDS, window_size=99, rope=ROPES, model_name=hostile),
        "none": tiny_model(rope=None, qk_norm=None),
        "config": tiny_config(model_name="config alone"),
    }
    return {name: audit(model).report(folder / f"{name}.html").as_uri() for name, model in models.items()}


@contextlib.contextmanager
def opened(browser, address, viewport=DESK, scheme="light"):
    """The drawn page; nothing that it logs, asks for or pops up goes unnoticed."""
    context = browser.new_context(viewport=viewport, color_scheme=scheme, offline=True)
    page, trouble = context.new_page(), []
    page.on("console", lambda message: trouble.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: (trouble.append(f"dialog {dialog.message}"), dialog.dismiss()))
    own = (address, "data:", "blob:")
    page.on("request", lambda asked: trouble.append(asked.url) if not asked.url.startswith(own) else None)
    page.goto(address)
    page.wait_for_selector("html[data-drawn=true]", timeout=20_000)
    yield page
    assert not trouble
    context.close()


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["1280", "390"])
@pytest.mark.parametrize("which", ["two", "none", "config"])
def test_it_opens_from_disk_and_nothing_overlaps_or_is_cut(browser, pages, which, viewport):
    with opened(browser, pages[which], viewport) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        assert page.evaluate(OVERLAPS) == [], page.evaluate(OVERLAPS)
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        assert page.evaluate(OVERLAPS) == []
        cells = page.evaluate("[...document.querySelectorAll('td')].map((cell) => cell.textContent)")
        assert cells and "nan" not in " ".join(cells).lower().split() and "49" not in page.inner_text("h1")
        assert ("Not known here: only the config was read" in page.inner_text("#heads")) == (which == "config")


def test_both_colours_are_legible_and_readers_without_sight_get_words(browser, pages):
    with opened(browser, pages["two"], scheme="dark") as page:
        assert page.get_attribute("html", "data-theme") == "dark"
        assert page.evaluate(LOW_CONTRAST) == []
        page.click("#theme")
        page.wait_for_timeout(700)
        assert page.get_attribute("html", "data-theme") == "light"
        assert page.evaluate(LOW_CONTRAST) == []
        assert page.evaluate(UNNAMED) == []
        levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((h) => Number(h.tagName[1]))")
        assert levels[0] == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
        marks = "(p) => p.querySelectorAll('.trace, .hm, .cbfills').length"
        drawn = page.evaluate(f"[...document.querySelectorAll('.plot')].map({marks})")
        assert len(drawn) == 6 and all(drawn)
