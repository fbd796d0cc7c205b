"""Throughput of the server, one request at a time against 16 at once: `python experiments/bench_serve.py`.

Conversations of the published games' first turns, greedy, as a player sends them: the engine by itself, then over HTTP
against `python -m jaxvlmrl.serve` in a process of its own, by plain connections and by the openai client (which spends more
time on a request than this server does). Client and server share the cores. The best of --repeats rounds, serial and batched
in turn.
"""

import base64
import http.client
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from PIL import Image

from jaxvlmrl import acting
from jaxvlmrl.serve import make_scheduler
from jaxvlmrl.serving.conversations import Dialogue, Picture, Turn
from jaxvlmrl.serving.rows import Event, Job, Sampling
from jaxvlmrl.serving.scheduler import Scheduler
from jaxvlmrl.serving.served import Asked, load

CHECKPOINT = flags.DEFINE_string("checkpoint", "experiments/quickstart", "a run directory")
CLIENTS = flags.DEFINE_integer("clients", 16, "requests at once", lower_bound=1)
TURNS = flags.DEFINE_integer("turns", 4, "of each conversation", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 5, "rounds", lower_bound=1)
JSON = flags.DEFINE_string("json", "experiments/results/bench_serve.json", "where to write the figures")

Games = list[list[tuple[np.ndarray, str]]]  # of each game, the pictures and the answers


def play(actor: acting.Actor, count: int, turns: int) -> Games:
    env, params = actor.config.env, actor.config.env_params
    see = jax.jit(lambda state: env.observe(state)["image"])
    step = jax.jit(lambda state, action: env.transition(jax.random.key(0), state, action, params)[0])
    games: Games = []
    for seed in range(count):
        state, conversation, game = env.init_from_number(jnp.uint32(seed), params), actor.start(), []
        for _ in range(turns):
            picture = np.asarray(see(state))
            answer, conversation = actor.act(picture, conversation)
            game.append((picture, answer.text))
            state = step(state, jnp.int32(answer.action))
        games.append(game)
    return games


# Each `ask(game, turn)` sends a game up to a turn and returns the answer.


def engine_asks(scheduler: Scheduler, games: Games) -> Callable[[list[tuple[int, int]]], list[str]]:
    def ask(which: list[tuple[int, int]]) -> list[str]:
        answers = [""] * len(which)

        def emit_of(place: int) -> Callable[[Event], None]:
            def emit(event: Event) -> None:
                answers[place] += event.text

            return emit

        jobs = []
        for place, (game, turn) in enumerate(which):
            said = [Turn((Picture.of(picture),), answer) for picture, answer in games[game][: turn + 1]]
            said[-1] = said[-1]._replace(answer=None)
            jobs.append(Job(Dialogue(None, tuple(said)), Sampling(temperature=0.0, max_tokens=99), emit_of(place)))
        scheduler.submit(jobs)
        scheduler.drain()
        return answers

    return ask


def messages(game: list[tuple[np.ndarray, str]], turn: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for index, (picture, answer) in enumerate(game[: turn + 1]):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        found.append({"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]})
        found += [{"role": "assistant", "content": answer}] if index < turn else []
    return found


def plain_asks(port: int, name: str, games: Games) -> Callable[[int, int], str]:
    connections: dict[int, http.client.HTTPConnection] = {}
    bodies = {
        (g, t): json.dumps({"model": name, "temperature": 0, "messages": messages(game, t)}).encode()
        for g, game in enumerate(games)
        for t in range(len(game))
    }

    def ask(game: int, turn: int) -> str:
        connection = connections.setdefault(game, http.client.HTTPConnection("127.0.0.1", port))
        head = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", bodies[game, turn], head)
        return json.loads(connection.getresponse().read())["choices"][0]["message"]["content"]

    return ask


def openai_asks(port: int, name: str, games: Games) -> Callable[[int, int], str] | None:
    try:
        from openai import OpenAI
    except ImportError:
        return None
    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    said: dict[tuple[int, int], Any] = {
        (g, t): messages(game, t) for g, game in enumerate(games) for t in range(len(game))
    }

    def ask(game: int, turn: int) -> str:
        found = client.chat.completions.create(model=name, messages=said[game, turn], temperature=0)
        return found.choices[0].message.content or ""

    return ask


def rates(serial: Callable[[], list[str]], batched: Callable[[], list[str]], expected: list[str]) -> dict[str, Any]:
    """Requests per second, the best round of each, after one that is not timed."""
    best = {"serial": 0.0, "batched": 0.0}
    for number in range(REPEATS.value + 1):
        for name, run in (("serial", serial), ("batched", batched)):
            started = time.perf_counter()
            found = run()
            assert found == expected, "the answers are not those of the policy by itself"
            best[name] = max(best[name], len(found) / (time.perf_counter() - started) if number else 0.0)
    return {f"{name}_requests_per_s": rate for name, rate in best.items()} | {"ratio": best["batched"] / best["serial"]}


def flat(of_games: Iterable[Iterable[str]]) -> list[str]:
    return [text for game in of_games for text in game]


def start_server() -> tuple[subprocess.Popen, int]:
    command = [sys.executable, "-m", "jaxvlmrl.serve", f"--checkpoint={CHECKPOINT.value}", "--port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    found = re.search(r":(\d+)/v1", process.stdout.readline())
    if not found:
        raise SystemExit("the server did not start")
    return process, int(found[1])


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    actor = acting.load_policy(CHECKPOINT.value or "")
    games = play(actor, CLIENTS.value, TURNS.value)
    order = [(game, turn) for game in range(CLIENTS.value) for turn in range(TURNS.value)]
    expected = [games[game][turn][1] for game, turn in order]
    served = load(Path(CHECKPOINT.value or ""), Asked(rows=CLIENTS.value))
    ask = engine_asks(make_scheduler(served, 1 << 30), games)
    of_turn = lambda turn: [(game, turn) for game in range(CLIENTS.value)]
    figures: dict[str, Any] = {
        "engine": rates(
            lambda: [ask([one])[0] for one in order],
            lambda: flat(zip(*(ask(of_turn(turn)) for turn in range(TURNS.value)))),
            expected,
        )
    }
    print("engine", figures["engine"])
    process, port = start_server()
    try:
        for kind, make in (("http", plain_asks), ("openai", openai_asks)):
            one = make(port, served.name, games)
            if one is None:
                continue
            with ThreadPoolExecutor(CLIENTS.value) as pool:
                play_one = lambda game, one=one: [one(game, turn) for turn in range(TURNS.value)]
                serial = lambda play_one=play_one: flat(map(play_one, range(CLIENTS.value)))
                at_once = lambda play_one=play_one, pool=pool: flat(pool.map(play_one, range(CLIENTS.value)))
                figures[kind] = rates(serial, at_once, expected)
            print(kind, figures[kind])
    finally:
        process.terminate()
        process.wait()
    if JSON.value:
        about = {"command": " ".join(["python", *sys.argv]), "checkpoint": CHECKPOINT.value, "clients": CLIENTS.value}
        about |= {"turns": TURNS.value, "cores": len(os.sched_getaffinity(0)), "jax": jax.__version__}
        Path(JSON.value).write_text(json.dumps(about | figures, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
