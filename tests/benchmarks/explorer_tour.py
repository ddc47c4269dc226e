"""The explorer as a person uses it, on a real model at length, in a real browser that reaches nothing but its server.

    python tests/benchmarks/explorer_tour.py [--tokens 32768] [--layer 5] [--pictures DIR]     # about 3 minutes

Captures one layer of Gemma 3 270M, opens the page in Chromium, zooms from the whole text to single tokens at three
places, pins, searches, asks for another schedule, opens the copied address in a new tab and runs the copied Python.
Ends with an error where a tab shows another view, the Python other numbers, or the page logged anything. Prints what
each step took, and writes a picture of every step at 1,280 and 390 pixels, light and dark, to be looked at.
"""

import argparse
import contextlib
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright

from hooks import HookedTransformer
from interp import capture, open_capture, standard_text
from interp.explorer.questions import Explorer
from interp.explorer.server import ExplorerServer

WIDTHS = {"desk": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 844}}
WHAT_IF = "w=rope:rope_type=linear;factor=4&v=difference"
PATIENCE = 120_000  # milliseconds


@contextlib.contextmanager
def served(where: Path) -> Iterator[ExplorerServer]:
    """The server of a capture on disk."""
    server = ExplorerServer(
        Explorer(open_capture(where), f"from interp import open_capture\n\ncap = open_capture({str(where)!r})")
    )
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


class Tour:
    """One page after the other, and what went wrong on any."""

    def __init__(self, browser: Browser, server: ExplorerServer, pictures: Path) -> None:
        self.browser, self.server, self.pictures = browser, server, pictures
        self.trouble: list[str] = []

    @contextlib.contextmanager
    def page(self, fragment: str = "", width: str = "desk", scheme: str = "light") -> Iterator[Page]:
        """A drawn page in a context of its own."""
        context = self.browser.new_context(viewport=WIDTHS[width], color_scheme=scheme, reduced_motion="reduce")
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        own = (self.server.address, f"blob:http://127.0.0.1:{self.server.port}", "data:")
        context.route("**/*", lambda route: route.continue_() if route.request.url.startswith(own) else route.abort())
        page = context.new_page()
        page.on("console", lambda said: self.trouble.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.trouble.append(str(error)))
        began = time.perf_counter()
        page.goto(self.server.address + fragment)
        page.wait_for_selector(".rx-legend strong:not(:empty)", timeout=PATIENCE)
        print(f"{'first paint':<44} {time.perf_counter() - began:6.2f} s", flush=True)
        self.drawn(page)
        yield page
        context.close()

    def drawn(self, page: Page) -> None:
        """Wait until every tile in sight is there."""
        page.wait_for_timeout(150)
        page.wait_for_selector("#explorer[data-ready=true]", timeout=PATIENCE)
        page.wait_for_timeout(300)

    def step(self, name: str, page: Page, began: float) -> None:
        """Say how long a step took, and keep what it shows."""
        self.drawn(page)
        print(f"{name:<44} {time.perf_counter() - began:6.2f} s", flush=True)
        page.screenshot(path=self.pictures / f"{name.replace(' ', '_')}.png")


def copied(page: Page, what: str) -> str:
    """What an entry of the copy menu puts on the clipboard."""
    page.click("summary:text-is('Copy')")
    page.click(f".rx-menu-items button:has-text('{what}')")
    page.wait_for_timeout(200)
    return page.evaluate("navigator.clipboard.readText()")


def pixels_of(page: Page) -> np.ndarray:
    """The map as it is drawn."""
    data = "[...document.querySelector('.rx-pane canvas').getContext('2d').getImageData(0, 0, 500, 400).data]"
    return np.array(page.evaluate(data))


def walk(tour: Tour, head: str, n: int) -> None:
    """Every step of the tour on the desk."""
    began = time.perf_counter()
    with tour.page(f"#h={head}") as page:
        tour.step("the whole text", page, began)
        for share in (0.1, 0.5, 0.97):
            began = time.perf_counter()
            page.fill("input[type=search]", f"#{int(share * n)}")
            page.keyboard.press("Enter")
            tour.step(f"single tokens at {share:.0%}", page, began)
            page.keyboard.press("Escape")
        began = time.perf_counter()
        page.fill("input[type=search]", "value")
        page.keyboard.press("Enter")
        tour.step("found in the text", page, began)
        assert " of " in page.inner_text(".rx-count")
        began = time.perf_counter()
        page.locator(".rx-map").click(position={"x": 300, "y": 300})
        tour.step("a pair is pinned", page, began)
        assert "attention" in page.inner_text(".rx-panel")
        compare(page)
        link, shown = copied(page, "Link"), pixels_of(page)
        with tour.page("#" + link.split("#", 1)[1]) as fresh:
            assert (pixels_of(fresh) == shown).all(), "a fresh tab shows another view"
    began = time.perf_counter()
    with tour.page(f"#h={head}&{WHAT_IF}") as page:
        tour.step("change under another schedule", page, began)
        compare(page)


def compare(page: Page) -> None:
    """The copied Python gives the numbers that the page has."""
    code, sent = copied(page, "Python"), []
    page.on("request", lambda asked: sent.append(asked.post_data) if asked.url.endswith("ask") else None)
    with page.expect_download() as download:
        page.click("summary:text-is('Copy')")
        page.click(".rx-menu-items button:has-text('CSV')")
    rows = np.genfromtxt(download.value.path(), delimiter=",", names=True)
    asked = next(json.loads(each) for each in sent if "window" in each)
    scope: dict = {}
    exec(compile(code, "copied", "exec"), scope)
    at = tuple(
        ((rows[f"first_{name}"] - asked[runs][0]) // asked["scale"]).astype(int)
        for name, runs in (("query", "queries"), ("key", "keys"))
    )
    np.testing.assert_allclose(np.asarray(scope["shown"])[at], rows["mean"], rtol=1e-5, atol=1e-7)


def main() -> None:
    """Run the tour."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--layer", type=int, default=5)
    parser.add_argument("--head", type=int, default=1)
    parser.add_argument("--pictures", type=Path, default=Path("explorer_tour"))
    asked = parser.parse_args()
    asked.pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        where, model = Path(folder) / "a.capture", HookedTransformer.from_pretrained("gemma3-270m")
        capture(model, standard_text(), where, n_tokens=asked.tokens, layers=asked.layer, loss=False).statistics()
        head = f"{asked.layer}.{asked.head}"
        with served(where) as server, sync_playwright() as driver:
            browser = driver.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
            )
            tour = Tour(browser, server, asked.pictures)
            walk(tour, head, asked.tokens)
            for width in WIDTHS:
                for scheme in ("light", "dark"):
                    with tour.page(f"#h={head}", width, scheme) as page:
                        tour.step(f"{width} {scheme}", page, time.perf_counter())
            browser.close()
    if tour.trouble:
        raise SystemExit(f"the page logged: {tour.trouble}")
    print(f"nothing was logged; pictures of every step are in {asked.pictures}: look at them")


if __name__ == "__main__":
    main()
