"""GridWalker played by a model behind an OpenAI-compatible endpoint: `evaluate --policy=openai --base_url=... --model=...`.

As the game's own harness does it: the system prompt, then for every turn so far the picture, 256 x 151 at reference
quality, and the model's reply. An answer that cannot be read, or that the game refuses, costs its turn. Whatever ends the
program, the same command goes on at the next turn of every episode.
"""

import asyncio
import base64
import io
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from absl import flags
from PIL import Image

from envs_jax.environment import State
from envs_jax.grid_walker import GridWalker, Params
from jaxvlmrl.config import ConfigError
from jaxvlmrl.remote_transcripts import Line, Setup, Transcripts, is_over, turns_of

if TYPE_CHECKING:
    from jaxvlmrl.remote_endpoint import Endpoint

HEIGHT, WIDTH = 151, 256  # of the harness's screenshot
LIVE_FRAMES = 21.0  # that the page draws at 60 Hz between a command and the screenshot
LOST_IN_A_ROW = 3  # episodes given up one after another: the endpoint counts as gone


class Unfinished(Exception):
    """Some episodes are not over; the message is a sentence that says why."""


class Board:
    """The game, one episode at a time, on the host; each function is compiled once."""

    def __init__(self, setup: Setup):
        is_live = setup.camera == "unsettled"
        frames = LIVE_FRAMES if is_live else float("inf")
        self.env = GridWalker(
            max_size=setup.size, max_blocks=max(setup.blocks, 1), height=HEIGHT, width=WIDTH, quality="reference",
            camera="live" if is_live else "settled",
        )  # fmt: skip
        self.params = Params(
            size=setup.size, num_blocks=setup.blocks, max_turns=setup.turns, min_camera_frames=frames,
            max_camera_frames=frames,
        )  # fmt: skip
        try:
            self.env.check(self.params)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self._init, self._transition = jax.jit(self.env.init_from_number), jax.jit(self.env.transition)
        self._observe = jax.jit(self.env.observe)

    def start(self, seed: int) -> State:
        return self._init(np.uint32(seed), self.params)

    def step(self, state: State, action: int) -> tuple[State, Line]:
        """The state after an answer, and what came of it. Nothing is drawn, so the key is any."""
        state, _, _, _, info = self._transition(jax.random.key(0), state, np.int32(action), self.params)
        told = {name: np.asarray(info[name]).item() for name in ("accepted", "success", "efficiency")}
        return state, {"accepted": told["accepted"], "won": told["success"], "efficiency": told["efficiency"]}

    def picture(self, state: State) -> str:
        """As the data URI of a PNG."""
        file = io.BytesIO()
        Image.fromarray(np.asarray(self._observe(state)["image"])).save(file, "PNG")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


# The conversation


def question(turn: int, picture: str) -> Line:
    """The user's message of a turn, counted from 1."""
    text = {"type": "text", "text": f"Turn {turn}. What is your next move?"}
    return {"role": "user", "content": [text, {"type": "image_url", "image_url": {"url": picture}}]}


def request(setup: Setup, conversation: list[Line]) -> dict[str, Any]:
    """What is sent for the next reply of a conversation, which begins and ends with a question."""
    seen = conversation[-(2 * setup.keep_turns - 1) :] if setup.keep_turns else conversation
    asked: dict[str, Any] = {"model": setup.model, "messages": [{"role": "system", "content": setup.prompt}, *seen]}
    if setup.max_tokens:
        asked["max_tokens"] = setup.max_tokens
    if setup.temperature is not None:
        asked["temperature"] = setup.temperature
    return asked | setup.extra


# Playing


