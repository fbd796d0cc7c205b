"""The page's server: static files, and small JSON questions to a `Table`. It does nothing between requests.

Loopback only. The table may still be loading when the first question comes; it is answered when there is one.
"""

import asyncio
import json

from concurrent.futures import Future
from pathlib import Path
from typing import Any

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


def make_app(loading: "Future[Any]") -> Starlette:
    """The page, of the `Table` that is or will be loaded."""

    async def about(request: Request) -> Response:
        table = await asyncio.wrap_future(loading)
        return JSONResponse(table.about())

    def asks(name: str) -> Route:
        """POST /api/NAME: a method of the table that takes the request's JSON and answers JSON, or a picture's bytes."""

        async def answer(request: Request) -> Response:
            data = await read_json(request)
            if isinstance(data, Response):
                return data
            table = await asyncio.wrap_future(loading)
            try:
                found = await run_in_threadpool(getattr(table, name), data)
            except ValueError as error:
                return refused(str(error))
            return Response(found, media_type="image/gif") if isinstance(found, bytes) else JSONResponse(found)

        return Route(f"/api/{name}", answer, methods=["POST"])

    routes = [
        Route("/api/about", about), *map(asks, ("person", "model", "scores", "gif")),
        Mount("/", StaticFiles(directory=STATIC, html=True)),
    ]  # fmt: skip
    hosts = TrustedHostMiddleware, [HERE, "localhost"]  # a name that somebody else's page resolves to here is none
    return Starlette(routes=routes, middleware=[Middleware(Secured), Middleware(hosts[0], allowed_hosts=hosts[1])])


async def read_json(request: Request) -> Any:
    """The request's data, or what is answered to one that has none."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        return refused("a request is JSON and says so in its content-type")  # so no other site's form can send one
    if int(request.headers.get("content-length") or LARGEST_REQUEST + 1) > LARGEST_REQUEST:
        return refused(f"a request has at most {LARGEST_REQUEST} bytes, and says how many")
    try:
        return json.loads(await request.body())
    except ValueError:
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


def make_server(app: Starlette) -> QuietServer:
    settings: dict[str, Any] = {"log_level": "warning", "access_log": False, "date_header": False, "lifespan": "off"}
    return QuietServer(uvicorn.Config(app, loop="asyncio", http="h11", ws="none", timeout_graceful_shutdown=2, **settings))


