"""The report over texts in a real browser: from disk, offline, on a desk and on a phone, in both colours."""

import shutil

import pytest
from tiny_corpus import N_TOKENS, quiet_model, token_rows
from zarr.storage import MemoryStore

from interp import measure_corpus
from interp.corpus.analyses import ANALYSES

playwright = pytest.importorskip(
    "playwright.sync_api", reason="the browser tests need playwright: pip install playwright"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="the browser tests need Chromium or Chrome on the PATH"),
    pytest.mark.slow,
]

HOSTILE = "</script><img src=x onerror=alert(1)><svg onload=alert(2)>{{ 7 * 7 }}\u202ereversed"
SLIDING = {"layer_types": ("sliding_attention", "full_attention"), "window_size": 13}


@pytest.fixture(scope="module")
def page_address(tmp_path_factory):
    rows = [*token_rows(6), HOSTILE]  # a text without a tokenizer fails, and its words stand in the table
    model = quiet_model(**SLIDING)
    corpus = measure_corpus(model, rows, MemoryStore(), n_tokens=N_TOKENS, analyses=list(ANALYSES))
    return corpus.report(tmp_path_factory.mktemp("corpus") / "r.html").as_uri()


@pytest.mark.parametrize(
    ("viewport", "scheme"), [({"width": 1280, "height": 900}, "light"), ({"width": 390, "height": 844}, "dark")]
)
def test_it_draws_every_figure_sorts_its_tables_and_changes_its_colours(page_address, viewport, scheme):
    trouble = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(viewport=viewport, color_scheme=scheme, offline=True).new_page()
        page.on("console", lambda m: trouble.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
        page.goto(page_address)
        page.wait_for_selector("html[data-drawn=true]", timeout=30_000)
        assert page.get_attribute("html", "data-theme") == scheme
        drawn = page.evaluate("[...document.querySelectorAll('.plot')].map(p => p.querySelector('svg') !== null)")
        assert len(drawn) > 12 and all(drawn)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth + 1")
        loss = page.locator("#texts thead button", has_text="Loss")
        loss.click()
        shown = [text for text in page.locator("#texts tbody td:nth-child(3)").all_inner_texts() if text != "–"]
        assert shown == sorted(shown, key=float, reverse=True) and len(shown) == 6
        page.click("#theme")
        assert page.get_attribute("html", "data-theme") == {"light": "dark", "dark": "light"}[scheme]
        assert page.locator("#texts img, #texts svg").count() == 0
        browser.close()
    assert trouble == []
