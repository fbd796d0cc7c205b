"""A policy behind the OpenAI API: `python -m jaxvlmrl.serve --checkpoint=DIR [--port=8000]`.

DIR is a run directory, or a Hugging Face folder (`--model=FOLDER` is the same). It answers /v1/chat/completions with
pictures as data: URIs, /v1/models and /health, on this machine alone; for another --host the environment variable
JAXVLMRL_API_KEY must hold a key. What is accepted and what is replaced: docs/serving.md.
"""

import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

try:
    import uvicorn
except ImportError:
    print("jaxvlmrl.serve: it needs an extra: pip install 'jaxvlmrl[serve]'", file=sys.stderr)
    sys.exit(2)

from jaxvlmrl import command_line
from jaxvlmrl.config import ConfigError
from jaxvlmrl.serving.app import Access, Server, is_this_machine
from jaxvlmrl.serving.conversations import Dialogue, Kept, Picture, Turn
from jaxvlmrl.serving.pictures import Eyes
from jaxvlmrl.serving.programs import Programs
from jaxvlmrl.serving.rows import Event, Job, Sampling
from jaxvlmrl.serving.scheduler import Scheduler
from jaxvlmrl.serving.served import EVERYTHING, Asked, Served, load
from jaxvlmrl.serving.wording import KINDS, Wording

KEY = "JAXVLMRL_API_KEY"
OWN_PROMPT = "the client's system and turn texts are replaced by the checkpoint's own; --prompt=client turns that off"
log = logging.getLogger("jaxvlmrl.serve")


def define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("checkpoint", None, "a run directory, or a Hugging Face folder", flag_values=values)
    flags.DEFINE_string("model", None, "the same", flag_values=values)
    flags.DEFINE_string("host", "127.0.0.1", "address to listen on", flag_values=values)
    flags.DEFINE_integer("port", 8000, "0 for any free one", 0, 65535, flag_values=values)
    flags.DEFINE_enum("prompt", None, KINDS, "whose words; own for the tiny model", flag_values=values)
    flags.DEFINE_string("template", None, "chat template of a Hugging Face folder", flag_values=values)
    flags.DEFINE_integer("batch", 16, "answers at once", 1, 1024, flag_values=values)
    flags.DEFINE_integer("context", 0, "tokens in sight, at most; 0 for what fits", 0, flag_values=values)
    flags.DEFINE_integer("max_tokens", 0, "of an answer; 0 for the checkpoint's", 0, flag_values=values)
    flags.DEFINE_integer("window", 0, "turns in sight, of a Hugging Face folder; 0 for all", 0, flag_values=values)
    flags.DEFINE_integer("cache_mb", 1024, "of kept conversations", 1, flag_values=values)
    flags.DEFINE_integer("queue", 256, "requests at once, at most", 1, flag_values=values)


def make_scheduler(served: Served, cache_bytes: int) -> Scheduler:
    """The engine, every program of it compiled."""
    programs = Programs(served.policy, served.params, served.sizes, served.picture_shape)
    scheduler = Scheduler(programs, Wording(served.policy.chat, served.prompt), Kept(cache_bytes))
    warm_up(scheduler)
    return scheduler


def warm_up(scheduler: Scheduler) -> None:
    """A conversation of two turns, of which nothing is kept."""
    events: list[Event] = []
    picture = Picture.of(np.zeros((*scheduler.programs.picture_shape, 3), np.uint8))
    turn = Turn((picture,))
    for dialogue in (Dialogue(None, (turn,)), Dialogue(None, (turn._replace(answer="?"), turn))):
        scheduler.submit([Job(dialogue, Sampling(max_tokens=2), events.append)])
        scheduler.drain()
    for event in events:
        if event.error:
            raise ConfigError(f"the policy cannot answer: {event.error.message}")
    scheduler.kept = Kept(scheduler.kept.limit_bytes)


def facts(served: Served) -> dict[str, Any]:
    """What /v1/models says beyond the API's own fields."""
    policy, sizes, (height, width) = served.policy, served.sizes, served.picture_shape
    replaced = {"prompt_note": OWN_PROMPT} if served.prompt == "own" else {}
    return {
        "window_turns": None if policy.window >= EVERYTHING else policy.window,
        "context_tokens": sizes.slots,
        "max_answer_tokens": sizes.answer,
        "batch": sizes.rows,
        "image": {"width": width, "height": height, "resized": served.way},
        "constrained": policy.constrained,
        "prompt": served.prompt,
    } | replaced


def make_server(served: Served, access: Access, cache_bytes: int, queue: int = 256) -> Server:
    scheduler = make_scheduler(served, cache_bytes)
    eyes = Eyes(*served.picture_shape, served.way)
    return Server(served.name, facts(served), scheduler, eyes, access, served.sizes.answer, queue)


def listen(host: str, port: int) -> socket.socket:
    """Raises `ConfigError` where the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return found


def access_of(host: str, key: str | None) -> Access:
    """Raises `ConfigError` where others could ask without a key."""
    if not key and not is_this_machine(f"[{host}]" if ":" in host else host):
        raise ConfigError(f"--host={host} can be reached by others: set a key in the environment variable {KEY}")
    if key and not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{KEY} must be of plain characters")
    return Access(key or None)


def main(argv: list[str]) -> int:
    if command_line.helped(argv, __doc__, define):
        return 0
    given: dict[str, Any] = command_line.parse(argv, define).flag_values_dict()
    if (given["checkpoint"] is None) == (given["model"] is None):
        raise ConfigError("say what to serve: --checkpoint=runs/quickstart-0, or --model=FOLDER")
    log_to_stderr()
    access = access_of(given["host"], os.environ.pop(KEY, None))
    address = listen(given["host"], given["port"])
    asked = Asked(
        given["prompt"], given["template"], given["batch"], given["context"], given["max_tokens"], given["window"]
    )
    served = load(Path(given["checkpoint"] or given["model"]), asked)
    server = make_server(served, access, given["cache_mb"] << 20, given["queue"])
    tell(served, server, address)
    config = uvicorn.Config(server.app(), log_level="warning", access_log=False, timeout_graceful_shutdown=30)
    uvicorn.Server(config).run(sockets=[address])
    return 0


def log_to_stderr() -> None:
    """Of this package alone: what JAX would tell at this level is of no interest here."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def tell(served: Served, server: Server, address: socket.socket) -> None:
    programs, sizes = server.scheduler.programs, served.sizes
    memory = sizes.rows * sizes.slots * programs.bytes_per_token / 2**20
    log.info("compiled: %s", ", ".join(f"{name} {count}" for name, count in programs.compiled().items()))
    log.info("%d rows of %d tokens, %.1f MiB of keys and values", sizes.rows, sizes.slots, memory)
    if served.prompt == "own":
        log.info("prompt: %s", OWN_PROMPT)
    host, port = address.getsockname()[:2]
    print(f"serving {served.name} on http://{f'[{host}]' if ':' in host else host}:{port}/v1", flush=True)


if __name__ == "__main__":
    command_line.guarded("jaxvlmrl.serve", lambda: main(sys.argv))