class Evaluation:
    """Episodes under way. One that is given up does not stop the others, unless the endpoint is gone.

    Nor does one whose conversation becomes too long for the endpoint: it is lost there. A first turn that is too long
    would be so in every episode, and is a refusal.
    """

    def __init__(self, board: Board, transcripts: Transcripts, endpoint: "Endpoint"):
        self.board, self.transcripts, self.endpoint = board, transcripts, endpoint
        self.setup = transcripts.setup
        self.refusal: ConfigError | None = None
        self.losses: list[str] = []
        self.lost_in_a_row = 0

    @property
    def is_stopped(self) -> bool:
        """No further request is made; those under way are waited for."""
        return self.refusal is not None or self.lost_in_a_row >= LOST_IN_A_ROW

    async def play(self, seed: int, played: list[Line]) -> None:
        """An episode to its end, after the turns that were played."""
        from jaxvlmrl.remote_endpoint import GaveUp, Refused, TooLong

        if self.is_stopped:
            return
        try:
            await self.go_on(seed, played)
        except GaveUp as loss:
            self.transcripts.write(seed, {"turn": len(played) + 1, "failures": loss.failures})
            self.losses.append(f"seed {seed} got {loss}")
            self.lost_in_a_row += 1
        except Refused as refusal:
            if not (played and isinstance(refusal, TooLong)):
                self.refusal = refusal
                return
            self.lost_in_a_row = 0
            turn, failures = len(played) + 1, [*refusal.failures, str(refusal)]
            self.transcripts.write(seed, {"turn": turn, "failures": failures, "outgrown": True})
            print(f"seed {seed}: lost, too long a conversation in turn {turn}: {refusal}", file=sys.stderr, flush=True)

    async def go_on(self, seed: int, played: list[Line]) -> None:
        """Those turns again without a request, then the others; `played` grows."""
        state, conversation = self.board.start(seed), []
        for line in played:
            conversation += [question(line["turn"], self.board.picture(state)), said(line)]
            state, _ = self.board.step(state, line["action"])
        while not is_over(played, self.setup.turns):
            if self.is_stopped:
                return
            turn = len(played) + 1
            conversation.append(question(turn, await asyncio.to_thread(self.board.picture, state)))
            line = await self.ask(turn, conversation)
            state, outcome = self.board.step(state, line["action"])
            self.transcripts.write(seed, line | outcome)
            played.append(line | outcome)
            conversation.append(said(line))
        won = "won" if played[-1]["won"] else "not won"
        print(f"seed {seed}: {won} in {len(played)} turns", file=sys.stderr, flush=True)

    async def ask(self, turn: int, conversation: list[Line]) -> Line:
        started = time.time()
        reply = await self.endpoint.ask(request(self.setup, conversation))
        self.lost_in_a_row = 0
        return {
            "turn": turn, "answer": reply.text, "action": self.board.env.parse_answer(reply.text),
            "finish_reason": reply.finish_reason, "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens, "latency_s": reply.latency_s, "failures": reply.failures,
            "started": started, "ended": time.time(),
        }  # fmt: skip


def said(line: Line) -> Line:
    return {"role": "assistant", "content": line["answer"]}


class Running(NamedTuple):
    """How the requests are made; what is played does not depend on it."""

    concurrency: int
    retries: int
    timeout_s: float
    backoff_s: float


def play(board: Board, setup: Setup, running: Running, folder: Path, seeds: Sequence[int]) -> dict[int, list[Line]]:
    """All lines of all episodes, once they are over. Raises `ConfigError`, `Unfinished`."""
    try:
        from jaxvlmrl.remote_endpoint import Endpoint
    except ImportError as error:
        raise ConfigError("a remote model is played through httpx: pip install 'jaxvlmrl[remote]'") from error
    endpoint = Endpoint(setup.base_url, running.timeout_s, running.retries, running.backoff_s)
    transcripts = Transcripts(folder, setup, running._asdict() | {"seeds": [seeds[0], seeds[-1]]})
    evaluation = Evaluation(board, transcripts, endpoint)
    try:
        before = {seed: transcripts.read(seed) for seed in seeds}
        played = {seed: turns_of(lines) for seed, lines in before.items() if not is_over(lines, setup.turns)}
        asyncio.run(_play_all(evaluation, played, running.concurrency))
        found = {seed: transcripts.read(seed) for seed in seeds}
    except KeyboardInterrupt:
        raise Unfinished("stopped; the same command goes on from here") from None
    finally:
        transcripts.close()
    left = sum(not is_over(lines, setup.turns) for lines in found.values())
    there = f"{len(seeds) - left} of {len(seeds)} episodes are over, the same command goes on with the others"
    if evaluation.refusal:
        raise ConfigError(f"{evaluation.refusal}; {there}")
    if left:
        raise Unfinished(f"{evaluation.losses[0]}; {there}")
    return found


