"""A chat completions endpoint on loopback: plays by an expert that sees what it is sent, and has any fault on demand."""

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jax
import numpy as np
from PIL import Image

from envs_jax.grid_walker.players import FewestCommands
from jaxvlmrl.remote import Board

Messages = list[dict[str, Any]]
HANG, CUT, NO_JSON = "hang", "cut", "no json"  # faults; others are (status, headers), or (status, what is said)
Fault = str | tuple[int, dict[str, str] | str]
KEY = "sk-loopback-0123456789"


class Expert:
    """Answers by the board that the first picture is of, and holds the whole conversation to be what it must be."""

    def __init__(self, board: Board, seeds: Iterable[int]):
        self.board = board
        self.seeds = {board.picture(board.start(seed)): seed for seed in seeds}
        self.act = jax.jit(lambda state: FewestCommands().act(board.env, jax.random.key(0), state, ())[0])

    def __call__(self, messages: Messages) -> str:
        system, *rest = messages
        assert system == {"role": "system", "content": self.board.env.prompt}
        state = self.board.start(self.seeds[picture_of(rest[0])])
        for turn, message in enumerate(rest[::2], start=1):
            assert message["role"] == "user"
            assert message["content"][0] == {"type": "text", "text": f"Turn {turn}. What is your next move?"}
            assert picture_of(message) == self.board.picture(state)
            answered = rest[2 * turn - 1 : 2 * turn]
            if answered:
                assert answered[0]["role"] == "assistant"
                state, _ = self.board.step(state, self.board.env.parse_answer(answered[0]["content"]))
        return self.board.env.answer_text(int(self.act(state)))


def picture_of(message: dict[str, Any]) -> str:
    return message["content"][1]["image_url"]["url"]


def decoded(uri: str) -> np.ndarray:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


class Endpoint(ThreadingHTTPServer):
    """`answer` says what is replied to messages, `fault` what goes wrong with the n-th request, None for nothing."""

    daemon_threads = True

    def __init__(self, answer: Callable[[Messages], Any], fault: Callable[[int, Messages], Fault | None] | None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.fault = answer, fault or (lambda n, messages: None)
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.requests: list[dict[str, Any]] = []  # bodies, with the time and the key
        self.under_way = self.most_under_way = 0
        self.errors: list[BaseException] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the client has gone: some tests want that


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            number = len(server.requests)
            server.requests.append(body | {"at": time.time(), "key": self.headers.get("Authorization")})
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        try:
            self.serve(server.fault(number, body["messages"]), body["messages"])
        except BaseException as error:
            server.errors.append(error)
            raise
        finally:
            with server.lock:
                server.under_way -= 1

    def serve(self, fault: Fault | None, messages: Messages) -> None:
        if fault == HANG:
            self.server.closing.wait(20)
        elif fault == CUT:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.close_connection = True
        elif fault == NO_JSON:
            self.reply(200, b"<html>not here</html>", {})
        elif fault is not None:
            assert not isinstance(fault, str), fault
            status, headers = fault
            told = json.dumps({"error": {"message": f"status {status} for key {self.headers.get('Authorization')}"}})
            said, headers = (headers, {}) if isinstance(headers, str) else (told, headers)
            self.reply(status, said.encode(), headers)
        else:
            message = {"role": "assistant", "content": self.server.answer(messages)}
            usage = {"prompt_tokens": 100 * len(messages), "completion_tokens": 5}
            data = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
            self.reply(200, json.dumps(data).encode(), {})

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(answer: Callable[[Messages], Any], fault: Callable[[int, Messages], Fault | None] | None = None):
    """The endpoint while it is served. What failed in it fails here, but for clients that went away."""
    with Endpoint(answer, fault) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
    for error in server.errors:
        if not isinstance(error, OSError):
            raise error
