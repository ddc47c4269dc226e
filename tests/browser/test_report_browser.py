"""The report in a real browser: from disk, with the network cut, on a desk and on a phone, in both colours."""

import contextlib
import itertools
import shutil
from pathlib import Path

import pytest
from tiny_hooked import random_tokens, tiny_model

from interp.captures import capture
from interp.reporting.page import report

playwright = pytest.importorskip(
    "playwright.sync_api", reason="the browser tests need playwright: pip install playwright"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the browser tests need Chromium or Chrome on the PATH")

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<svg onload=alert(2)>",
    "\u202e\u2066reversed\u200f",
    "w" * 10_000,
    "\ud800",
    "a\x00b",
    "<!--<script>",
    "{{ 7 * 7 }}",
    "`${alert(3)}`",
    "%{x}<b>bold</b>",
]
HERE = Path(__file__).parent
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def made(n=120, **changes):
    settings = {
        "n_layers": 3,
        "layer_types": ("sliding_attention", "full_attention", "sliding_attention"),
        "window_size": 48,
    }
    return capture(tiny_model(**settings | changes), random_tokens(n)[0])


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def pages(tmp_path_factory):
    """A plain report, one on hostile text, one that compares; as addresses."""
    folder = tmp_path_factory.mktemp("reports")
    cap = made()
    plain = report(cap, folder / "plain.html")
    both = report(cap, folder / "both.html", compare_with=made(qk_norm=None))
    cap.str_tokens = [HOSTILE[i % len(HOSTILE)] for i in range(len(cap.tokens))]
    cap.model_id = cap.provenance["model"]["name"] = "".join(HOSTILE[:3])
    cap.provenance["text"]["read"] = "file " + "".join(HOSTILE)
    (folder / "a <b>'\"&? #").mkdir()
    hostile = report(cap, folder / "a <b>'\"&? #" / "<img src=x onerror=alert(1)>.html".replace("/", ""))
    return {"plain": plain.as_uri(), "both": both.as_uri(), "hostile": hostile.as_uri()}


@contextlib.contextmanager
def opened(browser, address, viewport=DESK, scheme="light"):
    """The drawn page; nothing that it logs, asks for or pops up goes unnoticed."""
    context = browser.new_context(viewport=viewport, color_scheme=scheme, offline=True)
    page = context.new_page()
    trouble = []
    page.on("console", lambda message: trouble.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: (trouble.append(f"dialog {dialog.message}"), dialog.dismiss()))
    own = address.split("#")[0]
    page.on(
        "request",
        lambda asked: trouble.append(asked.url) if not asked.url.startswith((own, "data:", "blob:")) else None,
    )
    page.goto(address)
    page.wait_for_selector("html[data-drawn=true]", timeout=20_000)
    page.wait_for_selector("#panel-map .hm image, #panel-map .heatmaplayer")
    yield page
    assert not trouble
    context.close()