async def _play_all(evaluation: Evaluation, played: dict[int, list[Line]], concurrency: int) -> None:
    free = asyncio.Semaphore(concurrency)

    async def play(seed: int) -> None:
        async with free:
            await evaluation.play(seed, played[seed])

    async with evaluation.endpoint:
        await asyncio.gather(*map(play, played))


# Flags


def define(values: flags.FlagValues) -> None:
    text = lambda name, default, told: flags.DEFINE_string(name, default, told, flag_values=values)
    number = lambda name, default, told, low=0: flags.DEFINE_integer(
        name, default, told, lower_bound=low, flag_values=values
    )
    real = lambda name, default, told: flags.DEFINE_float(name, default, told, lower_bound=0.0, flag_values=values)
    text("base_url", None, "of an OpenAI-compatible endpoint, up to the /v1")
    text("model", None, "its name there")
    text("transcripts", None, "runs/remote-<model>")
    text("prompt", None, "a file with the system prompt, in place of the environment's")
    text("extra", "{}", "other fields of a request, as a JSON object")
    flags.DEFINE_enum(
        "camera", "settled", ["settled", "unsettled"], "unsettled: as late as the page's", flag_values=values
    )
    number("size", 8, "of the board", 2)
    number("blocks", 3, "on the board")
    number("keep_turns", 0, "turns that are sent, the newest included; 0 is all")
    number("max_tokens", 2000, "of a reply; 0 leaves it to the endpoint")
    real("temperature", None, "of a reply; left to the endpoint if not given")
    number("concurrency", 8, "episodes at once", 1)
    number("retries", 6, "of a request")
    real("timeout", 120.0, "seconds that a request may take")
    real("backoff", 1.0, "seconds before the first retry, at most; doubled for each further one")
    real("price_in", None, "of a million prompt tokens")
    real("price_out", None, "of a million completion tokens")


def flag_names() -> list[str]:
    define(values := flags.FlagValues())
    return list(values)


def setup_from(given: dict[str, Any], turns: int) -> Setup:
    """Raises `ConfigError` for what cannot be played."""
    if not given["base_url"] or not given["model"]:
        raise ConfigError("say who plays: --base_url=https://HOST/v1 --model=NAME")
    if not re.match(r"https?://[^/\s?#@]+(/[^\s?#@]*)?$", given["base_url"]):
        raise ConfigError("--base_url is http://HOST/PATH or https://HOST/PATH, without a name, a key or a query in it")
    names = ("base_url", "model", "size", "blocks", "camera", "keep_turns", "max_tokens", "temperature")
    read: dict[str, Any] = {name: given[name] for name in names} | {"turns": turns}
    try:
        if given["prompt"]:
            read["prompt"] = Path(given["prompt"]).read_text()
        read["extra"] = json.loads(given["extra"])
    except OSError as error:
        raise ConfigError(f"--prompt={given['prompt']} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"--extra is no JSON: {error}") from error
    if not isinstance(read["extra"], dict):
        raise ConfigError("--extra is no JSON object")
    return Setup(**read)


def running_from(given: dict[str, Any]) -> Running:
    return Running(given["concurrency"], given["retries"], given["timeout"], given["backoff"])


def folder_from(given: dict[str, Any]) -> Path:
    return Path(given["transcripts"] or f"runs/remote-{re.sub(r'[^A-Za-z0-9_.-]+', '-', given['model'])}")


def in_words(used: dict[str, float]) -> str:
    """The figures of `usage`, as lines."""
    silent, outgrown = used["turns_without_usage"], used["episodes_outgrown"]
    lost = f"episodes lost because the conversation became too long for the endpoint: {outgrown}"
    return "\n".join([
        *([lost] if outgrown else []),
        f"requests: {used['requests']}, {used['retries']} of them retries",
        f"tokens: {used['prompt_tokens']:,} of prompts, {used['completion_tokens']:,} of replies"
        + (f"; {silent} replies did not say" if silent else ""),
        "cost: " + ("unknown" if used["cost"] != used["cost"] else f"{used['cost']:.4f}"),
        f"latency: {used['latency_p50_s']:.2f} s in the median, {used['latency_p95_s']:.2f} s at 95%; "
        f"wall clock: {used['wall_s']:.1f} s",
    ])  # fmt: skip
