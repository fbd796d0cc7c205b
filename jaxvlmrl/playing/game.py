"""A game as the page keeps it: seed, size, blocks and what was done so far. From these all else follows.

Nothing is remembered between requests but pictures and compiled functions, so stepping back, sharing and going on from
anywhere need no word with the server. Boards of any size: a compiled function serves all boards up to so many blocks.
"""

import base64
import io
import threading
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from envs_jax.grid_walker import GridWalker, Params
from envs_jax.grid_walker.commands import FORWARD, UNPARSABLE, command_text, parse_command
from envs_jax.grid_walker.layout import hash_text, max_blocks_on
from envs_jax.grid_walker.rules import State, efficiency
from jaxvlmrl.playing.bad_request import BadRequest

LARGEST = 32  # cells on a side; the original's page ends there
SMALLEST = 2
CAPACITIES = (4, 16, 64, 256)  # blocks a compiled function has room for
REFERENCE_UP_TO = 16  # blocks that are drawn at reference quality; more take seconds a picture
PICTURE = 384  # pixels on a side, for people
LONGEST_SEED, LONGEST_COMMAND, MOST_COMMANDS = 200, 100, 500
OWN = "*"  # in place of a command: what the policy answers there
FIRST = {"seed": "0", "size": 8, "blocks": 3, "done": []}  # what the page opens with

WON = "the game is won; it takes no more commands"

one_at_a_time = threading.Lock()  # two requests that need the same function would compile it twice


class Start(NamedTuple):
    """How a game begins."""

    seed: str
    size: int
    blocks: int

    @property
    def params(self) -> Params:
        return Params(size=self.size, num_blocks=self.blocks)


def read_start(data: Any) -> Start:
    """Of a request's JSON. Raises `BadRequest`."""
    if not isinstance(data, dict):
        raise BadRequest("a request is a JSON object")
    seed, size, blocks = (data.get(name) for name in Start._fields)
    if not isinstance(seed, str) or len(seed) > LONGEST_SEED:
        raise BadRequest(f"a seed is a text of at most {LONGEST_SEED} characters")
    if type(size) is not int or not SMALLEST <= size <= LARGEST:
        raise BadRequest(f"a board has {SMALLEST} to {LARGEST} cells on a side")
    most = int(max_blocks_on(size))
    if type(blocks) is not int or not 0 <= blocks <= most:
        raise BadRequest(f"a board of {size} x {size} has 0 to {most} blocks")
    return Start(seed, size, blocks)


def read_done(data: dict[str, Any], most: int = MOST_COMMANDS) -> tuple[str, ...]:
    """What was done so far, as canonical commands and `OWN`. Raises `BadRequest`."""
    done = data.get("done")
    if not isinstance(done, list) or len(done) > most:
        raise BadRequest(f"a game here has at most {most} turns")
    return tuple(each if each == OWN else canonical(each) for each in done)


def canonical(text: Any) -> str:
    """A typed command as the game reads it. Raises `BadRequest` for what it refuses."""
    if not isinstance(text, str) or len(text) > LONGEST_COMMAND:
        raise BadRequest(f"a command is a text of at most {LONGEST_COMMAND} characters")
    action = parse_command(text)
    if action == UNPARSABLE:
        raise BadRequest(
            f"the game does not know “{printable(text.strip())}”: write left, right or forward N, with N from 1"
        )
    return command_text(action)


def printable(text: str) -> str:
    """With halves of surrogate pairs escaped: JSON can hold one alone, an answer in UTF-8 cannot."""
    return text.encode("utf-8", "backslashreplace").decode()


# Rules and pictures


class Rules(NamedTuple):
    """An environment's functions, compiled once."""

    begin: Callable[[np.uint32, Params], State]
    obey: Callable[[jax.Array, State, int, Params], Any]
    draw: Callable[[State], jax.Array]


@cache
def rules(env: GridWalker) -> Rules:
    return Rules(
        jax.jit(env.init_from_hash), jax.jit(env.transition), jax.jit(lambda state: env.observe(state)["image"])
    )


