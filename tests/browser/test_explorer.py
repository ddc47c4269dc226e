"""The explorer in a real browser, the network cut but for its server: zoom, pin, search, ask, copy, all by keys too."""

import json
import re
import shutil
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from tiny_hooked import random_tokens, tiny_model

from interp import metrics
from interp.captures import capture
from interp.explorer.page import joined, page_file
from interp.explorer.questions import Explorer

playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
serving = pytest.importorskip("interp.explorer.server", reason="the explorer needs the extra explore")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="the browser tests need Chromium or Chrome on the PATH"),
    pytest.mark.slow,
]
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<svg onload=alert(2)>",
    "\u202e\u2066reversed\u200f",
    "w" * 3000,
    "\ud800",
    "a\x00b",
    "`${alert(3)}`",
    " plain",
]
N, RULER = 700, 92


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


def made(**changes):
    kinds = ("sliding_attention", "full_attention")
    return capture(tiny_model(layer_types=kinds, window_size=150, **changes), random_tokens(N))


@contextmanager
def served(cap, source=""):
    server = serving.ExplorerServer(Explorer(cap, source))
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(10)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    where = tmp_path_factory.mktemp("shown") / "a.capture"
    model = tiny_model(layer_types=("sliding_attention", "full_attention"), window_size=150)
    cap = capture(model, random_tokens(N), where)
    cap.str_tokens = [f" w{i % 97}" for i in range(N)]
    cap.str_tokens[333:335] = [" needle", " here"]
    with served(cap, f"from interp import open_capture\n\ncap = open_capture({str(where)!r})") as server:
        yield server


