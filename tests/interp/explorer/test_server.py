"""The server answers its own page on this machine and nobody else, whatever is asked of it, and writes nothing."""

import http.client
import json
import random
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tiny_hooked import random_tokens, tiny_model

from hooks.errors import InputError, OutputError
from interp.captures import capture
from interp.explorer.answers import unpack
from interp.explorer.asking import KINDS
from interp.explorer.page import MODULES, SERVED, joined, page_file
from interp.explorer.questions import Explorer

serving = pytest.importorskip("interp.explorer.server", reason="the server needs the extra explore")
TILE = {"kind": "tile", "layer": 1, "head": 2, "scale": 1, "row": 0, "column": 0}


class Client:
    """Requests to a server that runs in a thread."""

    def __init__(self, server):
        self.server = server

    def __call__(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        connection.request(method, path, body, headers)
        got = connection.getresponse()
        content = got.read()
        connection.close()
        return got.status, dict(got.getheaders()), content

    def ask(self, question, **headers):
        body = question if isinstance(question, bytes) else json.dumps(question).encode()
        return self("POST", f"/{self.server.token}/ask", body, **headers)


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    """The folder of a capture on disk, served."""
    return tmp_path_factory.mktemp("served") / "a.capture"


@pytest.fixture(scope="module")
def client(where):
    cap = capture(tiny_model(), random_tokens(300), where)
    server = serving.ExplorerServer(Explorer(cap))
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield Client(server)
    server.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_the_page_and_its_files_come_with_a_strict_policy(client):
    for name in ["", *SERVED]:
        status, headers, content = client("GET", f"/{client.server.token}/{name}")
        assert status == 200 and content.decode() == page_file(name or "index.html")
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    for name in ("..", "../server.py", "%2e%2e/server.py", "widget.js", "nothing"):
        assert client("GET", f"/{client.server.token}/{name}")[0] == 404


def test_the_same_question_gives_the_same_arrays_here_and_in_python(client):
    for question in (TILE, {"kind": "row", "heads": [[0, 1], [1, 2]], "query": 77}, {"kind": "overview"}):
        status, _, content = client.ask(question)
        got, want = unpack(content), client.server.explorer.ask(question)
        assert status == 200 and got.said == want.said and list(got.arrays) == list(want.arrays)
        for name, array in want.arrays.items():
            np.testing.assert_array_equal(got.arrays[name], array)


def test_it_listens_on_this_machine_alone(client):
    assert client.server.listener.getsockname()[0] == "127.0.0.1"
    assert client.server.address.startswith(f"http://127.0.0.1:{client.server.port}/")
    assert len(client.server.token) >= 24
    with pytest.raises(OutputError, match="choose another with --port"):
        serving.ExplorerServer(client.server.explorer, client.server.port)
    with pytest.raises(InputError, match="port -1"):
        serving.ExplorerServer(client.server.explorer, -1)


@pytest.mark.parametrize("token", ["", "x", "A" * 24, "%00", "%C3%A9", "%FF"])
def test_without_the_token_there_is_nothing(client, token):
    for method, name in (("GET", ""), ("GET", "app.js"), ("POST", "ask")):
        status, headers, content = client(method, f"/{token}/{name}", b"{}")
        assert status == 404 and b"not found" in content and client.server.token.encode() not in content
        assert "default-src 'none'" in headers["content-security-policy"]


def test_another_host_or_origin_is_refused(client):
    port = client.server.port
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1.evil.example:{port}", ""):
        assert client.ask(TILE, host=host)[0] in (400, 421), host
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"):
        assert client.ask(TILE, origin=origin)[0] == 403, origin
    assert client.ask(TILE, origin=f"http://127.0.0.1:{port}")[0] == 200
    assert client.ask(TILE, host=f"localhost:{port}")[0] == 200


@pytest.mark.parametrize(
    ("question", "status", "says"),
    [
        (b"", 400, "JSON"),
        (b"\xff\xfe", 400, "JSON"),
        (b"[" * 10_000, 400, "JSON"),
        (b'{"kind": "find", "text": "' + b"x" * 20_000 + b'"}', 413, "at most"),
        (b"null", 400, "a question is an object"),
        ({"kind": "tile"}, 400, "layer"),
        ({**TILE, "layer": 9}, 400, "layer 9 is not in this capture"),
        ({**TILE, "scale": 10**400}, 400, "scale="),
        (b'{"kind": "tile", "layer": NaN}', 400, "layer=nan"),
        ({**TILE, "variant": {"rope": {"rope_type": "llama3"}}}, 400, "factor"),
    ],
)
def test_what_is_no_question_is_refused_in_a_line_and_the_server_lives_on(client, question, status, says):
    got, _, content = client.ask(question)
    assert got == status and says in json.loads(content)["error"] and len(content) < 1500
    assert client.ask(TILE)[0] == 200


def drawn(random_, depth=0):
    """Any JSON, more often than not nearly a question."""
    plain = [None, True, -1, 0, 1, 2, 300, 2**70, 0.5, -1e308, "", "tile", "é\u202e", "x" * 300, "pattern"]
    if depth > 3 or random_.random() < 0.5:
        return random_.choice(plain)
    if random_.random() < 0.3:
        return [drawn(random_, depth + 1) for _ in range(random_.randrange(4))]
    names = ["layer", "head", "view", "variant", "scale", "row", "column", "query", "key", "heads", "span", "text"]
    names += ["metric", "queries", "keys", "rope", "steps", "stage", "rope_theta", "factor", "__class__", ""]
    made = {random_.choice(names): drawn(random_, depth + 1) for _ in range(random_.randrange(5))}
    if not depth or random_.random() < 0.2:
        kind = random_.choice([*KINDS, "nothing"])
        good = {"layer": 0, "head": 1, "scale": 1, "row": 0, "column": 0, "queries": [0, 9], "keys": [3, 40]}
        good |= {"query": 7, "key": 5, "heads": [[0, 0]], "span": [0, 5], "text": "a", "metric": "entropy"}
        good = {name: value for name, value in good.items() if name in KINDS.get(kind, ())}
        made = {"kind": kind} | good | (made if random_.random() < 0.7 else {})
    return made


def test_two_thousand_questions_by_twenty_clients_leave_it_as_it_was(client, where):
    folder = where
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}
    want = unpack(client.ask(TILE)[2]).arrays["mean"]

    def chat(seed):
        random_, statuses = random.Random(seed), []
        for _ in range(100):
            question = drawn(random_)
            status, _, content = client.ask(question)
            statuses.append(status)
            assert status in (200, 400, 413), (question, status, content)
            if status != 200:
                assert set(json.loads(content)) == {"error", "name"}, question
        return statuses

    with ThreadPoolExecutor(20) as pool:
        statuses = [status for chat_ in pool.map(chat, range(20)) for status in chat_]
    assert len(statuses) == 2000 and statuses.count(200) > 200 and statuses.count(400) > 800
    np.testing.assert_array_equal(unpack(client.ask(TILE)[2]).arrays["mean"], want)
    assert before == {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_both_skins_are_the_same_code():
    whole = joined().splitlines()
    for name in MODULES:
        lines = [
            line.removeprefix("export ") for line in page_file(name).splitlines() if not line.startswith("import ")
        ]
        at = whole.index(lines[0])
        assert whole[at : at + len(lines)] == lines, name
    assert [line for line in whole if line.startswith(("import ", "export "))] == ["export default { render };"]
    declared = [
        found[1] for line in whole if (found := re.match(r"(?:async )?(?:const|let|class|function) (\w+)", line))
    ]
    assert len(declared) > 50 and len(set(declared)) == len(declared)  # in one file two of a name would clash
    # Each imports only what stands before it, so that one file runs from top to bottom.
    for at, name in enumerate([*MODULES, "widget.js"]):
        for found in re.findall(r'^import .* from "./(.*)";$', page_file(name), re.MULTILINE):
            assert found in MODULES[:at], (name, found)


@pytest.mark.slow
def test_the_command_prints_its_address_and_ends_cleanly(where, client):
    command = [sys.executable, "-m", "interp.cli", "explore", str(where), "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        address = run.stdout.readline().strip()
        host, _, token = address.removeprefix("http://").partition("/")
        connection = http.client.HTTPConnection(host, timeout=20)
        connection.request("GET", f"/{token}")
        answer = connection.getresponse()
        assert answer.status == 200 and b"explorer" in answer.read()
        connection.close()
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=30)
    assert run.returncode == 0 and out == "" and "Traceback" not in err and "Ctrl-C" in err