def capacity(blocks: int) -> int:
    return next(room for room in CAPACITIES if blocks <= room)


def people_env(start: Start) -> GridWalker:
    """The environment whose pictures people look at."""
    room = capacity(start.blocks)
    quality = "reference" if room <= REFERENCE_UP_TO else "training"
    return GridWalker(LARGEST, room, height=PICTURE, width=PICTURE, quality=quality)


def first_state(env: GridWalker, start: Start) -> State:
    return rules(env).begin(np.uint32(hash_text(start.seed)), start.params)


def obey(env: GridWalker, start: Start, state: State, action: int) -> State:
    return rules(env).obey(jax.random.key(0), state, action, start.params)[0]


def states(start: Start, done: tuple[str, ...]) -> Iterator[State]:
    """The first one, and one after each command."""
    env = people_env(start)
    state = first_state(env, start)
    yield state
    for text in done:
        state = obey(env, start, state, parse_command(text))
        yield state


def sharp_picture(start: Start, state: State) -> np.ndarray:
    """[PICTURE, PICTURE, 3] uint8, for people; poses that were drawn before are remembered."""
    x, z = map(int, state.cell)
    return _drawn(start, x, z, int(state.facing))


@lru_cache(maxsize=256)
def _drawn(start: Start, x: int, z: int, facing: int) -> np.ndarray:
    env = people_env(start)
    state = first_state(env, start)
    pose = state.replace(cell=np.array([x, z], np.int32), facing=np.int32(facing))
    return np.asarray(rules(env).draw(pose))


def as_uri(image: np.ndarray) -> str:
    """A picture as a PNG in a data URI."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# What a page is told


class Score(NamedTuple):
    """How a game stands; the game's own counters."""

    won: bool
    turns: int
    cells: int
    efficiency: int | None  # percent, of a game that was won


def score(state: State) -> Score:
    won = bool(state.won)
    return Score(won, int(state.turn), int(state.total_steps), int(efficiency(state)) if won else None)


def outcome(before: State, after: State, command: str) -> str:
    """What a command did, in words."""
    action = parse_command(command)
    if action < FORWARD:
        return f"turned {command}"
    wanted = action - FORWARD
    walked = int(abs(after.cell - before.cell).sum())
    cells = "1 cell" if walked == 1 else f"{walked} cells"
    if bool(after.won):
        return f"walked {cells} and stopped on the gold"
    if walked == wanted:
        return f"walked {cells}"
    x, z = (int(side) for side in after.cell)
    ahead_x, ahead_z = x + (0, 1, 0, -1)[int(after.facing)], z + (-1, 0, 1, 0)[int(after.facing)]
    is_wall = not (0 <= ahead_x < int(after.size) and 0 <= ahead_z < int(after.size))
    return f"walked {cells}, then {'the wall' if is_wall else 'a block'} was in the way"


def person(data: Any) -> dict[str, Any]:
    """A person's game after `done`, and after the typed `command` where there is one, which the game may refuse.

    Raises `BadRequest` for a game that cannot be.
    """
    start, done = read_start(data), read_done(data)
    if OWN in done:
        raise BadRequest("a person's game has commands only")
    with one_at_a_time:
        *earlier, state = states(start, done)
        if any(bool(before.won) for before in earlier):
            raise BadRequest(WON)
        if (typed := data.get("command")) is None:
            return person_view(start, done, earlier[-1] if earlier else None, state)
        try:
            command = canonical(typed)
        except BadRequest as refusal:
            return {"refused": str(refusal)}
        if bool(state.won):
            return {"refused": WON}
        after = obey(people_env(start), start, state, parse_command(command))
        return person_view(start, (*done, command), state, after)


def person_view(start: Start, done: tuple[str, ...], before: State | None, state: State) -> dict[str, Any]:
    said = "" if before is None else outcome(before, state, done[-1])
    standing = {"done": done, "score": score(state)._asdict(), "outcome": said}
    return standing | {"sharp": as_uri(sharp_picture(start, state))}
