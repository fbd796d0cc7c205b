"""What the server's tests share: a scheduler asked from the same thread, and a server on loopback in a thread."""

import base64
import dataclasses
import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import uvicorn
from PIL import Image

from jaxvlmrl import serve
from jaxvlmrl.serving.app import Access, Server
from jaxvlmrl.serving.conversations import Dialogue, Picture, Turn
from jaxvlmrl.serving.rows import Event, Job, Sampling, Token, Usage
from jaxvlmrl.serving.scheduler import Scheduler

SHIPPED = Path(__file__).parent.parent / "experiments" / "quickstart"


@dataclasses.dataclass
class Said:
    """What came of a job."""

    text: str = ""
    tokens: list[Token] = dataclasses.field(default_factory=list)
    reason: str | None = None
    usage: Usage | None = None

    def hear(self, event: Event) -> None:
        if event.error:
            raise event.error
        self.text += event.text
        self.tokens += event.tokens
        self.reason, self.usage = event.reason, event.usage


def ask(scheduler: Scheduler, *dialogues: Dialogue, **sampling: Any) -> list[Said]:
    """The answers, all asked for at once; greedy unless `sampling` says otherwise."""
    found = [Said() for _ in dialogues]
    asked = Sampling(**{"temperature": 0.0, "max_tokens": 1 << 20} | sampling)
    scheduler.submit([Job(dialogue, asked, said.hear) for dialogue, said in zip(dialogues, found)])
    scheduler.drain()
    return found


def shown(pictures: list[np.ndarray], answers: list[str], system: str | None = None) -> Dialogue:
    """A conversation of pictures alone, the last of them not answered yet."""
    turns = [Turn((Picture.of(p),), a) for p, a in zip(pictures, [*answers, None], strict=True)]
    return Dialogue(system, tuple(turns))


def noise(count: int, shape: tuple[int, int], seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, *shape, 3)).astype(np.uint8))


def data_uri(picture: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> str:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def user(*parts: str) -> dict[str, Any]:
    """A user's message; parts that are data URIs are pictures."""
    of = lambda part: {"type": "image_url", "image_url": {"url": part}} if part.startswith("data:") else None
    return {"role": "user", "content": [of(part) or {"type": "text", "text": part} for part in parts]}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


@contextmanager
def running(server: Server) -> Iterator[int]:
    """The server's port."""
    listening: socket.socket = serve.listen("127.0.0.1", 0)
    runner = uvicorn.Server(uvicorn.Config(server.app(), log_level="critical"))
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [listening]})
    thread.start()
    while not runner.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield listening.getsockname()[1]
    finally:
        runner.should_exit = True
        thread.join()


def server_of(folder: Path, key: str | None = None, **asked: Any) -> Server:
    served = serve.load(folder, serve.Asked(**asked))
    return serve.make_server(served, Access(key), cache_bytes=1 << 28)


class Game:
    """GridWalker as a client holds it: pictures out, answers in."""

    def __init__(self, config: Any, seed: int):
        self.env, self.params = config.env, config.env_params
        self.state = self.env.init_from_number(jnp.uint32(seed), self.params)
        self._see = _see(self.env)
        self._step = _step(self.env)

    def picture(self) -> np.ndarray:
        return np.asarray(self._see(self.state))

    def answer(self, text: str) -> None:
        self.state = self._step(self.state, jnp.int32(self.env.parse_answer(text)), self.params)


@cache
def _see(env: Any) -> Any:
    return jax.jit(lambda state: env.observe(state)["image"])


@cache
def _step(env: Any) -> Any:
    return jax.jit(lambda state, action, params: env.transition(jax.random.key(0), state, action, params)[0])
