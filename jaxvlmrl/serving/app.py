"""The HTTP side: routes, limits and errors around one scheduler. Starlette; every error has the API's JSON form."""

import asyncio
import hmac
import ipaddress
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from jaxvlmrl.serving.errors import RequestError
from jaxvlmrl.serving.pictures import Eyes
from jaxvlmrl.serving.protocol import ChatRequest, Limits, Writer, read_json, read_request
from jaxvlmrl.serving.rows import Event, Job, Token, Usage
from jaxvlmrl.serving.scheduler import STOPPED, Scheduler

BODY_SECONDS = 60  # for a body to arrive
READING = 2  # bodies at once: pictures are decoded in them
OPEN = ("/health",)  # without a key
log = logging.getLogger("jaxvlmrl.serve")


@dataclass(frozen=True)
class Access:
    """Who may ask: the holder of the key, or, without one, this machine by a name of its own."""

    key: str | None

    def check(self, scope: Scope) -> None:
        """Raises `RequestError`. A page in a browser cannot set a host name of its own choice to this machine's."""
        headers = dict(scope["headers"])
        if self.key is None:
            host = headers.get(b"host", b"").decode("latin-1")
            if not is_this_machine(host):
                raise RequestError(f"{host[:100]!r} is no name of this machine", status=403, code="wrong_host")
            return
        given = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        if scope["path"] not in OPEN and not hmac.compare_digest(given, self.key.encode()):
            raise RequestError("the API key is missing or wrong", status=401, code="invalid_api_key")


def is_this_machine(host: str) -> bool:
    """Whether `host`, with or without a port, is a loopback name."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Gate:
    """ASGI middleware: access first, before anything is read."""

    def __init__(self, app: ASGIApp, access: Access):
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self.access.check(scope)
            except RequestError as error:
                await error_response(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def error_response(error: RequestError) -> JSONResponse:
    headers = {"retry-after": "1"} if error.status in (429, 503) else {}
    headers |= {"www-authenticate": "Bearer"} if error.status == 401 else {}
    return JSONResponse(error.body(), error.status, headers)


@dataclass(eq=False)
class Server:
    """What the routes share."""

    name: str
    facts: dict[str, Any]  # of /v1/models
    scheduler: Scheduler
    eyes: Eyes
    access: Access
    answer: int  # tokens, at most
    queue: int = 256  # requests at once, at most
    open_bytes: int = 256 << 20  # of bodies that are not read yet, all together
    limits: Limits = field(default_factory=Limits)
    created: int = field(default_factory=lambda: int(time.time()))
    inside: int = 0
    _bytes: int = field(init=False, default=0)
    _reading: asyncio.Semaphore = field(init=False, default_factory=lambda: asyncio.Semaphore(READING))
    _engine: threading.Thread = field(init=False)

    def app(self) -> Starlette:
        routes = [
            Route("/health", self.health),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {
            HTTPException: lambda request, error: error_response(RequestError(error.detail, error.status_code)),
            RequestError: lambda request, error: error_response(error),
            ClientDisconnect: lambda request, error: Response(status_code=400),
            Exception: lambda request, error: error_response(RequestError("the server failed on this request", 500)),
        }
        gate = Middleware(Gate, access=self.access)
        return Starlette(routes=routes, exception_handlers=handlers, middleware=[gate], lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self._engine = threading.Thread(target=self.scheduler.run, name="engine", daemon=True)
        self._engine.start()
        yield
        self.scheduler.stop()
        await run_in_threadpool(self._engine.join)

    # Routes

    async def health(self, request: Request) -> Response:
        if self.scheduler.is_stopping or not self._engine.is_alive():
            raise RequestError(STOPPED, status=503)
        return JSONResponse({"status": "ok"})

    def _card(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "jaxvlmrl"} | self.facts

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self.name:
            raise RequestError(f"there is no model {name[:100]!r}, only {self.name}", 404, "model_not_found", "model")
        return JSONResponse(self._card())

    async def chat(self, request: Request) -> Response:
        if self.inside >= self.queue:
            raise RequestError(f"{self.queue} requests are waiting already", status=429, code="queue_full")
        self.inside += 1
        leave = Once(self._leave)
        try:
            asked = await self._asked(request)
            answer = Answer(self, asked)
            if not asked.stream:
                return await answer.whole(request)
            response = await answer.stream(request, leave)
            leave = Once(lambda: None)  # the stream's to call
            return response
        finally:
            leave()

    def _leave(self) -> None:
        self.inside -= 1

    async def _asked(self, request: Request) -> ChatRequest:
        parts: list[bytes] = []
        try:
            await self._receive(request, parts)
            async with self._reading:
                return await run_in_threadpool(self._read, parts)
        finally:
            self._bytes -= sum(map(len, parts))

    async def _receive(self, request: Request, parts: list[bytes]) -> None:
        """The body, in the parts it comes in, each counted in `_bytes`."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # what a foreign page may send unasked has another type
            raise RequestError("the content-type must be application/json", status=415, code="unsupported_content_type")
        too_large = RequestError(f"the body is above {self.limits.body_bytes} bytes", 413, "request_too_large")
        said = request.headers.get("content-length", "")
        if said.isdigit() and int(said) > self.limits.body_bytes:
            raise too_large
        size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    parts.append(part)
                    size += len(part)
                    self._bytes += len(part)
                    if self._bytes > self.open_bytes:
                        raise RequestError("too many bytes are on their way here", status=503, code="overloaded")
                    if size > self.limits.body_bytes:
                        raise too_large
        except TimeoutError as error:
            raise RequestError("the body did not arrive in time", status=408, code="timeout") from error

    def _read(self, parts: list[bytes]) -> ChatRequest:
        return read_request(read_json(b"".join(parts)), self.name, self.answer, self.limits, self.eyes.see)