@contextmanager
def opened(browser, server, fragment="", viewport=DESK, scheme="light", **more):
    """The drawn page; nothing that it logs, asks for elsewhere or pops up goes unnoticed."""
    context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce", **more)
    context.route("**/*", lambda route: route.continue_() if own(route, server) else route.abort())
    page = context.new_page()
    trouble = []
    page.on("console", lambda message: trouble.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: (trouble.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda asked: trouble.append(asked.url) if not own_url(asked.url, server) else None)
    page.goto(server.address + fragment)
    drawn(page)
    yield page
    assert not trouble
    context.close()


def own_url(url, server):
    return url.startswith((server.address, f"blob:http://127.0.0.1:{server.port}", "data:"))


def own(route, server):
    return own_url(route.request.url, server)


def drawn(page):
    """Wait until every tile in sight is there."""
    page.wait_for_timeout(120)
    page.wait_for_selector("#explorer[data-ready=true]", timeout=30_000)
    page.wait_for_timeout(250)


def state(page):
    """What the address says, by its short names."""
    page.wait_for_timeout(250)
    return dict(part.split("=", 1) for part in page.url.split("#")[1].split("&"))


def place(page):
    return [float(x) for x in state(page)["at"].split(",")]


def colour_at(page, x, y):
    """The colour of a place of the first map, in pixels of the page from its corner."""
    return page.evaluate(
        "([x, y]) => { const from = document.querySelector('.rx-pane canvas'), r = devicePixelRatio;"
        " const one = new OffscreenCanvas(1, 1).getContext('2d');"
        " one.drawImage(from, -x * r, -y * r); return [...one.getImageData(0, 0, 1, 1).data]; }",
        [x, y],
    )


def copied(page, what):
    """What an entry of the copy menu puts on the clipboard."""
    page.click("summary:text-is('Copy')")
    page.click(f".rx-menu-items button:has-text('{what}')")
    page.wait_for_timeout(150)
    return page.evaluate("navigator.clipboard.readText()")


def test_it_opens_on_the_whole_text_and_draws_the_pattern(browser, server):
    with opened(browser, server) as page:
        assert page.locator(".rx-grid [role=gridcell]").count() == 8
        canvas = page.locator(".rx-pane canvas").first.bounding_box()
        colours = {tuple(colour_at(page, 110 + i, 110 + i)) for i in range(0, 500, 7)}
        assert len(colours) > 3 and canvas["width"] > 600
        assert "logarithmic" in page.inner_text(".rx-legend")
        assert "1 pixel is 1 pair: exact" in page.inner_text(".rx-legend")
        assert page.locator(".rx-chart").count() == 2
    with opened(browser, server, viewport=PHONE) as page:
        assert "1 pixel is 2 × 2 pairs: their mean, exact" in page.inner_text(".rx-legend")
        page.click("button[data-value=max]")
        drawn(page)
        assert "2 × 2 pairs: the largest cell, exact" in page.inner_text(".rx-legend")
        page.click("button[data-value=linear]")
        drawn(page)
        assert page.inner_text(".rx-legend").endswith("0\n0.5\n1") and "linear" in page.inner_text(".rx-legend")


def test_every_cell_has_the_colour_of_its_value(browser, server):
    pattern = server.explorer.cap.pattern[1, 2].values
    with opened(browser, server, "#h=1.2&at=335.5,340.5,0.02") as page:
        box = page.locator(".rx-pane canvas").first.bounding_box()
        middle = ((box["width"] + RULER) / 2, (box["height"] + RULER) / 2)
        lightness = []
        for query, key in ((340, 335), (341, 333), (338, 337), (343, 332), (340, 331), (337, 336)):
            at = middle[0] + (key + 0.2 - 335.5) / 0.02, middle[1] + (query + 0.2 - 340.5) / 0.02
            lightness.append((pattern[query, key], sum(colour_at(page, *map(round, at))[:3])))
        sums = [light for _, light in sorted(lightness)]
        assert sums == sorted(sums, reverse=True), lightness  # more attention, more ink
        assert colour_at(page, round(middle[0] + 100), round(middle[1] - 240)) == [238, 241, 244, 255]  # not seen


def test_wheel_drag_and_double_click_move_and_zoom_about_the_pointer(browser, server):
    with opened(browser, server) as page:
        box = page.locator(".rx-map").bounding_box()
        x, y = box["x"] + 300, box["y"] + 400
        before = place(page)
        page.mouse.move(x, y)
        page.mouse.wheel(0, -240)
        drawn(page)
        after = place(page)
        assert after[2] < before[2]
        middle = (box["width"] + RULER) / 2, (box["height"] + RULER) / 2
        for axis, offset in ((0, 300 - middle[0]), (1, 400 - middle[1])):
            assert abs(before[axis] + offset * before[2] - after[axis] - offset * after[2]) < 1  # what is there stays
        page.mouse.down()
        page.mouse.move(x + 50, y + 30, steps=4)
        page.mouse.up()
        moved = place(page)
        assert moved[0] == pytest.approx(after[0] - 50 * after[2], abs=0.5)
        assert moved[1] == pytest.approx(after[1] - 30 * after[2], abs=0.5)
        assert "q" not in state(page)  # a drag pins nothing
        page.dblclick(".rx-map", position={"x": 300, "y": 500})
        drawn(page)
        assert place(page)[2] < moved[2]
        page.click("button[aria-label='the whole text']")
        drawn(page)
        assert place(page)[2] == pytest.approx(before[2])


def test_zoom_to_single_tokens_at_three_places_and_read_them(browser, server):
    for index in (20, 333, 690):
        with opened(browser, server) as page:
            page.fill("input[type=search]", f"#{index}")
            page.keyboard.press("Enter")
            drawn(page)
            assert int(state(page)["q"]) == index and place(page)[2] <= 1 / 16
            assert "1 pixel is 1 pair: exact" in page.inner_text(".rx-legend")
            assert server.explorer.cap.str_tokens[index].strip() in page.inner_text(".rx-readout mark >> nth=0")


def test_a_click_pins_a_pair_and_the_text_says_what_it_attends_to(browser, server):
    pattern = server.explorer.cap.pattern[1, 2].values
    with opened(browser, server, "#h=1.2&at=335.5,340.5,0.02") as page:
        page.click(".rx-map", position={"x": 366, "y": 400})
        drawn(page)
        pinned = state(page)
        query = int(pinned["q"])
        first = page.inner_text(".rx-top li >> nth=0")
        best = int(pattern[query].argmax())
        assert f"{best}" in first and re.search(r"0\.\d+", first)
        assert float(re.search(r"0\.\d+", first)[0]) == pytest.approx(pattern[query, best], rel=5e-3)
        page.click(".rx-segmented button[data-value=key]")
        drawn(page)
        column = pattern[:, int(pinned["k"])]
        assert f"{int(column.argmax())}" in page.inner_text(".rx-top li >> nth=0")
        page.focus(".rx-map")
        page.keyboard.press("Escape")
        drawn(page)
        assert "q" not in state(page) and "k" not in state(page)


def test_search_finds_the_text_and_steps_through_it(browser, server):
    with opened(browser, server) as page:
        before = page.locator(".rx-map").bounding_box()
        page.fill("input[type=search]", "NEEDLE here")
        page.keyboard.press("Enter")
        drawn(page)
        assert page.locator(".rx-map").bounding_box() == before  # the bar does not wrap, so the map stays where it is
        assert page.inner_text(".rx-count") == "1 of 1" and int(state(page)["q"]) == 334
        page.fill("input[type=search]", "w12")
        page.keyboard.press("Enter")
        drawn(page)
        assert page.inner_text(".rx-count") == "1 of 8" and int(state(page)["q"]) == 12
        page.click("button[aria-label='next match']")
        drawn(page)
        assert int(state(page)["q"]) == 12 + 97
        page.fill("input[type=search]", "nowhere")
        page.keyboard.press("Enter")
        drawn(page)
        assert page.inner_text(".rx-count") == "not found"


def test_effects_on_a_metric_are_drawn_where_a_gradient_was_captured(browser, server):
    with opened(browser, server, "#h=1.2&v=attribution") as page:  # an address of a view that this capture lacks
        assert "v" not in state(page) and not page.locator("text=Attribution").count()
    cap = capture(tiny_model(), random_tokens(300), gradient_of=metrics.logit_difference(3, 7))
    with served(cap) as other, opened(browser, other, "#h=0.2") as page:
        page.click("text=Attribution")
        drawn(page)
        page.click(".rx-map", position={"x": 250, "y": 400})
        drawn(page)
        assert state(page)["v"] == "attribution"
        assert f"effect, to first order, on {cap.gradients.metric}" in page.inner_text(".rx-legend")
        query, key = (int(state(page)[name]) for name in "qk")
        asked = {"kind": "cell", "layer": 0, "head": 2, "query": query, "key": key}
        said = page.inner_text("dt:text-is('effect') + dd").replace("−", "-").replace("·10", "e")
        said = float(said.translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")))
        assert said != 0 and said == pytest.approx(Explorer(cap).ask(asked).arrays["attribution"], rel=0.06)
        page.click("summary:has-text('What if')")
        page.select_option("select[data-role=kind]", "steps:no_rope")
        page.click(".rx-primary")
        drawn(page)
        assert "v" not in state(page) and page.is_disabled("text=Attribution")


def test_another_schedule_changes_the_tile_and_its_difference_is_shown(browser, server):
    with opened(browser, server, "#h=1.2") as page:
        page.click("summary:has-text('What if')")
        page.select_option("select[data-role=kind]", "rope")
        page.select_option("select[data-role=type]", "linear")
        page.fill("input[name=factor]", "8")
        page.click(".rx-primary")
        drawn(page)
        assert state(page)["w"] == "rope:rope_type=linear;rope_theta=10000;factor=8"
        page.click("text=Show the difference")
        drawn(page)
        assert state(page)["v"] == "difference" and "change of attention" in page.inner_text(".rx-legend")
        page.click("text=As it ran")
        drawn(page)
        assert "w" not in state(page) and "v" not in state(page)


def test_long_work_shows_how_far_it_is_and_can_be_cancelled(browser, server, monkeypatch):
    began, passed = threading.Event(), []
    piece = server.explorer.atlas.work.piece

    @contextmanager
    def slow(name):
        with piece(name) as report:
            passed.append(name)
            for done in range(200):
                report(done, 200)
                began.set()
                time.sleep(0.05)
            yield report

    with opened(browser, server, "#h=1.0") as page:
        monkeypatch.setattr(server.explorer.atlas.work, "piece", slow)
        page.click("summary:has-text('What if')")
        page.select_option("select[data-role=kind]", "steps:swapped_order")
        page.click(".rx-primary")
        page.wait_for_selector(".rx-progress", state="visible")
        assert "row sums of L1 H0" in page.inner_text(".rx-progress") and began.is_set()
        page.mouse.move(600, 400)
        page.mouse.wheel(0, -200)  # the map moves meanwhile
        page.click("text=Cancel")
        drawn(page)
        assert "w" not in state(page) and not page.locator(".rx-progress").is_visible()
        assert passed == ["row sums of L1 H0"]


def test_an_address_in_a_fresh_tab_is_the_same_view(browser, server):
    fragment = "#h=1.2,0.1&v=score&p=max&c=linear&w=steps:no_norm&q=300&k=290&by=key&m=entropy&at=295,305,0.25"
    with opened(browser, server, fragment) as page:
        once, link = state(page), copied_link(page)
        assert once == dict(part.split("=", 1) for part in fragment[1:].split("&"))
        pixels = colour_at(page, 300, 300)
    with opened(browser, server, "#" + link.split("#")[1]) as page:
        assert state(page) == once and colour_at(page, 300, 300) == pixels
        assert page.locator(".rx-pane").count() == 2
        page.evaluate("location.hash = '#L0H3'")  # a report's own way of naming a head
        drawn(page)
        assert state(page)["h"] == "0.3"


def copied_link(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    return copied(page, "Link to this view")


@pytest.mark.parametrize(
    "fragment",
    ["#h=1.2&at=335.5,340.5,0.02&q=340&k=335", "#h=1.1&at=350,350,2.5", "#h=0.3&v=difference&w=steps:no_rope&p=max"],
)
def test_the_python_that_is_copied_gives_the_numbers_that_are_drawn(browser, server, fragment):
    with opened(browser, server, fragment) as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        code = copied(page, "Python")
        sent = []
        page.on("request", lambda asked: sent.append(asked.post_data) if asked.url.endswith("ask") else None)
        with page.expect_download() as download:
            page.click("summary:text-is('Copy')")
            page.click(".rx-menu-items button:has-text('CSV')")
        rows = np.genfromtxt(download.value.path(), delimiter=",", names=True)
    scope = {}
    exec(compile(code, "copied", "exec"), scope)
    shown, asked = np.asarray(scope["shown"]), next(json.loads(x) for x in sent if "window" in x)
    at = [((rows[f"first_{name}"] - asked[run][0]) // asked["scale"]).astype(int) for name, run in
          (("query", "queries"), ("key", "keys"))]  # fmt: skip
    which = "largest" if "p=max" in fragment else "mean"
    np.testing.assert_allclose(shown[at[0], at[1]], rows[which], rtol=1e-5, atol=1e-7)
    if "q=340" in fragment:
        np.testing.assert_allclose(scope["row"], server.explorer.cap.pattern[1, 2, 340].values, atol=1e-7)


def test_png_and_svg_say_what_they_show(browser, server):
    with opened(browser, server, "#h=1.2") as page:
        for what, begins in (("PNG", b"\x89PNG"), ("SVG", b"<svg")):
            with page.expect_download() as download:
                page.click("summary:text-is('Copy')")
                page.click(f".rx-menu-items button:has-text('{what}')")
            content = download.value.path().read_bytes()
            assert content.startswith(begins) and len(content) > 10_000
        assert b"attention, logarithmic" in content and b"L1 H2" in content


def test_several_heads_are_linked(browser, server):
    with opened(browser, server, "#h=1.2") as page:
        page.click("[role=gridcell][data-row='0'][data-column='1']", modifiers=["Shift"])
        drawn(page)
        assert state(page)["h"] == "1.2,0.1" and page.locator(".rx-pane").count() == 2
        page.click("button[aria-label='close L1 H2']")
        drawn(page)
        assert state(page)["h"] == "0.1" and page.locator(".rx-pane").count() == 1


def test_hostile_tokens_and_names_execute_nothing(browser):
    cap = made()
    cap.str_tokens = [HOSTILE[i % len(HOSTILE)] for i in range(N)]
    cap.model_id = "".join(HOSTILE[:2])
    with served(cap) as hostile, opened(browser, hostile, "#h=1.2&at=335.5,340.5,0.05&q=340&k=333") as page:
        page.fill("input[type=search]", HOSTILE[0])
        page.keyboard.press("Enter")
        drawn(page)
        assert page.locator("img, script[src='x']").count() == 0
        assert "onerror" in page.inner_text(".rx-text")


def test_the_whole_tour_by_keys_alone(browser, server):
    with opened(browser, server) as page:
        page.keyboard.press("/")
        page.keyboard.type("needle")
        page.keyboard.press("Enter")
        drawn(page)
        assert int(state(page)["q"]) == 333
        page.evaluate("document.activeElement.blur()")
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.classList.contains('rx-map')"):
                break
        else:
            raise AssertionError("Tab never came to the map")
        before = place(page)
        for key in ("ArrowRight", "ArrowDown"):
            page.keyboard.press(key)
        assert place(page)[:2] == [before[0] + 1, before[1] + 1]  # a cell at a time
        page.wait_for_timeout(400)
        assert re.search(r"query \d+ .*key \d+", page.inner_text("[role=status]"))
        page.keyboard.press("k")
        page.keyboard.press("-")
        drawn(page)
        pinned = state(page)
        assert "k" in pinned and place(page)[2] > before[2]
        head = pinned["h"]
        page.keyboard.press("n")
        drawn(page)
        assert state(page)["h"] != head
        page.keyboard.press("0")
        page.keyboard.press("Escape")
        drawn(page)
        assert "q" not in state(page)
        page.focus(".rx-grid [tabindex='0']")
        page.keyboard.press("ArrowUp")
        page.keyboard.press("Enter")
        drawn(page)
        page.keyboard.press("Shift+Tab")
        seen = page.evaluate("document.activeElement.tagName")
        assert seen in ("SELECT", "DIV")


@pytest.mark.parametrize(("viewport", "scheme"), [(DESK, "light"), (DESK, "dark"), (PHONE, "light"), (PHONE, "dark")])
def test_axe_finds_no_serious_fault_and_nothing_is_wider_than_the_page(browser, server, viewport, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python carries axe-core")
    fragment = "#h=1.2&q=340&w=rope:factor=4;rope_type=linear"
    with opened(browser, server, fragment, viewport, scheme, bypass_csp=True) as page:
        assert page.locator("select[data-role=kind]").is_visible()
        found = axe.Axe().run(page).response["violations"]
        serious = [(one["id"], [node["html"][:120] for node in one["nodes"]][:3]) for one in found
                   if one["impact"] in ("serious", "critical")]  # fmt: skip
        assert not serious
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_a_pinch_zooms(browser, server):
    with opened(browser, server, "", PHONE, has_touch=True, is_mobile=True) as page:
        before = place(page)
        session = page.context.new_cdp_session(page)
        box = page.locator(".rx-map").bounding_box()
        x, y = box["x"] + 200, box["y"] + 250
        for kind, gap in (("touchStart", 30), ("touchMove", 60), ("touchMove", 100)):
            points = [{"x": x - gap, "y": y, "id": 0}, {"x": x + gap, "y": y, "id": 1}]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        drawn(page)
        assert place(page)[2] < before[2] * 0.5 and "q" not in state(page)


def test_the_widget_is_the_same_page_behind_another_carrier(browser, server):
    """The one joined file, with a model that stands for the notebook's and brings questions to the same core."""
    explorer = server.explorer

    def ask(question):
        return list(explorer.ask(question).pack())

    context = browser.new_context(viewport=DESK)
    page = context.new_page()
    trouble = []
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.expose_function("askPython", ask)
    page.set_content("<div id='cell' style='width: 1100px'></div>")
    page.add_style_tag(content=page_file("style.css"))
    page.evaluate(
        """async (code) => {
          const heard = {}, model = {
            view: "h=1.2&at=335.5,340.5,0.05", sent: [],
            get(name) { return this[name]; }, set(name, value) { this[name] = value; }, save_changes() {},
            on(event, call) { (heard[event] ??= []).push(call); },
            async send({ id, ask }) {
              if (!ask) return;
              this.sent.push(ask);
              const raw = new Uint8Array(await window.askPython(ask));
              for (const call of heard["msg:custom"]) call({ id }, [new DataView(raw.buffer)]);
            },
          };
          window.model = model;
          window.heard = heard;
          const module = await import(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
          module.default.render({ model, el: document.getElementById("cell") });
        }""",
        joined(),
    )
    page.wait_for_selector(".rx[data-ready=true]", timeout=30_000)
    page.click(".rx-map", position={"x": 366, "y": 400})
    page.wait_for_timeout(500)
    view = page.evaluate("model.view")
    assert view.startswith("h=1.2&q=") and "&k=" in view
    page.evaluate("model.view = 'h=0.1&at=200,210,1'; heard['change:view'].forEach((call) => call())")
    page.wait_for_timeout(600)
    assert page.inner_text(".rx-name") == "L0 H1"
    assert {"tile", "row", "overview", "tokens"} <= {one["kind"] for one in page.evaluate("model.sent")}
    assert not trouble
    context.close()
