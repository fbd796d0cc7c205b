"""The page's server: static files, and small JSON questions. It does nothing between requests.

Loopback only. What answers may still be loading when a question comes; it is answered when it can be.
"""

import asyncio
import json
import socket
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxvlmrl.playing.bad_request import BadRequest

STATIC = Path(__file__).parent / "static"
HERE = "127.0.0.1"
LARGEST_REQUEST = 64 * 1024  # bytes
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class Secured:
    """Adds `HEADERS` to every answer."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, with_headers)


class Loading(NamedTuple):
    """What answers, or will."""

    name: str | None  # of the checkpoint, where there is one
    board: "Future[ModuleType]"  # `playing.game`: a person can play
    table: "Future[Any]"  # a `Table`: and so can the others


def make_app(loading: Loading) -> Starlette:
    async def opened(request: Request) -> Response:
        return JSONResponse({"checkpoint": loading.name})

    async def about(request: Request) -> Response:
        return JSONResponse((await asyncio.wrap_future(loading.table)).about())

    def asks(name: str, of: "Future[Any]") -> Route:
        """POST /api/NAME: a function that takes the request's JSON and answers JSON, or a picture's bytes."""

        async def answer(request: Request) -> Response:
            data = await read_json(request)
            if isinstance(data, Response):
                return data
            answering = await asyncio.wrap_future(of)
            try:
                found = await run_in_threadpool(getattr(answering, name), data)
            except BadRequest as error:
                return refused(str(error))
            return Response(found, media_type="image/gif") if isinstance(found, bytes) else JSONResponse(found)

        return Route(f"/api/{name}", answer, methods=["POST"])

    questions = [asks("person", loading.board), *(asks(name, loading.table) for name in ("model", "scores", "gif"))]
    routes = [Route("/api/opened", opened), Route("/api/about", about), *questions]
    hosts = [HERE, "localhost"]  # a name that somebody else's page lets resolve to this machine is none
    return Starlette(
        routes=[*routes, Mount("/", StaticFiles(directory=STATIC, html=True))],
        middleware=[Middleware(Secured), Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
    )


async def read_json(request: Request) -> Any:
    """The request's data, or what is answered to one that has none."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        return refused("a request is JSON and says so in its content-type")  # so no other site's form can send one
    body = bytearray()
    async for part in request.stream():  # counted as it comes: a chunked request names no length
        body += part
        if len(body) > LARGEST_REQUEST:
            return refused(f"a request has at most {LARGEST_REQUEST} bytes")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return refused("the request is no JSON")


def refused(sentence: str) -> Response:
    return JSONResponse({"error": sentence}, status_code=400)


class QuietServer(uvicorn.Server):
    """uvicorn's, asleep between requests: its own loop wakes ten times a second to see whether it shall stop."""

    _stopped: asyncio.Event
    _loop: asyncio.AbstractEventLoop | None = None

    async def main_loop(self) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        if not await self.on_tick(0):
            await self._stopped.wait()

    def handle_exit(self, sig: int, frame: Any) -> None:
        super().handle_exit(sig, frame)
        self.stop()

    def stop(self) -> None:
        """From any thread."""
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stopped.set)


def listen(port: int) -> socket.socket:
    """Raises OSError for a port that is taken."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((HERE, port))
    listener.listen()  # who comes before the server does waits
    return listener


def make_server(app: Starlette) -> QuietServer:
    settings: dict[str, Any] = {"log_level": "warning", "access_log": False, "date_header": False, "lifespan": "off"}
    return QuietServer(
        uvicorn.Config(app, loop="asyncio", http="h11", ws="none", timeout_graceful_shutdown=2, **settings)
    )
