"""The widget carries the same questions to the same core; in JupyterLab it draws, zooms and pins."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from tiny_hooked import random_tokens, tiny_model

from hooks.errors import InputError
from interp.captures import capture
from interp.explorer.answers import Answer, unpack
from interp.explorer.lanes import WORKERS

pytest.importorskip("anywidget", reason="the widget needs the extra explore")
ROOT = Path(__file__).parents[3]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TILE = {"kind": "tile", "layer": 1, "head": 2, "scale": 1, "row": 0, "column": 0}


@pytest.fixture
def widget(monkeypatch):
    """A widget whose messages are kept instead of sent."""
    made = capture(tiny_model(), random_tokens(90)).explore("h=1.2")
    made.sent = []
    monkeypatch.setattr(type(made), "send", lambda self, content, buffers=None: self.sent.append((content, buffers)))
    yield made
    made.close()


def answered(widget, message):
    """What the widget sends back for a message of the page."""
    before = len(widget.sent)
    widget._handle_custom_msg(message, [])
    for _ in range(200):
        if len(widget.sent) > before:
            return widget.sent[-1]
        time.sleep(0.02)
    return None


def test_a_message_gets_the_arrays_that_python_gets(widget):
    content, buffers = answered(widget, {"id": "1", "ask": TILE})
    assert content == {"id": "1"}
    want = widget.ask(TILE).arrays
    for name, array in unpack(bytes(buffers[0])).arrays.items():
        np.testing.assert_array_equal(array, want[name])
    content, _ = answered(widget, {"id": "2", "ask": {"kind": "progress"}})
    assert content == {"id": "2"}


def test_what_is_no_question_gets_an_error_and_what_is_dropped_nothing(widget, monkeypatch):
    content, _ = answered(widget, {"id": "1", "ask": {**TILE, "layer": 7}})
    assert content["id"] == "1" and content["name"] == "StageError" and "layer 7" in content["error"]
    assert answered(widget, {"id": "2", "ask": "nonsense"})[0]["name"] == "InputError"
    held = threading.Event()
    monkeypatch.setattr(widget.explorer, "_tile", lambda question: held.wait(10) and Answer())
    for number in range(3, 3 + WORKERS + 1):  # as many as are answered at once, and one that waits
        widget._handle_custom_msg({"id": str(number), "ask": TILE}, [])
    widget._handle_custom_msg({"drop": str(3 + WORKERS)}, [])
    held.set()
    for _ in range(200):
        if len(widget.sent) == 2 + WORKERS:
            break
        time.sleep(0.02)
    time.sleep(0.1)
    assert {content["id"] for content, _ in widget.sent} == {"1", "2", *(str(3 + i) for i in range(WORKERS))}


def test_the_view_is_a_state_that_python_reads_and_sets(widget):
    assert widget.view == "h=1.2"
    widget.view = "h=0.1&q=5"
    assert widget.get_state()["view"] == "h=0.1&q=5"


def test_without_anywidget_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("interp.captures.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"ropescope\[explore\]"):
        capture(tiny_model(), random_tokens(9)).explore()


NOTEBOOK = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path[:0] = [{root!r}, {support!r}]
from tiny_hooked import random_tokens, tiny_model
from interp.captures import capture
widget = capture(tiny_model(), random_tokens(400)).explore("h=1.2&at=300,310,0.05")
widget
"""


@pytest.fixture
def lab(tmp_path):
    """A JupyterLab with one notebook; gives its address."""
    pytest.importorskip("jupyterlab", reason="the check in JupyterLab needs it")
    code = NOTEBOOK.format(root=str(ROOT), support=str(ROOT / "tests" / "support"))
    cells = [
        {"cell_type": "code", "id": f"c{i}", "metadata": {}, "execution_count": None, "outputs": [], "source": source}
        for i, source in enumerate((code, "print('now', widget.view)"))
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    book = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "book.ipynb").write_text(json.dumps(book))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1"]
    settings = ["--IdentityProvider.token=t", f"--ServerApp.root_dir={tmp_path}", "--LabApp.news_url=None"]
    homes = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "RUNTIME", "DATA")}
    with subprocess.Popen(
        [*command, *settings], env=os.environ | homes, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as run:
        address = f"http://127.0.0.1:{port}/lab/tree/book.ipynb?token=t&reset"
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token=t", timeout=2).close()
                break
            except OSError:
                time.sleep(0.5)
        yield address
        run.terminate()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="the check in JupyterLab needs Chromium or Chrome on the PATH")
def test_in_jupyterlab_it_draws_zooms_and_pins(lab):
    playwright = pytest.importorskip("playwright.sync_api", reason="the check in JupyterLab needs playwright")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(viewport={"width": 1400, "height": 1000}, reduced_motion="reduce")
        page = context.new_page()
        page.goto(lab)
        page.wait_for_selector(".jp-Cell .cm-content", timeout=90_000)
        page.click(".jp-Cell .cm-content >> nth=0")
        page.wait_for_timeout(3000)
        page.keyboard.press("Shift+Enter")
        page.wait_for_selector(".rx[data-ready=true]", timeout=120_000)
        page.click(".rx-map", position={"x": 300, "y": 300})
        page.locator(".rx-map").hover(position={"x": 300, "y": 300})
        page.mouse.wheel(0, -200)
        page.wait_for_timeout(1500)
        assert page.inner_text(".rx-top li >> nth=0")
        page.click(".jp-Cell .cm-content >> nth=1")
        page.keyboard.press("Shift+Enter")
        page.wait_for_selector("text=/now h=1.2/", timeout=30_000)
        said = page.inner_text("text=/now h=1.2/")
        assert "&q=" in said and "&k=" in said and float(said.split(",")[-1]) < 0.05
        if os.environ.get("SHOT"):
            page.screenshot(path=os.environ["SHOT"])
        browser.close()
