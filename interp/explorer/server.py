"""The page over HTTP, for one person on this machine: 127.0.0.1 alone, a token in the address, nothing ever written."""

import asyncio
import json
import secrets
import socket
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from hooks.errors import InputError, OutputError, RopescopeError
from interp.explorer.asking import LARGEST
from interp.explorer.lanes import AT_ONCE, WORKERS, Lanes, lane_of
from interp.explorer.page import SERVED, page_file
from interp.explorer.questions import Explorer

HOST = "127.0.0.1"
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class ExplorerServer:
    """An ASGI application that answers one explorer's questions to whoever knows its token.

    Attributes:
        address: where the page is, once it listens.
    """

    def __init__(self, explorer: Explorer, port: int = 0, token: str | None = None) -> None:
        self.explorer, self.token = explorer, token or secrets.token_urlsafe(18)
        self.listener = _listener(port)
        self.port = self.listener.getsockname()[1]
        self.address = f"http://{HOST}:{self.port}/{self.token}/"
        self._hosts = {f"{name}:{self.port}" for name in (HOST, "localhost")}
        self._lanes, self._turns = Lanes(), defaultdict(lambda: asyncio.Semaphore(WORKERS))
        settings = uvicorn.Config(
            self, log_level="critical", access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=1
        )
        self._uvicorn = uvicorn.Server(settings)

    def serve(self) -> None:
        """Answer until Ctrl-C, or until `stop` is called from elsewhere."""
        try:
            self._uvicorn.run([self.listener])
        except KeyboardInterrupt:  # uvicorn has ended in good order, and passes the signal on
            pass
        finally:
            self.explorer.atlas.work.cancel()
            self._lanes.close()
            self.listener.close()

    def stop(self) -> None:
        """End serving soon."""
        self._uvicorn.should_exit = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI calls an application."""
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        try:
            response = await self._respond(request)
        except ClientDisconnect:
            return
        for name, value in HEADERS.items():
            response.headers[name] = value
        app: ASGIApp = response
        await app(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        """The page, one of its files, an answer, or a refusal."""
        if request.headers.get("host") not in self._hosts:
            return _refused(421, "this server answers to its own address alone")
        origin = request.headers.get("origin")
        if origin is not None and origin not in {f"http://{host}" for host in self._hosts}:
            return _refused(403, "this server answers to its own page alone")
        given, _, name = request.url.path.removeprefix("/").partition("/")
        if not secrets.compare_digest(given.encode(), self.token.encode()):
            return _refused(404, "not found: open the address that the command printed, whole")
        if request.method == "POST" and name == "ask":
            return await self._answer(request)
        name = name or "index.html"
        if request.method in ("GET", "HEAD") and name in SERVED:
            return Response(page_file(name), headers={"content-type": SERVED[name]})
        return _refused(404, "not found")

    async def _answer(self, request: Request) -> Response:
        """The answer to the question in a request's body."""
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST:
                return _refused(413, f"a question has at most {LARGEST:,} bytes")
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            return _refused(400, "a question is JSON")
        if isinstance(asked, dict) and asked.get("kind") in AT_ONCE:
            return _response(self.explorer, asked)
        async with self._turns[lane_of(asked)]:
            if await request.is_disconnected():  # who asked has moved on meanwhile
                return _refused(499, "nobody waits for this any more")
            return await asyncio.wrap_future(self._lanes.submit(asked, _response, self.explorer, asked))


def serve(explorer: Explorer, port: int = 0, *, ready: Callable[[str], None], token: str | None = None) -> None:
    """Serve the page until Ctrl-C.

    Args:
        explorer: what answers.
        port: where to listen on 127.0.0.1; 0 takes one that is free.
        ready: called with the address once it listens.
        token: what the address holds; by default a new one that nobody can guess.

    Raises:
        InputError: a port that is none.
        OutputError: the port is taken.
    """
    server = ExplorerServer(explorer, port, token)
    ready(server.address)
    server.serve()


def _listener(port: int) -> socket.socket:
    """A socket that listens on this machine alone."""
    if not 0 <= port < 2**16:
        raise InputError(f"port {port}: give a number from 0 (any that is free) to {2**16 - 1:,}")
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise OutputError(f"cannot listen on port {port}: {error.strerror}; choose another with --port") from None
    return listener


def _response(explorer: Explorer, asked: Any) -> Response:
    """The packed answer, or an error in one line."""
    try:
        return Response(explorer.ask(asked).pack(), media_type="application/octet-stream")
    except RopescopeError as error:
        return _refused(400, str(error), type(error).__name__)
    except MemoryError:
        return _refused(503, "out of memory: ask for less", "MemoryError")


def _refused(status: int, why: str, name: str = "InputError") -> JSONResponse:
    """A short error."""
    return JSONResponse({"error": why, "name": name}, status)