def until(page, condition):
    """Wait for a condition by asking again; the page's policy forbids playwright's own way of waiting for one."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"it never came true: {condition}")


def head(page):
    return page.get_attribute("#panel", "data-head")


def drawn_curve(page):
    return page.evaluate("Array.from(document.getElementById('panel-distance').data[0].y)")


def test_it_opens_from_disk_and_draws_the_overview(browser, pages):
    with opened(browser, pages["plain"]) as page:
        assert page.get_attribute("html", "data-theme") == "light"
        assert page.locator("#grid button").count() == 12
        colours = page.evaluate("[...document.querySelectorAll('#grid button')].map((b) => b.style.background)")
        assert len(set(colours)) > 3
        marks = "(p) => p.querySelectorAll('.trace, .hm, .bars, .cbfills').length"
        figures = page.evaluate(f"[...document.querySelectorAll('.plot, .chart')].map({marks})")
        assert len(figures) >= 10 and all(figures)
        assert page.locator("#panel-tokens tr").count() == 10


def test_a_click_a_filter_a_link_and_the_keyboard_change_the_panel(browser, pages):
    with opened(browser, pages["plain"]) as page:
        page.click("#grid button[data-row='1'][data-column='2']")
        assert head(page) == "L1 H2" and page.url.endswith("#L1H2")
        before = drawn_curve(page)
        page.keyboard.press("ArrowRight")
        assert head(page) == "L1 H3" and drawn_curve(page) != before
        page.keyboard.press("ArrowDown")
        assert head(page) == "L2 H3"
        page.keyboard.press("ArrowDown")
        assert head(page) == "L2 H3"
        page.keyboard.press("n")
        assert head(page) == "L0 H0"
        page.keyboard.press("p")
        assert head(page) == "L2 H3"
        page.select_option("#only-kind", "full")
        assert head(page) == "L1 H0"
        assert page.locator("#grid button:visible:not([disabled])").count() == 4
        assert page.locator("tr[data-of-head]:visible").count() == 4
        page.select_option("#only-group", "1")
        assert head(page) == "L1 H2"
        page.evaluate("location.hash = '#L2H1'")
        page.wait_for_selector("#panel[data-head='L2 H1']")
        assert page.input_value("#only-kind") == ""
        page.select_option("#only-layer", "0")
        assert head(page) == "L0 H0"


def test_a_deep_link_opens_its_head(browser, pages):
    with opened(browser, pages["plain"] + "#L2H3") as page:
        assert head(page) == "L2 H3"
        assert page.get_attribute("#grid button[aria-selected=true]", "aria-label").startswith("L2 H3")


def test_views_of_the_panel_can_be_switched(browser, pages):
    with opened(browser, pages["plain"]) as page:
        whole = page.evaluate("document.getElementById('panel-map').data[0].z.length")
        page.click("[data-map=last]")
        until(page, "document.getElementById('panel-map').data[0].z.length === 40")
        assert whole == 120
        per_pair = drawn_curve(page)
        page.click("[data-curve=attention_share]")
        share = drawn_curve(page)
        assert share != per_pair and abs(sum(x or 0 for x in share) - 1) < 1e-3
        colours = "[...document.querySelectorAll('#grid button')].map((b) => b.style.background).join()"
        before = page.evaluate(colours)
        page.select_option("#metric", "positional_r2")
        assert page.evaluate(colours) != before
        assert "variance" in page.inner_text("#about-metric")


def test_the_table_sorts(browser, pages):
    with opened(browser, pages["plain"]) as page:
        column = "#all-heads tbody td:nth-child(3)"
        page.click("#all-heads th:nth-child(3) button")
        values = page.evaluate(f"[...document.querySelectorAll('{column}')].map((c) => Number(c.dataset.value))")
        assert values == sorted(values, reverse=True)
        page.click("#all-heads th:nth-child(3) button")
        values = page.evaluate(f"[...document.querySelectorAll('{column}')].map((c) => Number(c.dataset.value))")
        assert values == sorted(values)


OVERLAPS = (HERE / "overlaps.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["1280", "390"])
@pytest.mark.parametrize("which", ["hostile", "both"])
def test_nothing_overlaps_or_is_cut(browser, pages, which, viewport):
    with opened(browser, pages[which], viewport) as page:
        assert page.evaluate(OVERLAPS) == []
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        assert page.evaluate(OVERLAPS) == []


LOW_CONTRAST = (HERE / "low_contrast.js").read_text(encoding="utf-8")


def test_both_colours_are_legible(browser, pages):
    with opened(browser, pages["both"], scheme="dark") as page:
        assert page.get_attribute("html", "data-theme") == "dark"
        assert page.evaluate(LOW_CONTRAST) == []
        page.click("#theme")
        page.wait_for_timeout(700)
        assert page.get_attribute("html", "data-theme") == "light"
        assert page.evaluate(LOW_CONTRAST) == []


def test_hostile_text_is_shown_and_does_nothing(browser, pages):
    with opened(browser, pages["hostile"]) as page:
        assert page.locator("img").count() == 12
        assert page.evaluate("[...document.querySelectorAll('script')].length") < 20
        assert "onerror" in page.inner_text("h1")
        for _ in range(12):
            page.keyboard.press("n")
        page.click("[data-map=last]")
        until(page, "document.getElementById('panel-map').data[0].z.length === 40")
        page.hover("#panel-map .draglayer .nsewdrag", position={"x": 30, "y": 150})
        page.wait_for_timeout(300)
        assert page.locator("#panel-map img, #panel-map svg svg[onload], #panel svg [onerror]").count() == 0
        tokens = page.inner_text("#panel-tokens")
        assert len(tokens) < 2_000
        assert not {"\u202e", "\u2066", "\u200f", "\x00"} & set(page.inner_text("body"))


def test_two_captures_side_by_side(browser, pages):
    with opened(browser, pages["both"]) as page:
        assert len(page.evaluate("document.getElementById('panel-distance').data")) == 2
        first = page.evaluate("JSON.stringify(document.getElementById('panel-map').data[0].z[20])")
        page.click("[data-map=second]")
        until(page, f"JSON.stringify(document.getElementById('panel-map').data[0].z[20]) !== {first!r}")
        assert "→" in page.inner_text("#facts")
        assert page.is_visible("#comparison")


def test_readers_without_sight_get_words_and_tables(browser, pages):
    with opened(browser, pages["plain"]) as page:
        assert page.evaluate((HERE / "unnamed.js").read_text(encoding="utf-8")) == []
        levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((h) => Number(h.tagName[1]))")
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
        assert page.get_attribute("#panel-map", "aria-label").startswith("Attention map of L")