class Once:
    """A function that is called at most once."""

    def __init__(self, run: Callable[[], None]):
        self._run: Callable[[], None] | None = run

    def __call__(self) -> None:
        run, self._run = self._run, None
        if run:
            run()


class Answer:
    """A request in the scheduler, from the event loop's side."""

    def __init__(self, server: Server, asked: ChatRequest):
        self.asked, chat = asked, server.scheduler.policy.chat
        self.writer = Writer.of(server.name, chat.tokenizer, chat.end_id)
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def emit_of(index: int) -> Callable[[Event], None]:
            def emit(event: Event) -> None:
                loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

            return emit

        self.jobs = [Job(asked.dialogue, sampling, emit_of(index)) for index, sampling in enumerate(asked.choices)]
        server.scheduler.submit(self.jobs)

    def cancel(self) -> None:
        """Rows of answers that are not finished are given to others."""
        for job in self.jobs:
            job.is_cancelled = True

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """Until every choice has its last one. Raises `RequestError`."""
        left = len(self.jobs)
        while left:
            index, event = await self._events.get()
            if event.error:
                self.cancel()
                raise event.error
            left -= event.is_last
            yield index, event

    async def whole(self, request: Request) -> Response:
        try:
            return JSONResponse(await unless_gone(request, self._collected()))
        finally:
            self.cancel()

    async def _collected(self) -> dict[str, Any]:
        texts, reasons = [""] * len(self.jobs), [""] * len(self.jobs)
        tokens: list[list[Token]] = [[] for _ in self.jobs]
        usage: list[Usage] = []
        async for index, event in self.events():
            texts[index] += event.text
            tokens[index] += event.tokens
            reasons[index] = event.reason or ""
            usage += [event.usage] if event.usage else []
        choices = [
            self.writer.choice(index, texts[index], reasons[index], tokens[index] if self.asked.logprobs else None)
            for index in range(len(self.jobs))
        ]
        return self.writer.whole(choices, usage)

    async def stream(self, request: Request, leave: Callable[[], None]) -> Response:
        """Server-sent events; an error before the first is an ordinary one."""
        events = self.events()
        try:
            first = await unless_gone(request, _first(events))
        except BaseException:
            self.cancel()
            raise

        def close() -> None:
            self.cancel()
            leave()

        return Stream(self._lines(first, events), close)

    async def _lines(self, first: tuple[int, Event], events: AsyncIterator[tuple[int, Event]]) -> AsyncIterator[str]:
        line = lambda data: f"data: {json.dumps(data)}\n\n"
        usage: list[Usage] = []
        for index in range(len(self.jobs)):
            yield line(self.writer.piece(index, {"role": "assistant", "content": ""}, None, None))
        try:
            async for index, event in _after(first, events):
                tokens = list(event.tokens) if self.asked.logprobs else None
                if event.text or tokens:
                    yield line(self.writer.piece(index, {"content": event.text}, None, tokens))
                if event.usage:
                    usage.append(event.usage)
                    yield line(self.writer.piece(index, {}, event.reason, None))
        except RequestError as error:
            yield line(error.body())
            return
        if self.asked.include_usage:
            yield line(self.writer.last(usage))
        yield "data: [DONE]\n\n"


async def _first(events: AsyncIterator[Any]) -> Any:
    return await anext(events)


async def _after(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for one in rest:
        yield one


async def unless_gone(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """What `work` comes to. Raises `ClientDisconnect`, and ends it, where nobody waits for it any more."""

    async def disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(disconnect())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


class Stream(StreamingResponse):
    """Ends with `close`, however it ends."""

    def __init__(self, lines: AsyncIterator[str], close: Callable[[], None]):
        super().__init__(lines, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        run: Callable[[Scope, Receive, Send], Awaitable[None]] = super().__call__
        try:
            await run(scope, receive, send)
        finally:
            self._close()
